"""The learning rate of each step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

# Share of the way from the peak (1) to the final rate (0), by progress from 0 to 1.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then `decay` down to final_fraction * peak at the last step."""

    peak: float
    steps: int
    warmup_steps: int
    decay: str
    final_fraction: float

    def learning_rate(self, step: int) -> float:
        """Returns the rate of step `step`, 0 <= step < steps.

        Step 0 gets peak / warmup_steps and not 0: a step that moves nothing is a step wasted. The
        last warm-up step gets the peak, the last step of the run final_fraction * peak.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        first = max(self.warmup_steps - 1, 0)
        progress = min(1.0, (step - first) / max(1, self.steps - 1 - first))
        share = _SHAPES[self.decay](progress)
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * share)
