"""Reads what another process wrote without believing it: sizes, types, numbers and lengths.

The annotated types are for pydantic in strict mode. Text that is too long is cut, with a marker,
because its beginning and end still help; everything else that is out of bounds is refused.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from lectern_common.errors import CorruptData
from lectern_common.files import NotRegularError, opened_regular
from lectern_common.json_lines import MAX_COUNT
from lectern_common.words import inert_name

MAX_TEXT = 4000  # characters
MAX_WORD = 100
_LAST_SECOND = 253_402_300_799  # of the year 9999; no calendar goes further
_CUT = " [cut] "
_NAMED_PROBLEMS = 3

_T = TypeVar("_T")


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """Returns the text; beyond `limit` characters only its beginning and end, with a marker."""
    if len(text) <= limit:
        return text
    kept = max(2, limit - len(_CUT))
    return text[: kept - kept // 2] + _CUT + text[-(kept // 2) :]


def _cut_word(text: str) -> str:
    return cut(text, MAX_WORD)


Text = Annotated[str, AfterValidator(cut)]
Word = Annotated[str, AfterValidator(_cut_word)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Whole = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)]
Pid = Annotated[int, Field(ge=1, le=2**31 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
UnixSeconds = Annotated[float, Field(ge=0, le=_LAST_SECOND, allow_inf_nan=False)]


def finite(value: float | None) -> float | None:
    """Returns the number, or None for one that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def json_of(data: bytes) -> bytes:
    """Returns JSON bytes that any parser reads: lone surrogates are replaced by "?".

    Raises:
        ValueError: it is not JSON, or it is nested too deeply.
    """
    try:
        return json.dumps(json.loads(data), ensure_ascii=False).encode(errors="replace")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_versioned(adapter: TypeAdapter[_T], data: bytes, versions: Sequence[int], of: str) -> _T:
    """Returns what JSON bytes with a "version" hold.

    Args:
        adapter: reads the values, strictly.
        versions: that this program reads.
        of: what the process that wrote it worked on, for people: "run".

    Raises:
        CorruptData: they hold something else; the message names the fields, without their values.
    """
    try:
        values = json.loads(json_of(data))
    except ValueError as error:
        raise CorruptData(f"it is not JSON: {error}") from None
    version = values.get("version") if isinstance(values, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise CorruptData("it has no version")
    if version not in versions:
        many = "versions" if len(versions) > 1 else "version"
        raise CorruptData(
            f"it has version {version}, but this program reads {many} "
            f"{' and '.join(map(str, versions))}; use the release that started the {of}"
        )
    try:
        # From JSON, not from `values`: only there is text accepted as a state.
        return adapter.validate_json(json.dumps(values))
    except ValidationError as error:
        raise CorruptData(problems(error)) from None


def read_at_most(path: Path, limit: int) -> bytes:
    """Returns the bytes of a regular file, without waiting and without reading a large one.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptData: it has more than `limit` bytes, is no regular file, or cannot be read.
    """
    try:
        with opened_regular(path) as file:
            data = file.read(limit + 1)
    except NotRegularError:
        raise CorruptData(f"{inert_name(path.name)} is not a regular file") from None
    except FileNotFoundError:
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise CorruptData(f"{inert_name(path.name)} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise CorruptData(f"{inert_name(path.name)} has more than {limit:,} bytes")
    return data


def problems(error: ValidationError) -> str:
    """Returns the first problems as "field: what is expected", never with the values found.

    Values may be long, and change while the problem stays the same.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = [
        f"{inert_name(cut('.'.join(map(str, one['loc'])), 60))}: {one['msg']}"
        for one in found[:_NAMED_PROBLEMS]
    ]
    more = len(found) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")
