"""Files with one JSON object per line, such as metrics.jsonl, appended to while being read.

A line counts once it ends with a newline; a last line without one is still being written, or its
writer was killed. A float that is not finite is written as null, with its key in "non_finite".

A trainer that resumes truncates its files to its checkpoint and continues. So a reader's position
holds the checksum of the line before it; if that line is gone, the reader starts over and reports
it.

What is no regular file, such as a pipe or a folder in its place, is read as a missing file.
"""

import json
import math
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lectern_common.errors import InvalidRequest
from lectern_common.files import NotRegularError, end_of, opened_regular
from lectern_common.logs import get_logger

MAX_READ_BYTES = 1 << 20
MAX_LINE_BYTES = 64 * 1024
MAX_COUNT = 2**53  # beyond it a browser's numbers are no longer exact
# json makes an infinity of a number such as 1e999; only lines that may hold one are read slowly:
# those with an exponent of three digits, or with so many digits that one of two is enough.
_MAY_OVERFLOW = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{200}")
Record = dict[str, Any]

_log = get_logger()


def finite_record(record: Record) -> Record:
    """Returns the record with null for values that are not finite, and their keys listed."""
    broken = [
        key
        for key, value in record.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    return {**record, **dict.fromkeys(broken), "non_finite": broken} if broken else record


def append_json_line(path: Path, record: Record) -> None:
    """Appends the `finite_record` of this record as one JSON line, in a single write if it fits.

    Raises:
        OSError: no space for the whole line; no part of it remains.
    """
    line = json.dumps(finite_record(record), allow_nan=False).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        written = file.write(line)
        # A disk that fills up accepts a part without an error; the next write raises it.
        while written < len(line):
            try:
                written += file.write(line[written:])
            except OSError:
                # Otherwise the next record would continue this line.
                file.truncate(file.tell() - written)
                raise


def read_json_lines(path: Path) -> list[Record]:
    """Returns every complete line; a missing file has none. Raises ValueError if one is broken."""
    try:
        with opened_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in _complete(data)]


def last_json_lines(path: Path, at_most_bytes: int) -> list[Any]:
    """Returns the values of the last complete lines, except null and invalid JSON."""
    data, is_cut = end_of(path, at_most_bytes)
    lines = _complete(data)
    # If the file was cut, its first line lacks its start.
    values = (_value(line) for line in (lines[1:] if is_cut else lines))
    return [value for value in values if value is not None]


def lines_before(path: Path, offset: int | None, at_most_bytes: int) -> tuple[list[Any], bool]:
    """Returns the values of the last complete lines before an offset, and whether there are more.

    Null and invalid JSON are left out.

    Args:
        path: a missing file has no lines.
        offset: the end of a line; None means the end of the file.
        at_most_bytes: how much of the file is read.
    """
    try:
        with opened_regular(path) as file:
            end = file.seek(0, os.SEEK_END) if offset is None else offset
            start = max(0, end - at_most_bytes)
            file.seek(start)
            lines = _complete(file.read(end - start))
    except FileNotFoundError:
        return [], False
    # If something is before them, the first line lacks its start.
    values = map(_value, lines[1:] if start else lines)
    return [value for value in values if value is not None], start > 0


def keep_lines_before(path: Path, step: int) -> None:
    """Cuts off the lines of `step` and later steps, and an incomplete last line.

    The file is cut in place, at once, without reading or copying what stays: its lines are in the
    order of their steps.

    Raises:
        OSError: the file cannot be cut; it is unchanged.
    """
    try:
        file = opened_regular(path, writes=True)
    except NotRegularError:
        raise OSError(f"{path} is not a regular file") from None
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        cut = _first_line_of(file, step)
        if cut < end:
            file.truncate(cut)
            os.fsync(file.fileno())


def position_of(path: Path, step: int) -> "Position":
    """Returns the position before the first line of `step` or a later one, or at the end.

    A missing file has only its start.
    """
    try:
        with opened_regular(path) as file:
            return position_at(file, _first_line_of(file, step))
    except FileNotFoundError:
        return Position()


@dataclass(frozen=True)
class Position:
    """The end of a complete line, and the CRC-32 of its last MAX_LINE_BYTES (0 at offset 0)."""

    offset: int = 0
    check: int = 0

    def __str__(self) -> str:
        return f"{self.offset}.{self.check:08x}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Returns the position that `str` wrote. Raises InvalidRequest if it is not one."""
        offset, _, check = text.partition(".")
        if not (offset.isascii() and offset.isdigit()) or len(offset) > 18 or len(check) != 8:
            raise InvalidRequest(f"{text[:40]!r} is not a position in metrics", field="cursor")
        try:
            return cls(int(offset), int(check, 16))
        except ValueError:
            raise InvalidRequest(f"{text[:40]!r} is not a position in metrics", "cursor") from None


