"""Advice on what to change when a run waits for its teacher.

A run that waited for more than SAID_ABOVE of its last OVER_STEPS steps' time gets advice once, from
its own settings; and again only after that share was below OVER_BELOW over as many steps. A teacher
that was away is not a slow one: that time counts neither as waited nor as time of the steps.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lectern_common.words import size

SAID_ABOVE = 0.3
# Well below: a share that moves around the limit must not repeat the advice.
OVER_BELOW = 0.15
OVER_STEPS = 50
# With fewer steps ahead, a teacher that is slow now and then delays the student.
_USUAL_PREFETCH_STEPS = 4
# Above this the wire may be the bottleneck: a fast gRPC connection moves a few times as much.
_MUCH_ON_THE_WIRE = 200e6  # bytes a second
# A teacher this much faster than the student is not the bottleneck by itself.
_AMPLE = 2.0


@dataclass(frozen=True)
class TeacherFacts:
    """How a run asks its teacher, and what the teacher reported about itself.

    `stale_steps` is that of the run's rollouts; None without any. `asks_about_data`: not all rows
    are written by the student.
    """

    representation: str
    prefetch_steps: int
    stale_steps: int | None = None
    asks_about_data: bool = True
    num_replicas: int = 1
    mode: str = ""  # "independent", "throughput"; "" means not reported
    tokens_per_second: float = 0.0  # measured when it started; 0 means not reported


@dataclass(frozen=True)
class TeacherBound:
    """A run waited for its teacher for `share` of its last steps' time; what helps."""

    share: float
    advice: str


class WaitAdvice:
    """Looks at each step's metrics; gives advice at most once while nothing changes.

    Args:
        facts: about the run's teacher.
        away_seconds: returns how long the teacher has been away so far, over all outages.
    """

    def __init__(
        self, facts: TeacherFacts, away_seconds: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._facts = facts
        self._away_seconds = away_seconds
        self._away_before = away_seconds()
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=OVER_STEPS)
        self._said = False

    def after(self, metrics: Mapping[str, float | None]) -> TeacherBound | None:
        """Returns the advice after a step with these metrics; None means there is none."""
        seconds, waited = metrics.get("time/step_seconds"), metrics.get("time/teacher_wait_seconds")
        if seconds is None or waited is None:
            return None
        tokens = (metrics.get("perf/tokens_per_second") or 0.0) * seconds
        before, self._away_before = self._away_before, self._away_seconds()
        away = min(self._away_before - before, waited)
        seconds, waited = seconds - away, waited - away
        self._recent.append((waited, seconds, tokens))
        total = sum(seconds for _, seconds, _ in self._recent)
        if len(self._recent) < OVER_STEPS or total <= 0:
            return None
        share = sum(waited for waited, _, _ in self._recent) / total
        if self._said and share < OVER_BELOW:
            self._said = False
        if self._said or share <= SAID_ABOVE:
            return None
        self._said = True
        # One step's speed says little about the others', least of all if it waited.
        speed = sum(tokens for _, _, tokens in self._recent) / total
        recent = {**metrics, "perf/tokens_per_second": speed}
        return TeacherBound(share, advice(self._facts, share, recent))


def advice(facts: TeacherFacts, share: float, metrics: Mapping[str, float | None]) -> str:
    """Returns a sentence that says how long the run waited and what helps, the likeliest first.

    Args:
        facts: about the run's teacher.
        share: share of the time that the run waited for the teacher.
        metrics: tokens per second over the same time, and bytes per token.
    """
    speed = metrics.get("perf/tokens_per_second") or 0.0
    helps = [*_sooner(facts), *_smaller(facts, metrics, speed), *_faster(facts, share, speed)]
    return (
        f"the student waited for its teacher for {share:.0%} of the last {OVER_STEPS} steps' time. "
        f"What helps: {'; '.join(helps)}"
    )


def _sooner(facts: TeacherFacts) -> list[str]:
    helps = []
    if facts.stale_steps == 0:
        helps.append(
            "set rollout.stale_steps to 1: the teacher then scores what the student wrote while it "
            "learns"
        )
    if not facts.asks_about_data:
        return helps
    if facts.prefetch_steps == 0:
        helps.append("set teacher.prefetch_steps to 4: at 0 every step waits for its own answer")
    elif facts.prefetch_steps < _USUAL_PREFETCH_STEPS:
        helps.append(f"raise teacher.prefetch_steps (now {facts.prefetch_steps})")
    return helps


def _smaller(facts: TeacherFacts, metrics: Mapping[str, float | None], speed: float) -> list[str]:
    token_bytes = metrics.get("wire/bytes_per_token") or 0.0
    if facts.representation == "dense":
        return [
            "set teacher.representation to hidden, which is as exact as dense at a fraction of its "
            f"{size(token_bytes)} per token"
        ]
    if facts.representation == "hidden" and token_bytes * speed > _MUCH_ON_THE_WIRE:
        return [
            "set teacher.representation to top_k or sampled: the wire carries "
            f"{size(token_bytes * speed)} per second, {size(token_bytes)} per token"
        ]
    return []


def _faster(facts: TeacherFacts, share: float, speed: float) -> list[str]:
    # Tokens per second that the student would train on if it did not wait.
    wanted = speed / (1 - share) if share < 1 else 0.0
    if wanted and facts.tokens_per_second > _AMPLE * wanted:
        return [
            "let fewer runs use the teacher at a time: it scores "
            f"{facts.tokens_per_second:,.0f} tokens per second, and this run needs {wanted:,.0f}"
        ]
    helps = []
    if facts.mode == "independent":
        helps.append("start the teacher with --mode throughput")
    servers = "a second server" if facts.num_replicas == 1 else "another server"
    helps.append(f"add {servers} of the same model to teacher.address")
    helps.append(
        "let fewer runs use the teacher at a time, or serve a smaller or a quantized model"
    )
    if facts.tokens_per_second and wanted:
        helps[0] += (
            f" (it scores {facts.tokens_per_second:,.0f} tokens per second, and this run by itself "
            f"needs {wanted:,.0f})"
        )
    return helps
