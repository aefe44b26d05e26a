"""Times two ways of doing the same work in turns, and takes the median of their ratios.

Machines are shared and noisy: a ratio within one run is reliable even if seconds are not.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Median seconds of each side, and the median of ours / baseline over the pairs."""

    ours_seconds: float
    baseline_seconds: float
    ratio: float
    pairs: int


def paired(ours: Callable[[], object], baseline: Callable[[], object], pairs: int = 7) -> Paired:
    """Returns the measurement over `pairs` pairs, after one warm-up pair."""
    times: list[tuple[float, float]] = []
    for turn in range(pairs + 1):
        one, other = seconds(ours), seconds(baseline)
        if turn > 0:
            times.append((one, other))
    return Paired(
        statistics.median(one for one, _ in times),
        statistics.median(other for _, other in times),
        statistics.median(one / other for one, other in times),
        pairs,
    )


def seconds(work: Callable[[], object]) -> float:
    """Returns the wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
