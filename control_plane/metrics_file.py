"""metrics.jsonl, read while it grows: from a position on, thinned for a chart, and rewound.

A resume cuts the file back to its checkpoint and writes on. So a position carries the checksum of
the line before it: where that is not there any more, the reader begins again and says so.
"""

import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lectern_common.errors import InvalidRequest

MAX_READ_BYTES = 1 << 20
MAX_LINE_BYTES = 64 * 1024
Record = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """After a complete line: its end, and the CRC-32 of its last MAX_LINE_BYTES (at 0: 0)."""

    offset: int = 0
    check: int = 0

    def __str__(self) -> str:
        return f"{self.offset}.{self.check:08x}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises InvalidRequest where `text` is none."""
        offset, _, check = text.partition(".")
        if not (offset.isascii() and offset.isdigit()) or len(offset) > 18 or len(check) != 8:
            raise InvalidRequest(f"{text[:40]!r} is not a position in metrics", field="cursor")
        try:
            return cls(int(offset), int(check, 16))
        except ValueError:
            raise InvalidRequest(f"{text[:40]!r} is not a position in metrics", "cursor") from None


@dataclass(frozen=True)
class Batch:
    """Complete lines from a position on.

    Attributes:
        records: each with the position after it.
        end: the position after the last of them, or the one that was read from.
        rewound: the position was not in the file any more; the records begin at its start.
        more: further lines can be read at once.
    """

    records: list[tuple[Record, Position]]
    end: Position
    rewound: bool
    more: bool


def read_after(path: Path, position: Position, max_bytes: int = MAX_READ_BYTES) -> Batch:
    """Returns the next records, up to about `max_bytes` of them. No file has no records."""
    try:
        with path.open("rb") as file:
            rewound = not _holds(file, position)
            start = Position() if rewound else position
            file.seek(start.offset)
            data = file.read(max_bytes)
            more = len(data) == max_bytes
    except FileNotFoundError:
        return Batch([], Position(), rewound=position.offset > 0, more=False)
    complete = data[: data.rfind(b"\n") + 1]
    records: list[tuple[Record, Position]] = []
    end = start
    for line in complete.splitlines(keepends=True):
        end = Position(end.offset + len(line), zlib.crc32(line[-MAX_LINE_BYTES:]))
        record = _record(line)
        if record is not None:
            records.append((record, end))
    return Batch(records, end, rewound, more and bool(complete))


@dataclass(frozen=True)
class Answer:
    """Some records of a file: all there are now, thinned ones, or the first of many."""

    records: list[Record]
    end: Position
    rewound: bool
    more: bool


def read_many(
    path: Path,
    start: Position,
    *,
    first_step: int = 0,
    keys: frozenset[str] = frozenset(),
    max_records: int,
    max_points: int | None = None,
) -> Answer:
    """Returns the records of `first_step` and later that follow `start`.

    Args:
        keys: only these of each record, and only records that have one; none: all there is.
        max_points: thin all of them to about so many; None returns the first `max_records`.
    """
    thinner = None if max_points is None else Thinner(max_points)
    records: list[Record] = []
    position, rewound = start, False
    while True:
        batch = read_after(path, position)
        if batch.rewound and position is not start:
            # Cut back between two reads: what was read is void.
            return read_many(
                path,
                start,
                first_step=first_step,
                keys=keys,
                max_records=max_records,
                max_points=max_points,
            )
        rewound = rewound or batch.rewound
        for record, end in batch.records:
            if record["step"] < first_step or (keys and keys.isdisjoint(record)):
                continue
            record = _picked(record, keys)
            if thinner is not None:
                thinner.add(record)
                continue
            records.append(record)
            if len(records) == max_records:
                return Answer(records, end, rewound, more=True)
        position = batch.end
        if not batch.more:
            return Answer(thinner.records() if thinner else records, position, rewound, more=False)


class Thinner:
    """Keeps at most `max_points` records of a stream, spread over it: first, last, lows and highs.

    The stream is cut into equal runs of records; of each, those with the lowest and the highest
    training loss stay, so that a spike is seen at any thinning. Records with a validation loss are
    rare and dear; they are thinned among themselves.
    """

    def __init__(self, max_points: int) -> None:
        self._training = _Buckets(max(1, max_points * 3 // 8))
        self._validation = _Buckets(max(1, max_points // 8))
        self._count = 0
        self._ends: list[tuple[int, Record]] = []

    def add(self, record: Record) -> None:
        entry = (self._count, record)
        self._ends = [entry] if not self._ends else [self._ends[0], entry]
        self._count += 1
        if record.get("loss/val") is not None:
            self._validation.add(entry, record["loss/val"])
        else:
            self._training.add(entry, _training_loss(record))

    def records(self) -> list[Record]:
        kept = dict([*self._training.entries(), *self._validation.entries(), *self._ends])
        return [kept[index] for index in sorted(kept)]


class _Buckets:
    """Lowest and highest entry of each of at most `limit` equal runs of entries."""

    def __init__(self, limit: int) -> None:
        self._limit = max(2, limit // 2 * 2)
        self._width = 1
        self._filled = 0
        self._buckets: list[tuple[_Keyed, _Keyed]] = []

    def add(self, entry: tuple[int, Record], value: float | None) -> None:
        keyed = (float("inf") if value is None else float(value), entry)
        if self._buckets and self._filled < self._width:
            self._buckets[-1] = _joined(self._buckets[-1], (keyed, keyed))
            self._filled += 1
            return
        if len(self._buckets) == self._limit:
            pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
            self._buckets = [_joined(first, second) for first, second in pairs]
            self._width *= 2
            self._filled = self._width
            self.add(entry, value)
            return
        self._buckets.append((keyed, keyed))
        self._filled = 1

    def entries(self) -> Iterator[tuple[int, Record]]:
        for low, high in self._buckets:
            yield low[1]
            yield high[1]


_Keyed = tuple[float, tuple[int, Record]]


def _joined(first: tuple[_Keyed, _Keyed], second: tuple[_Keyed, _Keyed]) -> tuple[_Keyed, _Keyed]:
    low = min(first[0], second[0], key=_value)
    return low, max(first[1], second[1], key=_value)


def _value(keyed: _Keyed) -> float:
    return keyed[0]


def _training_loss(record: Record) -> float | None:
    """Returns what a record is thinned by: the total loss, else the first number it has."""
    numbers = (value for key, value in record.items() if key != "step")
    first = next((value for value in numbers if isinstance(value, int | float)), None)
    return record.get("loss/total", first)


def _picked(record: Record, keys: Collection[str]) -> Record:
    if not keys:
        return record
    return {key: value for key, value in record.items() if key == "step" or key in keys}


def _holds(file: BinaryIO, position: Position) -> bool:
    """Returns True where the line that ends at the position is the one it was taken after."""
    if position.offset == 0:
        return True
    start = max(0, position.offset - MAX_LINE_BYTES)
    file.seek(start)
    before = file.read(position.offset - start)
    if len(before) < position.offset - start or not before.endswith(b"\n"):
        return False
    line = before[before.rfind(b"\n", 0, -1) + 1 :]
    return zlib.crc32(line) == position.check


def _record(line: bytes) -> Record | None:
    """Returns a line's object, or None for one that is no object with a step."""
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
