"""Whether sequences of one length, computed together, come out as each would alone, to the bit.

It depends on the device and the very shape (which matrix kernels are taken), so it is not assumed:
a shape is computed both ways when it first occurs, and taken on trust only after it came out equal
each time. That tells for float32 alone, where other kernels show in almost every value; rounded to
16 bits most differences are hidden, and would come out later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from teacher_server.engine.seam import ComputedRows

# Times that a shape must come out equal, each with other tokens.
_TRIALS = 2

Shape = tuple[int, int]  # sequences, tokens of each


class EqualShapes:
    """What is known of each shape. `never`: for models of which trials do not tell."""

    def __init__(self, never: bool = False) -> None:
        self._never = never
        self._equal_trials: dict[Shape, int] = {}  # -1: came out different once

    def known(self, shape: Shape) -> bool | None:
        """Returns whether the shape is computed together; None where it is still to be tried."""
        if self._never:
            return False
        trials = self._equal_trials.get(shape, 0)
        if trials < 0:
            return False
        return True if trials >= _TRIALS else None

    def tried(
        self, shape: Shape, alone: Sequence[ComputedRows], together: Sequence[ComputedRows]
    ) -> None:
        """Takes the outcome of one trial."""
        equal = all(
            np.array_equal(np.frombuffer(one.payload, "u1"), np.frombuffer(other.payload, "u1"))
            for one, other in zip(alone, together, strict=True)
        )
        self._equal_trials[shape] = self._equal_trials.get(shape, 0) + 1 if equal else -1


def trials_tell(model: PreTrainedModel) -> bool:
    """Returns whether a shape that came out equal will again, whatever the tokens.

    Not in 16 bits, and not where tokens are routed to experts: then neighbours share their matrix
    products, and the shapes of these depend on the tokens.
    """
    return model.dtype == torch.float32 and not _names_experts(model.config.to_dict())


def _names_experts(config: Mapping[Any, Any]) -> bool:
    return any(
        _names_experts(value)
        if isinstance(value, Mapping)
        else "expert" in str(name) and isinstance(value, int) and value > 1
        for name, value in config.items()
    )
