"""Finds out which batch shapes give bit-equal results to single sequences.

This depends on the device and the exact shape, which decide the matrix kernels, so it is not
assumed: a new shape is computed both ways, and trusted only after it came out equal every time.
Such trials work only in float32, where a different kernel shows in almost every value; rounding to
16 bits hides most differences, and they would surface later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from teacher_server.engine.seam import ComputedRows

# How often a shape must come out equal, each time with other tokens.
_TRIALS = 2

Shape = tuple[int, int]  # sequences, tokens of each


class EqualShapes:
    """Remembers which shapes came out equal. `never`: trials prove nothing for this model."""

    def __init__(self, never: bool = False) -> None:
        self._never = never
        self._equal_trials: dict[Shape, int] = {}  # -1: came out different once

    def known(self, shape: Shape) -> bool | None:
        """Returns whether the shape may be computed together; None means that a trial is due."""
        if self._never:
            return False
        trials = self._equal_trials.get(shape, 0)
        if trials < 0:
            return False
        return True if trials >= _TRIALS else None

    def tried(
        self, shape: Shape, alone: Sequence[ComputedRows], together: Sequence[ComputedRows]
    ) -> None:
        """Records the outcome of one trial."""
        equal = all(
            np.array_equal(np.frombuffer(one.payload, "u1"), np.frombuffer(other.payload, "u1"))
            for one, other in zip(alone, together, strict=True)
        )
        self._equal_trials[shape] = self._equal_trials.get(shape, 0) + 1 if equal else -1


def trials_tell(model: PreTrainedModel) -> bool:
    """Returns whether a shape that came out equal will do so again with any tokens.

    Not in 16 bits, and not in a mixture of experts: there neighbours share matrix products, whose
    shapes depend on the tokens.
    """
    return model.dtype == torch.float32 and not _names_experts(model.config.to_dict())


def _names_experts(config: Mapping[Any, Any]) -> bool:
    return any(
        _names_experts(value)
        if isinstance(value, Mapping)
        else "expert" in str(name) and isinstance(value, int) and value > 1
        for name, value in config.items()
    )
