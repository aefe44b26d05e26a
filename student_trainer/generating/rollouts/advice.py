"""Advice on what to change when a run spends most of its time writing.

A run that wrote for more than SAID_ABOVE of its last OVER_STEPS steps' time gets advice once, and
again only after that share was below OVER_BELOW over as many steps.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from lectern_common.spec.run_spec import RunSpec
from student_trainer.teacher.advice import OVER_STEPS

SAID_ABOVE = 0.6
# Well below: a share that moves around the limit must not repeat the advice.
OVER_BELOW = 0.4
# With fewer completions that end, most of the time goes into texts that do not.
_FEW_FINISHED = 0.5
# Rows written together cost little more than one: a step of the model reads all its weights anyway.
_FEW_ROWS = 32


@dataclass(frozen=True)
class WritingBound:
    """A run wrote for `share` of its last steps' time; what helps."""

    share: float
    advice: str


class WritingAdvice:
    """Looks at each step's metrics; gives advice at most once while nothing changes.

    Args:
        spec: the run's.
        on_cpu: the student is on the CPU.
    """

    def __init__(self, spec: RunSpec, *, on_cpu: bool) -> None:
        self._spec = spec
        self._on_cpu = on_cpu
        self._recent: deque[tuple[float, float, float | None]] = deque(maxlen=OVER_STEPS)
        self._said = False

    def after(self, metrics: Mapping[str, float | None]) -> WritingBound | None:
        """Returns the advice after a step with these metrics; None means there is none."""
        seconds, wrote = metrics.get("time/step_seconds"), metrics.get("rollout/seconds")
        if seconds is None or wrote is None:
            return None
        self._recent.append((wrote, seconds, metrics.get("rollout/finished_share")))
        total = sum(seconds for _, seconds, _ in self._recent)
        if len(self._recent) < OVER_STEPS or total <= 0:
            return None
        share = sum(wrote for wrote, _, _ in self._recent) / total
        if self._said and share < OVER_BELOW:
            self._said = False
        if self._said or share <= SAID_ABOVE:
            return None
        self._said = True
        finished = [one for _, _, one in self._recent if one is not None]
        mean = sum(finished) / len(finished) if finished else 1.0
        return WritingBound(share, advice(self._spec, share, mean, on_cpu=self._on_cpu))


def advice(spec: RunSpec, share: float, finished_share: float, *, on_cpu: bool) -> str:
    """Returns a sentence that says how long the run wrote and what helps, the likeliest first.

    Args:
        spec: the run's; it has rollouts.
        share: share of the time that the run wrote.
        finished_share: share of the completions that ended by themselves.
        on_cpu: the student is on the CPU.
    """
    rollout = spec.rollout
    if rollout is None:
        raise ValueError("the spec has no rollouts")
    helps = []
    if finished_share < _FEW_FINISHED:
        helps.append(
            f"lower rollout.max_new_tokens (now {rollout.max_new_tokens}): "
            f"{1 - finished_share:.0%} of the completions were cut there"
        )
    if on_cpu:
        helps.append("train on a GPU")
    written = spec.batch.sequences_per_step * rollout.fraction / spec.device.count
    if written < _FEW_ROWS:
        helps.append(
            f"raise batch.sequences_per_step (now {spec.batch.sequences_per_step}): more rows "
            "written together take little longer"
        )
    helps.append(f"lower rollout.fraction (now {rollout.fraction:g})")
    return (
        f"the student wrote for {share:.0%} of the last {OVER_STEPS} steps' time. What helps: "
        f"{'; '.join(helps)}"
    )
