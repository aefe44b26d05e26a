"""What is continued: token ids, and the numbers that choose what follows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue.

    Attributes:
        ids: at least one.
        uniforms: uniforms(n) returns n numbers in [0, 1), float64: number i chooses token i of the
            text. None only if the likeliest id is taken each time.
    """

    ids: Sequence[int]
    uniforms: Callable[[int], npt.NDArray[np.float64]] | None = None
