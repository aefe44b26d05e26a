"""What to change when a run waits for its teacher.

A run that waits for more than SAID_ABOVE of its last steps' time is told so once, with what its own
settings allow to change; and told again only after it was well below that for as many steps.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from lectern_common.words import size

SAID_ABOVE = 0.3
# Well below: a share that moves around the limit is one story, not many.
OVER_BELOW = 0.15
OVER_STEPS = 50
# Answers of fewer steps ahead do not hide a teacher that is slow now and then.
_USUAL_PREFETCH_STEPS = 4
# From here on the wire may be what is slow: a fast gRPC connection moves a few times that.
_MUCH_ON_THE_WIRE = 200e6  # bytes a second
# A teacher this much faster than the student is not the bound by itself.
_AMPLE = 2.0


@dataclass(frozen=True)
class TeacherFacts:
    """How a run asks its teacher, and what that said of itself."""

    representation: str
    prefetch_steps: int
    num_replicas: int = 1
    mode: str = ""  # "independent", "throughput"; empty: not said
    tokens_per_second: float = 0.0  # measured at its start; 0: not said


@dataclass(frozen=True)
class TeacherBound:
    """A run that waits: `share` of the time of its last steps, and a sentence of advice."""

    share: float
    advice: str


class WaitAdvice:
    """Looks at each step's metrics; says at most one thing while nothing changes.

    Args:
        facts: of the run.
    """

    def __init__(self, facts: TeacherFacts) -> None:
        self._facts = facts
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=OVER_STEPS)
        self._said = False

    def after(self, metrics: Mapping[str, float | None]) -> TeacherBound | None:
        """Returns what there is to say after a step with these metrics; None: nothing."""
        seconds, waited = metrics.get("time/step_seconds"), metrics.get("time/teacher_wait_seconds")
        if seconds is None or waited is None:
            return None
        tokens = (metrics.get("perf/tokens_per_second") or 0.0) * seconds
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
        # One step's speed says little of the others', least of all when it waited.
        speed = sum(tokens for _, _, tokens in self._recent) / total
        recent = {**metrics, "perf/tokens_per_second": speed}
        return TeacherBound(share, advice(self._facts, share, recent))


def advice(facts: TeacherFacts, share: float, metrics: Mapping[str, float | None]) -> str:
    """Returns a sentence for a person: what waits, and what helps, the likeliest first.

    Args:
        facts: of the run.
        share: of the time, waited for the teacher.
        metrics: tokens per second over the same time, and bytes per token.
    """
    speed = metrics.get("perf/tokens_per_second") or 0.0
    helps = [*_sooner(facts), *_smaller(facts, metrics, speed), *_faster(facts, share, speed)]
    return (
        f"the student waited for its teacher {share:.0%} of the last {OVER_STEPS} steps' time. "
        f"What helps: {'; '.join(helps)}"
    )


def _sooner(facts: TeacherFacts) -> list[str]:
    if facts.prefetch_steps == 0:
        return ["set teacher.prefetch_steps to 4: at 0 every step waits for its own answer"]
    if facts.prefetch_steps < _USUAL_PREFETCH_STEPS:
        return [f"raise teacher.prefetch_steps, it is {facts.prefetch_steps}"]
    return []


def _smaller(facts: TeacherFacts, metrics: Mapping[str, float | None], speed: float) -> list[str]:
    token_bytes = metrics.get("wire/bytes_per_token") or 0.0
    if facts.representation == "dense":
        return [
            "take teacher.representation hidden, which is as exact as dense and a fraction of its "
            f"{size(token_bytes)} a token"
        ]
    if facts.representation == "hidden" and token_bytes * speed > _MUCH_ON_THE_WIRE:
        return [
            f"take teacher.representation top_k or sampled: {size(token_bytes * speed)} a second "
            f"come over the wire, {size(token_bytes)} a token"
        ]
    return []


def _faster(facts: TeacherFacts, share: float, speed: float) -> list[str]:
    # What the student would learn from in a second, did it not wait.
    wanted = speed / (1 - share) if share < 1 else 0.0
    if wanted and facts.tokens_per_second > _AMPLE * wanted:
        return [
            f"let fewer runs ask it at a time: alone it scores {facts.tokens_per_second:,.0f} "
            f"tokens a second, and this run would take {wanted:,.0f}"
        ]
    helps = []
    if facts.mode == "independent":
        helps.append("start the teacher with --mode throughput")
    servers = "a second server" if facts.num_replicas == 1 else "another server"
    helps.append(f"name {servers} of the same model in teacher.address")
    helps.append("let fewer runs ask it at a time, or serve a smaller or a quantized model")
    if facts.tokens_per_second and wanted:
        helps[0] += (
            f" (it scores {facts.tokens_per_second:,.0f} tokens a second, and this run alone would "
            f"take {wanted:,.0f})"
        )
    return helps
