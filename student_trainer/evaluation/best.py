"""The lowest validation loss of a run, and early stopping once it no longer falls."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; checkpoints store it, so that a resumed run keeps counting.

    `loss` and `step` are None before the first evaluation. `evaluations_since` counts evaluations
    after `step`.
    """

    loss: float | None = None
    step: int | None = None
    evaluations_since: int = 0

    def after(self, step: int, loss: float) -> "Best":
        """Returns the best after a further evaluation, at `step`.

        An equal loss is not an improvement, nor is one that is not finite; the run may still
        recover from that.
        """
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            return Best(loss, step)
        return Best(self.loss, self.step, self.evaluations_since + 1)

    def is_over(self, patience: int | None) -> bool:
        """Returns True after `patience` evaluations in a row without a lower loss; None: never."""
        return patience is not None and self.evaluations_since >= patience

    def sentence(self) -> str:
        """Returns why the run is over, as a sentence for people."""
        count = self.evaluations_since
        times = "one evaluation" if count == 1 else f"{count} evaluations in a row"
        if self.step is None:
            return f"no validation loss was finite in {times}"
        if self.step == 0:
            return (
                f"no validation loss in {times} was below the {self.loss:.4f} before the first "
                "step: nothing improved, and the student is exported untrained"
            )
        return (
            f"no lower validation loss in {times}; the lowest, {self.loss:.4f}, was at step "
            f"{self.step}, and its weights are exported"
        )
