"""Min, max, mean and counts of values, and how those of several parts are combined."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# `count` values were finite, and `non_finite` were not. Without a finite one the rest is nan.
STATS = np.dtype(
    [("min", "<f8"), ("max", "<f8"), ("mean", "<f8"), ("count", "<u4"), ("non_finite", "<u4")]
)
Array = NDArray[np.void]


def joined(dtype: np.dtype[np.void], arrays: Iterable[Array]) -> Array:
    """Returns the arrays of this dtype one after the other; faster than numpy's way."""
    return np.frombuffer(b"".join(array.tobytes() for array in arrays), dtype)


def of_values(values: NDArray[np.float64]) -> Array:
    """Returns the statistics of each value by itself."""
    is_finite = np.isfinite(values)
    stats = np.empty(len(values), STATS)
    for name in ("min", "max", "mean"):
        stats[name] = np.where(is_finite, values, np.nan)
    stats["count"], stats["non_finite"] = is_finite, ~is_finite
    return stats


def combined(stats: Array, groups: NDArray[np.intp], num_groups: int) -> Array:
    """Returns the statistics of each group of parts.

    Args:
        stats: of the parts.
        groups: the group of each part, ascending.
        num_groups: also of groups without parts.
    """
    whole = np.full(num_groups, np.nan, np.float64)
    out = np.zeros(num_groups, STATS)
    for name in ("count", "non_finite"):
        out[name] = np.bincount(groups, stats[name], num_groups)
    for name in ("min", "max", "mean"):
        out[name] = whole
    has_value = stats["count"] > 0
    groups, stats = groups[has_value], stats[has_value]
    if not len(groups):
        return out
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    filled = groups[starts]
    low = np.minimum.reduceat(stats["min"], starts)
    high = np.maximum.reduceat(stats["max"], starts)
    # Weighted before they are summed: a sum of huge values would overflow.
    share = stats["count"] / out["count"][groups]
    mean = np.add.reduceat(stats["mean"] * share, starts)
    out["min"][filled], out["max"][filled] = low, high
    out["mean"][filled] = np.clip(mean, low, high)
    return out
