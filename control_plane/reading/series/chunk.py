"""A chunk of the index: what 1,024 lines of metrics.jsonl say, in leaves of 64 lines.

A key that stands in most lines is kept as statistics of each leaf. One that stands in at most
SPARSE lines of a leaf (a validation loss) is kept there as points, each with its own step, so that
it loses nothing. Two chunks can be merged into one with leaves of twice as many lines.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.reading.series.lines import Line
from control_plane.reading.series.stats import STATS, Array, combined, of_values

LEAF_LINES = 64
LEAVES = 16
CHUNK_LINES = LEAF_LINES * LEAVES
SPARSE = 8
MAX_KEYS = 512
MAX_KEY_LENGTH = 200

_X = [("tokens", "<f8"), ("seconds", "<f8"), ("time", "<f8")]
# A leaf's x axes are those of its last line; `non_finite_step` is -1 if all values were finite.
LEAF = np.dtype(
    [
        ("first_step", "<i8"),
        ("step", "<i8"),
        ("lines", "<i8"),
        ("end", "<i8"),
        ("non_finite_step", "<i8"),
        *_X,
    ]
)
POINT = np.dtype([("key", "<u4"), ("leaf", "<u4"), ("step", "<i8"), *_X, ("value", "<f8")])


@dataclass(frozen=True)
class Chunk:
    """What some consecutive lines say.

    Attributes:
        start: the offset of the first line; the last one ends where the last leaf does.
        checks: (offset, CRC-32 of the text up to there from the one before) of each 1,024 lines.
        keys: names, in the order in which they appeared.
        dense: indices into `keys` of the rows of `stats`.
        leaves: LEAVES of LEAF.
        stats: [len(dense), LEAVES] of STATS, without the values that are points.
        points: POINT, in the order of the lines.
        keys_left_out: keys that were too many or too long.
    """

    start: int
    checks: list[tuple[int, int]]
    keys: list[str]
    dense: list[int]
    leaves: Array
    stats: Array
    points: Array
    keys_left_out: int = 0

    @property
    def end(self) -> int:
        return self.checks[-1][0]

    def row(self, key: str) -> Array | None:
        """Returns the statistics of a key in each leaf; None if all its values are points."""
        if key not in self.keys or (index := self.keys.index(key)) not in self.dense:
            return None
        return np.asarray(self.stats[self.dense.index(index)])

    @property
    def leaf_lines(self) -> int:
        return int(self.leaves["lines"][0])


def chunk_of(lines: list[Line], start: int, check: int) -> Chunk:
    """Returns the chunk of CHUNK_LINES lines that begin at the offset `start`.

    Args:
        check: the CRC-32 of their text.
    """
    columns, left_out = _columns(lines)
    leaf_of_line = np.arange(len(lines)) // LEAF_LINES
    leaves = np.empty(LEAVES, LEAF)
    firsts, lasts = lines[::LEAF_LINES], lines[LEAF_LINES - 1 :: LEAF_LINES]
    leaves["first_step"] = [line.step for line in firsts]
    leaves["lines"], leaves["non_finite_step"] = LEAF_LINES, -1
    for name in ("step", "end", "tokens", "seconds", "time"):
        leaves[name] = [getattr(line, name) for line in lasts]
    keys, dense, rows, points = list(columns), [], [], []
    steps = np.array([line.step for line in lines])
    for index, (where, numbers) in enumerate(columns.values()):
        at, values = np.array(where), np.array(numbers)
        leaf = leaf_of_line[at]
        is_sparse = np.bincount(leaf, minlength=LEAVES) <= SPARSE
        row = combined(of_values(values), leaf, LEAVES)
        row[is_sparse] = _EMPTY[is_sparse]
        if not is_sparse.all():
            dense.append(index)
            rows.append(row)
        points.append(_points(lines, index, at[is_sparse[leaf]], values[is_sparse[leaf]]))
        for line in at[~np.isfinite(values)][::-1]:
            seen = leaves["non_finite_step"][line // LEAF_LINES]
            if seen < 0 or steps[line] < seen:
                leaves["non_finite_step"][line // LEAF_LINES] = steps[line]
    stats = np.array(rows, STATS).reshape(len(rows), LEAVES)
    all_points = np.concatenate([np.empty(0, POINT), *points])
    return Chunk(start, [(lines[-1].end, check)], keys, dense, leaves, stats, all_points, left_out)


def merged(first: Chunk, second: Chunk) -> Chunk:
    """Returns one chunk for two consecutive ones of equal size, with leaves of twice the lines."""
    all_keys = list(dict.fromkeys([*first.keys, *second.keys]))
    keys = all_keys[:MAX_KEYS]
    left_out = max(first.keys_left_out, second.keys_left_out, len(all_keys) - MAX_KEYS)
    number = {key: index for index, key in enumerate(keys)}
    pairs = np.arange(2 * LEAVES) // 2
    leaves = np.concatenate([first.leaves, second.leaves])
    larger = leaves[1::2].copy()
    larger["first_step"] = leaves["first_step"][::2]
    larger["lines"] += leaves["lines"][::2]
    bad = leaves["non_finite_step"].reshape(LEAVES, 2)
    larger["non_finite_step"] = np.where(bad[:, 0] >= 0, bad[:, 0], bad[:, 1])
    parts = []
    for chunk, shift in ((first, 0), (second, LEAVES)):
        part = chunk.points.copy()
        numbers = [number.get(key, MAX_KEYS) for key in chunk.keys]
        part["key"] = np.array(numbers, np.uint32)[part["key"]]
        part["leaf"] = (part["leaf"] + shift) // 2
        parts.append(part)
    points = np.concatenate(parts)
    dense, rows, kept = [], [], []
    for key, index in number.items():
        halves = [_EMPTY if row is None else row for row in (first.row(key), second.row(key))]
        row = combined(np.concatenate(halves), pairs, LEAVES)
        own = points[points["key"] == index]
        used = np.bincount(own["leaf"], minlength=LEAVES)
        # Points stay points unless there are many, or statistics beside them.
        joins = (used > SPARSE) | (row["count"] + row["non_finite"] > 0)
        joining = own[joins[own["leaf"]]]
        both = np.concatenate([row, of_values(joining["value"])])
        groups = np.concatenate([np.arange(LEAVES), joining["leaf"]]).astype(np.intp)
        order = np.argsort(groups, kind="stable")
        row = combined(both[order], groups[order], LEAVES)
        if joins.any():
            dense.append(index)
            rows.append(row)
        kept.append(own[~joins[own["leaf"]]])
    return Chunk(
        first.start,
        [*first.checks, *second.checks],
        keys,
        dense,
        larger,
        np.array(rows, STATS).reshape(len(rows), LEAVES),
        np.concatenate([np.empty(0, POINT), *kept]),
        left_out,
    )


_EMPTY = combined(np.empty(0, STATS), np.empty(0, np.intp), LEAVES)


def _columns(lines: list[Line]) -> tuple[dict[str, tuple[list[int], list[float]]], int]:
    """Returns the lines and values of each key, and how many keys were left out."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    left_out: set[str] = set()
    for index, line in enumerate(lines):
        for key, value in line.values.items():
            column = columns.get(key)
            if column is None:
                if len(columns) == MAX_KEYS or len(key) > MAX_KEY_LENGTH:
                    left_out.add(key)
                    continue
                column = columns[key] = ([], [])
            column[0].append(index)
            column[1].append(value)
    return columns, len(left_out)


def _points(
    lines: list[Line], key: int, at: NDArray[np.intp], values: NDArray[np.float64]
) -> Array:
    points = np.empty(len(at), POINT)
    points["key"], points["leaf"], points["value"] = key, at // LEAF_LINES, values
    for name in ("step", "tokens", "seconds", "time"):
        points[name] = [getattr(lines[index], name) for index in at]
    return points