@dataclass(frozen=True)
class NewRecords:
    """Complete lines after a position.

    Attributes:
        records: each with the position after it; lines that are not objects with a step, or that
            are too long, are skipped.
        end: the position after the last line, or the one that was read from.
        rewound: the file no longer had the position; the records start at the file's start.
        more: further lines can be read immediately.
    """

    records: list[tuple[Record, Position]]
    end: Position
    rewound: bool
    more: bool


def read_after(path: Path, position: Position, max_bytes: int = MAX_READ_BYTES) -> NewRecords:
    """Returns the next records, up to about `max_bytes` of them. A missing file has none.

    A complete line longer than `max_bytes` is passed over, which the log says.
    """
    try:
        with opened_regular(path) as file:
            rewound = not _holds(file, position)
            start = Position() if rewound else position
            file.seek(start.offset)
            data = file.read(max_bytes)
            more = len(data) == max_bytes
            if more and b"\n" not in data:
                return _past_long_line(path, file, start, data, rewound=rewound)
    except FileNotFoundError:
        return NewRecords([], Position(), rewound=position.offset > 0, more=False)
    lines = _complete(data)
    records: list[tuple[Record, Position]] = []
    end = start
    for line in lines:
        end = Position(end.offset + len(line), zlib.crc32(line[-MAX_LINE_BYTES:]))
        record = _value(line)
        if step_of(record) is not None:
            records.append((record, end))
    return NewRecords(records, end, rewound, more)


def _past_long_line(
    path: Path, file: BinaryIO, start: Position, begin: bytes, *, rewound: bool
) -> NewRecords:
    """Returns no records, and the end of the line that begins at `start`; `start` if it has none.

    Args:
        path: only for the log.
        file: after `begin`.
        begin: the part of the line that has been read.
    """
    offset, last = start.offset + len(begin), begin
    while block := file.read(MAX_READ_BYTES):
        part = block[: block.find(b"\n") + 1] or block
        offset, last = offset + len(part), (last + part)[-MAX_LINE_BYTES:]
        if part.endswith(b"\n"):
            num_bytes = offset - start.offset
            _log.warning("line too long", path=str(path), offset=start.offset, bytes=num_bytes)
            return NewRecords([], Position(offset, zlib.crc32(last)), rewound, more=True)
    return NewRecords([], start, rewound, more=False)


def position_at(file: BinaryIO, offset: int) -> Position:
    """Returns the position at an offset, which must be the end of a line or 0."""
    start = max(0, offset - MAX_LINE_BYTES)
    file.seek(start)
    before = file.read(offset - start)
    line = before[before.rfind(b"\n", 0, -1) + 1 :]
    return Position(offset, zlib.crc32(line))


def records_between(file: BinaryIO, start: int, end: int) -> list[Record]:
    """Returns the records of the complete lines from one offset of the file to another."""
    file.seek(start)
    values = [_value(line) for line in _complete(file.read(end - start))]
    return [value for value in values if step_of(value) is not None]


def _holds(file: BinaryIO, position: Position) -> bool:
    """Returns True if the line that ends at the position is the one it was taken after."""
    if position.offset == 0:
        return True
    start = max(0, position.offset - MAX_LINE_BYTES)
    file.seek(start)
    before = file.read(position.offset - start)
    if len(before) < position.offset - start or not before.endswith(b"\n"):
        return False
    line = before[before.rfind(b"\n", 0, -1) + 1 :]
    return zlib.crc32(line) == position.check


def _first_line_of(file: BinaryIO, step: int) -> int:
    """Returns where the first complete line of `step` or later begins, else where the last ends.

    Bisects the file: lines are in the order of their steps, and one that has no step counts to the
    line after it.
    """
    low, high = 0, _end_of_lines(file)  # every line before `low` stays; `high` begins one or ends
    while low < high:
        middle = _line_begin(file, low, (low + high) // 2)
        offset, found = middle, None
        while found is None and offset < high:
            file.seek(offset)
            line = file.readline()
            offset += len(line)
            found = step_of(_value(line))
        if found is not None and found < step:
            low = offset
        else:
            high = middle
    return low


def step_of(record: Any) -> int | None:
    """Returns the step of a record; None if it is not an object with one."""
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        return None
    return step if 0 <= step < MAX_COUNT else None


def _line_begin(file: BinaryIO, first: int, offset: int) -> int:
    """Returns the begin of the line that holds the byte at `offset`; a line begins at `first`."""
    while offset > first:
        start = max(first, offset - MAX_LINE_BYTES)
        file.seek(start)
        newline = file.read(offset - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        offset = start
    return first


def _end_of_lines(file: BinaryIO) -> int:
    """Returns the end of the last complete line."""
    return _line_begin(file, 0, file.seek(0, os.SEEK_END))


def _complete(data: bytes) -> list[bytes]:
    """Returns the lines that end with a newline, including it."""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _value(line: bytes) -> Any:
    """Returns a line's value, with None for NaN and infinities; None if it is not JSON."""
    try:
        if _MAY_OVERFLOW.search(line):
            return json.loads(line, parse_constant=lambda _: None, parse_float=_finite)
        return json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
