"""Whether sequences of one length, computed together, come out as each would alone, to the bit.

It depends on the device, the dtype and the very shape (which matrix kernels are taken), so it is
not assumed: a shape is computed both ways when it first occurs, and taken on trust only after it
came out equal each time.
"""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from teacher_server.engine import Rows

# Times that a shape must come out equal, each with other tokens.
_TRIALS = 2

Shape = tuple[int, int]  # sequences, tokens of each


class EqualShapes:
    """What is known of each shape. `never`: for models whose kernels depend on the tokens too."""

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

    def tried(self, shape: Shape, alone: Sequence[Rows], together: Sequence[Rows]) -> None:
        """Takes the outcome of one trial."""
        equal = all(
            one.payload == other.payload for one, other in zip(alone, together, strict=True)
        )
        self._equal_trials[shape] = self._equal_trials.get(shape, 0) + 1 if equal else -1


def has_experts(config: PreTrainedConfig) -> bool:
    """Returns whether tokens are routed to experts: then neighbours share their matrix products."""
    text = config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(text, name, None) or 0) > 1 for name in names)
