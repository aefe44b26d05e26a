"""The best evaluation of a run by one metric, and early stopping once that no longer improves."""

import math
from dataclasses import dataclass

from lectern_common.spec.suites import VALIDATION_LOSS


@dataclass(frozen=True)
class Followed:
    """The metric by which evaluations are compared, and whether its highest value is the best."""

    name: str = VALIDATION_LOSS
    is_highest: bool = False

    def is_better(self, value: float, other: float) -> bool:
        return value > other if self.is_highest else value < other

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        return "validation loss" if self.name == VALIDATION_LOSS else self.name


THE_LOSS = Followed()


@dataclass(frozen=True)
class Best:
    """The best evaluation so far; checkpoints store it, so that a resumed run keeps counting.

    `loss`, the value of the metric that the run follows, and `step` are None before the first
    evaluation. `evaluations_since` counts evaluations after `step`.
    """

    loss: float | None = None
    step: int | None = None
    evaluations_since: int = 0

    def after(self, step: int, loss: float, followed: Followed = THE_LOSS) -> "Best":
        """Returns the best after a further evaluation, at `step`.

        An equal value is not an improvement, nor is one that is not finite; the run may still
        recover from that.
        """
        if math.isfinite(loss) and (self.loss is None or followed.is_better(loss, self.loss)):
            return Best(loss, step)
        return Best(self.loss, self.step, self.evaluations_since + 1)

    def is_over(self, patience: int | None) -> bool:
        """Returns True after `patience` evaluations in a row without a better one; None: never."""
        return patience is not None and self.evaluations_since >= patience

    def sentence(self, followed: Followed = THE_LOSS) -> str:
        """Returns why the run is over, as a sentence for people."""
        count, metric = self.evaluations_since, followed.words
        times = "one evaluation" if count == 1 else f"{count} evaluations in a row"
        better, best = ("higher", "highest") if followed.is_highest else ("lower", "lowest")
        if self.step is None:
            return f"no {metric} was finite in {times}"
        if self.step == 0:
            than = "above" if followed.is_highest else "below"
            return (
                f"no {metric} in {times} was {than} the {self.loss:.4f} before the first "
                "step: nothing improved, and the student is exported untrained"
            )
        return (
            f"no {better} {metric} in {times}; the {best}, {self.loss:.4f}, was at step "
            f"{self.step}, and its weights are exported"
        )
