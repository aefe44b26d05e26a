"""Metric records for a chart: from a position on, filtered by key, thinned if there are many."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.reading.series.index import Indexed
from control_plane.reading.series.query import extreme_leaves
from lectern_common.files import opened_regular
from lectern_common.json_lines import Position, Record, read_after, records_between

# Of more bytes than this, only what the index names is read to thin them.
INDEXED_FROM_BYTES = 8 << 20


@dataclass(frozen=True)
class Answer:
    """Records of a file: all there are now, a thinned selection, or the first of many."""

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
        keys: only these keys, of records that have any; empty means all keys and records.
        max_points: thin the records to about this many; None returns the first `max_records`.
    """
    thinner = None if max_points is None else Thinner(max_points)
    records: list[Record] = []
    position, rewound = start, False
    while True:
        new = read_after(path, position)
        if new.rewound and position is not start:
            # The file was truncated between two reads: what was read is void.
            return read_many(
                path,
                start,
                first_step=first_step,
                keys=keys,
                max_records=max_records,
                max_points=max_points,
            )
        rewound = rewound or new.rewound
        for record, end in new.records:
            if record["step"] < first_step or (keys and keys.isdisjoint(record)):
                continue
            record = _picked(record, keys)
            if thinner is not None:
                thinner.add(record)
                continue
            records.append(record)
            if len(records) == max_records:
                return Answer(records, end, rewound, more=True)
        position = new.end
        if not new.more:
            return Answer(thinner.records() if thinner else records, position, rewound, more=False)


def is_long(path: Path, start: Position) -> bool:
    """Returns whether so much follows `start` that the index is faster than reading it."""
    try:
        return path.stat().st_size - start.offset > INDEXED_FROM_BYTES
    except FileNotFoundError:
        return False


def read_thinned(
    indexed: Indexed, path: Path, *, first_step: int, keys: frozenset[str], max_points: int
) -> Answer:
    """Returns about `max_points` of all records, as `read_many` does, but reads few of them.

    The records come from the 64 lines around the lows and highs of the training and the validation
    loss, as far as the index tells them.
    """
    key = "loss/total"
    if keys and key not in keys:
        key = min(keys - {"loss/val"}, default="loss/val")
    thinner = Thinner(max_points)
    groups = max(1, max_points // 8)
    texts = extreme_leaves(indexed, key, "loss/val", num_groups=groups, first_step=first_step)
    begin_of_rest = indexed.chunks[-1].end if indexed.chunks else 0
    try:
        with opened_regular(path) as file:
            for begin, end in [*texts, (begin_of_rest, indexed.position.offset)]:
                for record in records_between(file, begin, end):
                    if record["step"] >= first_step and not (keys and keys.isdisjoint(record)):
                        thinner.add(_picked(record, keys))
    except FileNotFoundError:  # removed meanwhile
        return Answer([], Position(), rewound=False, more=False)
    return Answer(thinner.records(), indexed.position, rewound=False, more=False)


class Thinner:
    """Keeps at most `max_points` records spread over a stream: first, last, lows and highs.

    The stream is cut into buckets of equal size; each keeps the records with the lowest and the
    highest training loss, so that a spike is seen at any thinning. Records with a validation loss
    are rare and valuable, so they are thinned separately.
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
        if _number(record.get("loss/val")) is not None:
            self._validation.add(entry, _number(record["loss/val"]))
        else:
            self._training.add(entry, _training_loss(record))

    def records(self) -> list[Record]:
        kept = dict([*self._training.entries(), *self._validation.entries(), *self._ends])
        return [kept[index] for index in sorted(kept)]


class _Buckets:
    """The lowest and highest entry of each bucket; at most `limit` buckets of equal size."""

    def __init__(self, limit: int) -> None:
        self._limit = max(2, limit // 2 * 2)
        self._width = 1
        self._filled = 0
        self._buckets: list[tuple[_Keyed, _Keyed]] = []

    def add(self, entry: tuple[int, Record], value: float | None) -> None:
        keyed = (float("inf") if value is None else value, entry)
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
    """Returns the value to thin by: the record's total loss, else its first number."""
    numbers = (_number(value) for key, value in record.items() if key != "step")
    first = next((value for value in numbers if value is not None), None)
    return _number(record["loss/total"]) if "loss/total" in record else first


def _number(value: Any) -> float | None:
    """Returns a value of a record as a float; None if it is none that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _picked(record: Record, keys: Collection[str]) -> Record:
    if not keys:
        return record
    return {key: value for key, value in record.items() if key == "step" or key in keys}
