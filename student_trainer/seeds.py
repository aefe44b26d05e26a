"""What a run draws at random, each under a key of its own, so that no two draws are the same bits.

A draw is a pure function of its key and of the numbers it is for, such as (seed, step). The keys
are the spawn keys of numpy's SeedSequence: with another one, every run would see other numbers.
"""

from enum import Enum

import numpy as np
import numpy.typing as npt


class Key(Enum):
    """What is drawn, and from which numbers."""

    ORDER = ()
    """The order of an epoch's rows: (seed, epoch)."""
    SYNTHETIC = (1,)
    """A row of synthetic tokens: (seed, index)."""
    DROPOUT = (2,)
    """The dropout of a step: (seed, step), and the rank above 0."""
    DRAWS = (3,)
    """The seed of the draws that a teacher makes for a step: (seed, step)."""
    ROW_HASH = (4,)
    """The factors of the rows' hash: (0,), the same in every run."""


def raw_bits(key: Key, numbers: tuple[int, ...], count: int) -> npt.NDArray[np.uint64]:
    """Returns `count` random 64-bit words, the same in every numpy release.

    Raw Philox output is stable by numpy's policy (NEP 19); what Generator makes of it is not.
    """
    return np.asarray(np.random.Philox(_sequence(key, numbers)).random_raw(count), np.uint64)


def derived_seed(key: Key, numbers: tuple[int, ...]) -> int:
    """Returns a seed below 2^64 for another generator."""
    return int(_sequence(key, numbers).generate_state(1, np.uint64)[0])


def _sequence(key: Key, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(numbers, spawn_key=key.value)
