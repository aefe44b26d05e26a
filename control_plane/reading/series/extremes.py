"""The last and the best value of one metric, with their steps, found through the index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from control_plane.reading.series.index import Indexed
from control_plane.reading.series.query import EVERY_STEP, Steps, series_of
from control_plane.reading.series.stats import Array

_POINTS = 64
_Pick = Literal["last", "min", "max"]


@dataclass(frozen=True)
class Extremes:
    """What a run has logged of one metric.

    Attributes:
        last: its last value; None if that was not finite.
        last_step: the step of it.
        best: its lowest or highest finite value; None without one.
        best_step: the first step that had it.
    """

    last: float | None
    last_step: int
    best: float | None
    best_step: int | None


def extremes_of(indexed: Indexed, path: Path, key: str, *, lowest: bool) -> Extremes | None:
    """Returns the last and the best value of a key; None if it was never logged.

    As in early stopping, a value that only equals the best so far is not better, and one that is
    not finite never is.

    Args:
        indexed: what is known of the file at `path`.
        path: metrics.jsonl.
        key: the metric.
        lowest: whether the lowest value is best, or the highest.

    Raises:
        OSError: the file cannot be read.
    """
    whole = series_of(indexed, path, [key], max_points=_POINTS).series[key]
    if not len(whole):
        return None
    last = _narrowed(indexed, path, key, whole, "last")
    best: float | None = None
    best_step: int | None = None
    if (whole["count"] > 0).any():
        side: _Pick = "min" if lowest else "max"
        found = _narrowed(indexed, path, key, whole, side)
        best, best_step = float(found[side]), int(found["step"])
    is_finite = int(last["count"]) > 0
    return Extremes(float(last["mean"]) if is_finite else None, int(last["step"]), best, best_step)


def _narrowed(indexed: Indexed, path: Path, key: str, buckets: Array, pick: _Pick) -> np.void:
    """Returns the bucket of the one value that `pick` leads to.

    Each turn looks into the bucket that was picked. If lines repeat a step, a bucket of several
    values may be left.
    """
    within = EVERY_STEP
    while True:
        picked: np.void = buckets[_place(buckets, pick)]
        inside = Steps(int(picked["first_step"]), int(picked["step"]))
        if int(picked["count"]) + int(picked["non_finite"]) == 1 or inside == within:
            return picked
        within = inside
        answer = series_of(indexed, path, [key], max_points=_POINTS, within=within)
        buckets = answer.series[key]
        if not len(buckets):  # the run went back to a checkpoint meanwhile
            return picked


def _place(buckets: Array, pick: _Pick) -> int:
    """Returns the index of the last bucket, or of the first with the lowest or highest value."""
    if pick == "last":
        return len(buckets) - 1
    values = np.where(buckets["count"] > 0, buckets[pick], np.inf if pick == "min" else -np.inf)
    return int(values.argmin() if pick == "min" else values.argmax())
