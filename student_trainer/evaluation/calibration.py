"""Expected calibration error: how far confidence is from being right (Guo et al., 2017, eq. 5).

    sum over bins b of n_b / n * |share right in b - mean confidence in b|

with bins (b / C, (b + 1) / C], b = 0 .. C - 1, over the probability of the likeliest token.

Legend: n positions, C bins.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

BINS = 15


def binned(bins: int, confidence_n: Tensor, *values_n: Tensor) -> list[npt.NDArray[np.float64]]:
    """Returns the sums of the confidence, and of each of the values, in each bin; [C] each."""
    confidence = confidence_n.double().cpu().numpy()
    bin_n = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    columns = [confidence, *(value.double().cpu().numpy() for value in values_n)]
    return [
        np.asarray(np.bincount(bin_n, column, minlength=bins), np.float64) for column in columns
    ]


def calibration_error(
    confidence: Sequence[float], right: Sequence[float], positions: float
) -> float:
    """Returns the error from the sums of each bin."""
    gaps = (abs(a - b) for a, b in zip(right, confidence, strict=True))
    return math.fsum(gaps) / positions


class Calibration:
    """Adds up positions, in which the student's likeliest token is right if it is the teacher's."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, BINS))

    def add(self, confidence_n: Tensor, right_n: Tensor) -> None:
        """Adds positions: the probability of the likeliest token, and whether it is right."""
        self._sums += np.stack(binned(BINS, confidence_n, right_n))

    def take(self) -> list[float]:
        """Returns the sums, which add up over ranks, and begins anew."""
        taken, self._sums = self._sums, np.zeros((2, BINS))
        values: list[Any] = taken.flatten().tolist()
        return values
