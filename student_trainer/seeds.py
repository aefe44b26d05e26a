"""Everything a run draws at random, each under its own key, so that no two share bits.

A draw is a pure function of its key and its numbers, such as (seed, step). The keys are spawn keys
of numpy's SeedSequence: changing one would change what every run draws.
"""

from enum import Enum

import numpy as np
import numpy.typing as npt


class Key(Enum):
    """What is drawn: (the numbers it is a function of)."""

    ORDER = 0
    """The order of an epoch's rows: (seed, epoch)."""
    SYNTHETIC = 1
    """A row of synthetic tokens: (seed, index)."""
    DROPOUT = 2
    """The dropout of a step: (seed, step), and the rank if it is not 0."""
    DRAWS = 3
    """The seed of the teacher's draws for a step: (seed, step)."""
    ROW_HASH = 4
    """The factors of the row hash: (0,), the same in every run."""
    ANSWERS = 5
    """The tokens of a sampled answer: (seed, hash of the problem's name, sample)."""
    ROLLOUTS = 6
    """The tokens of a rollout: (seed, step, row, sample)."""
    WRITTEN = 7
    """Which rows of a step the student writes: (seed, step)."""
    PROMPT_ORDER = 8
    """The order of an epoch's prompts: (seed, epoch)."""
    # 9 is kept for texts of one's own.
    SOURCES = 9
    """Of which source the rows of a block of steps are: (seed, block)."""
    SOURCE_ORDER = 10
    """The order of a source's rows in one of its epochs: (seed, source, epoch)."""


def raw_bits(key: Key, numbers: tuple[int, ...], count: int) -> npt.NDArray[np.uint64]:
    """Returns `count` random 64-bit words, the same in every numpy release.

    Raw Philox output is stable by numpy's policy (NEP 19); what Generator derives from it is not.
    """
    return np.asarray(np.random.Philox(_sequence(key, numbers)).random_raw(count), np.uint64)


def uniforms(key: Key, numbers: tuple[int, ...], count: int) -> npt.NDArray[np.float64]:
    """Returns `count` numbers in [0, 1), the first of them the same for any count."""
    return np.asarray((raw_bits(key, numbers, count) >> np.uint64(11)) * 2.0**-53)


def derived_seed(key: Key, numbers: tuple[int, ...]) -> int:
    """Returns a seed below 2^64 for another generator."""
    return int(_sequence(key, numbers).generate_state(1, np.uint64)[0])


def _sequence(key: Key, numbers: tuple[int, ...]) -> np.random.SeedSequence:
    # The keys' values are not tuples: Python 3.11.2 makes a bare object of the value `()`.
    spawn_key = () if key is Key.ORDER else (key.value,)
    return np.random.SeedSequence(numbers, spawn_key=spawn_key)
