"""The metrics of a step's rollouts, over all ranks.

rollout/rows               rollouts that the step learnt
rollout/mean_length        tokens of a completion, its end token included
rollout/finished_share     completions with an end token; the others were cut
rollout/clean_share        completions with an end token whose 4-grams are at least half different
rollout/kd                 the objective's divergence at its temperature, in nats per token
rollout/kd_0_16, ...       the same at tokens 0 to 15, 16 to 63, 64 to 255, 256 and later
rollout/distinct_4         different 4-grams by all 4-grams of a completion, the mean; 1 repeats
                           nothing
rollout/entropy            the student's, at temperature 1, in nats per token
rollout/agreement          share of positions where both have the same likeliest token
rollout/seconds            how long the step wrote; with stale_steps 1, for the step after it
rollout/tokens_per_second  tokens written by those seconds
rollout/writing_share      of the step's time; likewise scoring_share, the time that it waited
                           for the teacher, and learning_share, the rest
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from student_trainer.generating.rollouts.judged import NUM_SUMS
from student_trainer.generating.rollouts.rows import Rollout, WrittenBatch
from student_trainer.generating.rollouts.writing import WrittenBy
from student_trainer.ranks.world import Ranks

# Where the buckets of positions begin; the last is open.
BUCKETS = (0, 16, 64, 256)
_GRAM = 4
# A completion with a smaller share of different 4-grams repeats itself.
_CLEAN_FROM = 0.5


class LearntBatch(NamedTuple):
    """A micro-batch of rollouts, after its loss: D at each valid position, and `judged`'s sums."""

    micro_batch: WrittenBatch
    kd_N: Tensor
    judged: Tensor

    def rollouts(self) -> Iterator[tuple[Rollout, npt.NDArray[np.float64]]]:
        """Yields each rollout with D at each token of its completion, in nats."""
        kd_N, first = self.kd_N.double().cpu().numpy(), 0
        for rollout in self.micro_batch.rollouts:
            stop = first + len(rollout.completion)
            yield rollout, kd_N[first:stop]
            first = stop


def rollout_metrics(
    learnt: Sequence[LearntBatch],
    written: WrittenBy,
    step_seconds: float,
    waited_seconds: float,
    ranks: Ranks,
) -> dict[str, float]:
    """Returns the metrics of a step, without those of which nothing is known.

    Args:
        learnt: this rank's micro-batches of rollouts.
        written: what this rank wrote in the step.
        step_seconds: how long the step took.
        waited_seconds: how long it waited for the teacher.
        ranks: that train the run together; all call it.
    """
    sums = _Sums()
    for batch in learnt:
        sums.judged += batch.judged.cpu().numpy()
        for rollout, kd in batch.rollouts():
            sums.add(rollout, kd)
    own = sums.values(written, waited_seconds)
    rows, tokens, finished, clean, distinct, compared_4, *left = ranks.totals(*own)
    buckets, left = np.array(left[: 2 * len(BUCKETS)]).reshape(2, -1), left[2 * len(BUCKETS) :]
    positions, entropy, compared, agreeing, written_tokens, seconds, waited = left
    seconds, waited = seconds / ranks.size, waited / ranks.size
    metrics = {
        "rollout/rows": rows,
        "rollout/seconds": seconds,
        "rollout/writing_share": seconds / step_seconds,
        "rollout/scoring_share": waited / step_seconds,
        "rollout/learning_share": max(0.0, 1 - (seconds + waited) / step_seconds),
    }
    if written_tokens:
        metrics["rollout/tokens_per_second"] = written_tokens / seconds
    if rows:
        metrics["rollout/mean_length"] = tokens / rows
        metrics["rollout/finished_share"] = finished / rows
        metrics["rollout/clean_share"] = clean / rows
        metrics["rollout/kd"] = float(buckets[0].sum()) / tokens
    if compared_4:
        metrics["rollout/distinct_4"] = distinct / compared_4
    if positions:
        metrics["rollout/entropy"] = entropy / positions
    if compared:
        metrics["rollout/agreement"] = agreeing / compared
    for begin, end, kd, count in zip(BUCKETS, (*BUCKETS[1:], None), *buckets, strict=True):
        if count:
            metrics[f"rollout/kd_{begin}_{'up' if end is None else end}"] = float(kd / count)
    return metrics


class _Sums:
    """Sums over the rollouts of one rank."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.finished = self.clean = self.compared = 0
        self.distinct = 0.0
        self.buckets = np.zeros((2, len(BUCKETS)))
        self.judged = np.zeros(NUM_SUMS)

    def add(self, rollout: Rollout, kd: npt.NDArray[np.float64]) -> None:
        self.rows += 1
        self.tokens += len(kd)
        share = distinct_share(rollout.ids)
        if rollout.end is not None:
            self.finished += 1
            self.clean += share is None or share >= _CLEAN_FROM
        if share is not None:
            self.distinct += share
            self.compared += 1
        of = np.searchsorted(BUCKETS, np.arange(len(kd)), side="right") - 1
        for values, weights in zip(self.buckets, (kd, None), strict=True):
            values += np.bincount(of, weights, minlength=len(BUCKETS))

    def values(self, written: WrittenBy, waited_seconds: float) -> list[float]:
        return [
            *(self.rows, self.tokens, self.finished, self.clean, self.distinct, self.compared),
            *self.buckets.reshape(-1).tolist(),
            *self.judged.tolist(),
            *(written.tokens, written.seconds, waited_seconds),
        ]


def distinct_share(ids: Sequence[int], n: int = _GRAM) -> float | None:
    """Returns the share of different n-grams among all of a text; None if it has none."""
    count = len(ids) - n + 1
    if count < 1:
        return None
    return len({tuple(ids[first : first + n]) for first in range(count)}) / count
