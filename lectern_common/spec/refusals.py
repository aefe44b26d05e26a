"""Puts what pydantic refuses into sentences: a dotted field, and expected A, got B."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MAX_SHOWN = 80
_NAME = re.compile(r"^(?!constrained-)[\w-]+$")
_QUOTED = re.compile(r"'([^']+)'")
# Types of errors whose last place is a name that the user made up, which may look like anything.
_OF_NAMES = ("extra_forbidden", "invalid_key", "query")

# What was expected, by the type of the error; braces are what its context says.
_EXPECTED = {
    "string_type": "text",
    "string_sub_type": "text",
    "string_unicode": "valid Unicode text",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer with fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "dict_type": "a mapping of settings",
    "invalid_key": "a name of a setting",
}


class Misfit(ValueError):
    """Settings that do not fit together.

    Attributes:
        fields: their dotted paths, from the section that refuses them.
    """

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields


def problems_of(
    errors: Iterable[Mapping[str, Any]],
    *,
    unknown: Callable[[Sequence[str | int]], str] = lambda _: "",
    rules: Mapping[str, str] | None = None,
    skip: int = 0,
) -> list[tuple[str, str]]:
    """Returns (dotted field, sentence) pairs, at least one for each field that pydantic refused.

    Args:
        errors: of a ValidationError.
        unknown: returns what to add about a field of that place which does not exist.
        rules: what texts must be, in words, by the pattern that they must match.
        skip: leading parts of each place that are not of the field's path.
    """
    problems: list[tuple[str, str]] = []
    # A field that takes one of several types has an error of each.
    expected: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for entry in errors:
        place = entry["loc"][skip:]
        field = _field(place, entry["type"])
        what = _expected(entry)
        if entry["type"] == "value_error":
            problems += _own(field, entry)
        elif entry["type"] == "missing":
            problems.append((field, "required"))
        elif entry["type"] == "extra_forbidden":
            problems.append((field, "unknown field" + unknown(place)))
        elif entry.get("ctx", {}).get("pattern") in (rules or {}):
            rule = (rules or {})[entry["ctx"]["pattern"]]
            problems.append((field, f"must be {rule}; {_shown(entry['input'])} is not"))
        elif what is None:
            problems.append((field, str(entry["msg"])))
        elif field in expected:
            expected[field][0].append(what)
        else:
            expected[field] = ([what], entry)
            problems.append((field, ""))
    return [(field, said or _sentence(*expected[field])) for field, said in problems]


def closest(given: Any, known: Sequence[str]) -> str:
    """Returns a question with the one of the known names that may be meant; "" if none is close."""
    close = difflib.get_close_matches(_shown(given).strip("'"), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _field(place: Sequence[str | int], kind: str) -> str:
    """Returns the dotted path of a place, without the names of the types of a union."""
    kept = list(place)
    if kind not in _OF_NAMES:
        kept = [part for part in place if isinstance(part, int) or _NAME.match(part)]
    return ".".join(map(str, kept))


def _own(field: str, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the problems of an error that a validator of ours raised."""
    error = entry["ctx"]["error"]
    fields = error.fields if isinstance(error, Misfit) else ()
    above = f"{field}." if field else ""
    return [(f"{above}{name}", str(error)) for name in fields] or [(field, str(error))]


def _expected(entry: Mapping[str, Any]) -> str | None:
    context = entry.get("ctx", {})
    pattern = _EXPECTED.get(entry["type"])
    if pattern is None:
        return None
    said = pattern.format_map({name: _limit(value) for name, value in context.items()})
    return re.sub(r"\b1 (character|entrie)s", _one, said)


def _one(match: re.Match[str]) -> str:
    return "1 character" if match[1] == "character" else "1 entry"


def _limit(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sentence(expected: Sequence[str], entry: Mapping[str, Any]) -> str:
    context, given = entry.get("ctx", {}), entry["input"]
    got = _shown(given)
    if entry["type"] == "string_too_long":
        got = str(len(given))
    elif entry["type"] in ("too_long", "too_short"):
        got = str(context["actual_length"])
    names = _QUOTED.findall(" ".join(expected))
    said = f"expected {' or '.join(dict.fromkeys(expected))}, got {got}"
    return said + (closest(given, names) if names and isinstance(given, str) else "")


def _shown(value: Any) -> str:
    """Returns a value as a spec has it, cut if it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return ascii(value[:MAX_SHOWN]) + ("..." if len(value) > MAX_SHOWN else "")
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MAX_SHOWN else "a number of many digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return "a mapping"
    return (
        "a list"
        if isinstance(value, (list, tuple, set))
        else f"a value of type {type(value).__name__}"
    )
