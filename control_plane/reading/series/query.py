"""Series for a chart: at most so many buckets of each key, over a range of steps.

A bucket covers consecutive lines; its numbers are exactly those of the lines from its first step to
its last. Few lines are read from the file one by one; of many, the leaves of the index are
combined, and only the leaves that the range cuts through are read.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from control_plane.reading.series.chunk import LEAF, LEAVES
from control_plane.reading.series.index import Indexed
from control_plane.reading.series.lines import Line, read_lines
from control_plane.reading.series.stats import STATS, Array, combined, joined, of_values
from lectern_common.files import opened_regular
from lectern_common.json_lines import MAX_COUNT

# So many lines for each bucket are read one by one.
LINES_A_BUCKET = 8
# Answers that are kept with what they were computed from; a bucket takes about 100 bytes.
MAX_ANSWERS_KEPT = 4
MAX_BUCKETS_KEPT = 10_000
_X = ("step", "tokens", "seconds", "time")
_STATS = ("min", "max", "mean", "count", "non_finite")
# `order` is the number of the leaf that it lies in.
BUCKET = np.dtype(
    [
        ("order", "<i8"),
        ("first_step", "<i8"),
        *((name, LEAF[name]) for name in _X),
        *((name, STATS[name]) for name in _STATS),
    ]
)


@dataclass(frozen=True)
class Steps:
    """The steps from `first` to `last`, both included."""

    first: int = 0
    last: int = MAX_COUNT


EVERY_STEP = Steps()


@dataclass(frozen=True)
class Answer:
    """Series by key, each an array of BUCKET, and what else the lines say.

    Attributes:
        series: in the order of the keys asked for.
        keys: every key ever logged, in the order of their first values.
        keys_left_out: how many keys were too many or too long to be indexed.
        last_step: of the file; None if it has no line.
        non_finite: (step, Unix time or None) of lines in the range with a value that was not
            finite; of the lines of a leaf only the first may be there.
    """

    series: dict[str, Array]
    keys: list[str]
    keys_left_out: int
    last_step: int | None
    non_finite: list[tuple[int, float | None]]


def series_of(
    indexed: Indexed,
    path: Path,
    wanted: Collection[str] | None = None,
    *,
    max_points: int,
    within: Steps = EVERY_STEP,
) -> Answer:
    """Returns the series of the wanted keys; one without values in the range is empty.

    What was asked last of the same moment of a file is not computed again.

    Args:
        indexed: what is known of the file at `path`.
        path: metrics.jsonl.
        wanted: keys; None means all.
        max_points: at most so many buckets a key.
        within: leaves out other steps.
    """
    asked = (None if wanted is None else tuple(wanted), max_points, within)
    answer = indexed.answers.get(asked)
    if answer is None:
        answer = _computed(indexed, path, wanted, max_points, within)
        if sum(map(len, answer.series.values())) <= MAX_BUCKETS_KEPT:
            kept = [*indexed.answers.items()][1 - MAX_ANSWERS_KEPT :]
            indexed.answers = {**dict(kept), asked: answer}
    return answer


def _computed(
    indexed: Indexed,
    path: Path,
    wanted: Collection[str] | None,
    max_points: int,
    within: Steps,
) -> Answer:
    selected = indexed.keys if wanted is None else list(dict.fromkeys(wanted))
    leaves = indexed.leaves
    overlaps = (leaves["step"] >= within.first) & (leaves["first_step"] <= within.last)
    is_whole = (leaves["first_step"] >= within.first) & (leaves["step"] <= within.last)
    few = leaves["lines"][overlaps].sum() <= LINES_A_BUCKET * max_points
    by_line = overlaps if few else overlaps & ~is_whole
    lines = [
        (leaf, line)
        for leaf, line in [*_lines(path, leaves, by_line), *_numbered(indexed.rest, len(leaves))]
        if within.first <= line.step <= within.last
    ]
    parts = _Parts(indexed, is_whole & ~by_line, lines)
    steps = [*leaves["step"][-1:].tolist(), *(line.step for line in indexed.rest[-1:])]
    return Answer(
        {key: bucketed(parts.of(key), max_points) for key in selected},
        indexed.keys,
        indexed.keys_left_out,
        steps[-1] if steps else None,
        parts.non_finite(),
    )


def extreme_leaves(
    indexed: Indexed, key: str, rare_key: str, *, num_groups: int, first_step: int = 0
) -> list[tuple[int, int]]:
    """Returns the text of some leaves, as (begin, end) in the file, in its order.

    The leaves from `first_step` on are divided into groups. Of each group those with the lowest and
    the highest value of `key` are chosen, and likewise of the points of `rare_key`; so is the first
    leaf of all.
    """
    leaves = indexed.leaves
    used = leaves["step"] >= first_step
    parts = _Parts(indexed, used, [])
    chosen = set(np.flatnonzero(used)[:1].tolist())
    for found in (parts.of(key), parts.of(rare_key)):
        has_value = found[found["count"] > 0]
        for group in np.array_split(has_value, num_groups) if len(has_value) else []:
            if len(group):
                low, high = group["min"].argmin(), group["max"].argmax()
                chosen |= {int(group["order"][low]), int(group["order"][high])}
    ends = [0, *leaves["end"].tolist()]
    return [(ends[leaf], ends[leaf + 1]) for leaf in sorted(chosen)]


def bucketed(parts: Array, max_points: int) -> Array:
    """Returns at most `max_points` buckets, of about equally many values each."""
    if len(parts) <= max_points:
        return parts
    weights = parts["count"].astype(np.int64) + parts["non_finite"]
    before = np.cumsum(weights) - weights
    _, groups = np.unique(before * max_points // weights.sum(), return_inverse=True)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    lasts = np.append(starts[1:], len(parts)) - 1
    out = parts[lasts].copy()
    out["first_step"] = parts["first_step"][starts]
    stats = combined(_stats_of(parts), groups, len(starts))
    for name in _STATS:
        out[name] = stats[name]
    buckets: Array = out
    return buckets


class _Parts:
    """The parts of each key in a range: leaves of the index, its points, and single lines."""

    def __init__(
        self, indexed: Indexed, used: NDArray[np.bool_], lines: Sequence[tuple[int, Line]]
    ) -> None:
        """Of the leaves, only the `used` ones count. Each line comes with the leaf it lies in."""
        self._chunks, self._leaves, self._used = indexed.chunks, indexed.leaves, used
        self._numbers = indexed.numbers
        self._points = indexed.points[used[indexed.points["leaf"]]]
        self._values = [line.values for _, line in lines]
        self._lines = np.zeros(len(lines), BUCKET)
        self._lines["order"] = [leaf for leaf, _ in lines]
        for name in _X:
            self._lines[name] = [getattr(line, name) for _, line in lines]
        self._lines["first_step"] = self._lines["step"]

    def of(self, key: str) -> Array:
        """Returns the parts that have values of the key, in the order of the file."""
        parts = joined(BUCKET, [self._of_leaves(key), self._of_points(key), self._of_lines(key)])
        in_order: Array = parts[np.argsort(parts["order"], kind="stable")]
        return in_order

    def non_finite(self) -> list[tuple[int, float | None]]:
        """Returns (step, time) of lines with a value that was not finite."""
        steps = self._leaves["non_finite_step"][self._used]
        found: list[tuple[int, float | None]] = [(int(step), None) for step in steps[steps >= 0]]
        for values, line in zip(self._values, self._lines, strict=True):
            if not np.isfinite(list(values.values())).all():
                time = float(line["time"])
                found.append((int(line["step"]), None if np.isnan(time) else time))
        return sorted(found, key=lambda mark: mark[0])

    def _of_leaves(self, key: str) -> Array:
        rows = [
            (number, row)
            for number, chunk in enumerate(self._chunks)
            if (row := chunk.row(key)) is not None
        ]
        stats = joined(STATS, [row for _, row in rows])
        first_leaves = LEAVES * np.array([number for number, _ in rows], np.intp)
        at = (first_leaves[:, None] + np.arange(LEAVES)).ravel()
        has = self._used[at] & (stats["count"] + stats["non_finite"] > 0)
        at, stats = at[has], stats[has]
        out = _with_stats(np.empty(len(at), BUCKET), stats)
        out["order"] = at
        for name in ("first_step", *_X):
            out[name] = self._leaves[name][at]
        return out

    def _of_points(self, key: str) -> Array:
        points = self._points[self._points["key"] == self._numbers.get(key, MAX_COUNT)]
        out = _with_stats(np.empty(len(points), BUCKET), of_values(points["value"]))
        out["order"], out["first_step"] = points["leaf"], points["step"]
        for name in _X:
            out[name] = points[name]
        return out

    def _of_lines(self, key: str) -> Array:
        at = [index for index, values in enumerate(self._values) if key in values]
        numbers = np.array([self._values[index][key] for index in at], np.float64)
        return _with_stats(self._lines[at], of_values(numbers))


def _lines(path: Path, leaves: Array, wanted: NDArray[np.bool_]) -> list[tuple[int, Line]]:
    """Returns the lines of the wanted leaves, each with the number of its leaf."""
    edges = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0))
    if not len(edges):
        return []
    ends = leaves["end"]
    found: list[tuple[int, Line]] = []
    with opened_regular(path) as file:
        for first, after in edges.reshape(-1, 2).tolist():
            start = int(ends[first - 1]) if first else 0
            lines = read_lines(file, start, end=int(ends[after - 1])).lines
            numbers = np.searchsorted(ends, [line.end for line in lines])
            found += zip(numbers.tolist(), lines, strict=True)
    return found


def _numbered(lines: Sequence[Line], leaf: int) -> list[tuple[int, Line]]:
    return [(leaf, line) for line in lines]


def _stats_of(parts: Array) -> Array:
    stats = np.empty(len(parts), STATS)
    for name in _STATS:
        stats[name] = parts[name]
    return stats


def _with_stats(parts: Array, stats: Array) -> Array:
    for name in _STATS:
        parts[name] = stats[name]
    return parts
