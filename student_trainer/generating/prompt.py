"""What is to be continued."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue; `uniforms(n)` returns the n numbers in [0, 1) that choose its tokens.

    `uniforms` may be None only when greedy.
    """

    ids: Sequence[int]
    uniforms: Callable[[int], npt.NDArray[np.float64]] | None = None
