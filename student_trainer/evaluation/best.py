"""The lowest validation loss of a run, and whether waiting for a lower one is still worth it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; a checkpoint keeps it, so that a resumed run goes on counting.

    `loss` and `step` are None before the first evaluation. `evaluations_since` counts those after
    `step`.
    """

    loss: float | None = None
    step: int | None = None
    evaluations_since: int = 0

    def after(self, step: int, loss: float) -> "Best":
        """Returns what holds after an evaluation at `step`.

        An equal loss is no lower one, and a loss that is not finite (the run may yet recover) never
        is.
        """
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            return Best(loss, step)
        return Best(self.loss, self.step, self.evaluations_since + 1)

    def is_over(self, patience: int | None) -> bool:
        """Returns True where `patience` evaluations in a row brought no lower loss; None: never."""
        return patience is not None and self.evaluations_since >= patience

    def sentence(self) -> str:
        """Returns why the run is over, for a person."""
        count = self.evaluations_since
        times = "one evaluation" if count == 1 else f"{count} evaluations in a row"
        if self.step is None:
            return f"no validation loss was finite in {times}"
        if self.step == 0:
            return (
                f"no validation loss in {times} was below the {self.loss:.4f} before the first "
                "step: nothing improved, and the student is exported as it was"
            )
        return (
            f"no lower validation loss in {times}; the lowest, {self.loss:.4f}, was at step "
            f"{self.step}, and its weights are exported"
        )
