"""Makes docs/run-spec.md from the schema: `python -m lectern_common.spec.page`.

So the docs list exactly the settings that YAML files, REST bodies and the page's form accept.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lectern_common.spec.run_spec import RESUME_MAY_CHANGE, RunSpec

_HEAD = """# The run specification

One specification describes a run. It is the YAML file that `lectern train` and
`lectern runs create` read, the body of `POST /runs`, and what the page shows. Unknown fields are
refused, and so are values that would have no effect. `lectern train SPEC.yaml --dry-run` prints the
whole specification with its defaults filled in, and an estimate of the run.

`null` means that a setting is off, or that its default depends on another field; that default is
in parentheses. Paths are relative to the root folders that the processes were started with. Fields
marked * may be changed when a run is resumed.

This page is generated from the schema: `python -m lectern_common.spec.page > docs/run-spec.md`.
"""
_TYPES = {"integer": "int", "number": "float", "boolean": "bool", "string": "text"}
_BOUNDS = (
    ("exclusiveMinimum", ">"),
    ("minimum", ">="),
    ("exclusiveMaximum", "<"),
    ("maximum", "<="),
)


@dataclass(frozen=True)
class Field:
    """One setting: its dotted name, what it accepts, its default, and what it does."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """The settings of one section, without its subsections; `name` "" is the whole run."""

    name: str
    words: str
    fields: list[Field]


def tables(schema: dict[str, Any] | None = None) -> list[Table]:
    """Returns a table for each section, in order; `schema` None is that of RunSpec."""
    schema = RunSpec.model_json_schema() if schema is None else schema
    return list(_tables("", "", schema, schema.get("$defs", {})))


def page() -> str:
    """Returns the whole page."""
    parts = [_HEAD]
    for table in tables():
        lines = [f"## {f'`{table.name}`' if table.name else 'The run'}", ""]
        if table.words:
            lines += [table.words, ""]
        lines += ["| field | accepts | default | what it does |", "|---|---|---|---|"]
        lines += [_line(field) for field in table.fields]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _tables(name: str, words: str, schema: dict[str, Any], defs: dict[str, Any]) -> Iterator[Table]:
    found, within = [], []
    for key, property_ in schema["properties"].items():
        dotted = f"{name}.{key}".lstrip(".")
        reference = _reference(property_)
        each = _reference_of_each(property_)
        if each is not None:
            within.append((dotted, _said(defs[each], {}), defs[each]))
        if reference is None:
            default = _words(property_["default"]) if "default" in property_ else "required"
            meaning = " ".join(property_.get("description", "").split())
            found.append(Field(dotted, _kind(property_), default, meaning))
            continue
        joined = _said(defs[reference], property_)
        if "default" in property_ and property_["default"] is None and "Absent" not in joined:
            joined += " Absent (`null`) by default."
        within.append((dotted, joined, defs[reference]))
    yield Table(name, words, found)
    for section in within:
        yield from _tables(*section, defs)


def _reference(property_: dict[str, Any]) -> str | None:
    """Returns the section that a property holds, optional or not; None means a plain setting."""
    for option in (property_, *property_.get("anyOf", ()), *property_.get("allOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def _said(section: dict[str, Any], property_: dict[str, Any]) -> str:
    said = [section.get("description"), property_.get("description")]
    return " ".join(" ".join(part.split()) for part in said if part)


def _reference_of_each(property_: dict[str, Any]) -> str | None:
    """Returns the section that each entry of a list is; None means a plain list, or no list."""
    for option in (property_, *property_.get("anyOf", ())):
        if "$ref" in option.get("items", {}):
            return str(option["items"]["$ref"]).rpartition("/")[2]
    return None


def _kind(property_: dict[str, Any]) -> str:
    if "$ref" in property_:
        return "mapping"
    if "patternProperties" in property_ or "additionalProperties" in property_:
        return "mapping of names to mappings"
    if "anyOf" in property_:
        return " or ".join(_kind(option) for option in property_["anyOf"])
    if "enum" in property_:
        return ", ".join(f"`{value}`" for value in property_["enum"])
    if "const" in property_:
        return f"`{property_['const']}`"
    kind = property_.get("type", "")
    if kind == "null":
        return "`null`"
    if kind == "array":
        inside = property_.get("prefixItems") or [property_["items"]]
        kinds = dict.fromkeys(_kind(item) for item in inside)
        number = f"{len(inside)} of " if "prefixItems" in property_ else "list of "
        return number + ", ".join(kinds)
    bounds = [f"{sign} {property_[key]:,}" for key, sign in _BOUNDS if key in property_]
    return f"{_TYPES.get(kind, kind)} {', '.join(bounds)}".strip()


def _words(default: Any) -> str:
    if isinstance(default, bool) or default is None:
        return f"`{str(default).lower().replace('none', 'null')}`"
    if isinstance(default, list | tuple):
        return f"`[{', '.join(str(value) for value in default)}]`"
    return f"`{default}`"


def _line(field: Field) -> str:
    star = "*" if _may_change(field.name) else ""
    cells = (f"`{field.name}`{star}", field.kind, field.default, field.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _may_change(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in RESUME_MAY_CHANGE)


if __name__ == "__main__":
    sys.stdout.write(page())
