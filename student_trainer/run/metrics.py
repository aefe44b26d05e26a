"""The metrics of a step's line in metrics.jsonl: losses, counts, speed, memory, wire."""

from collections.abc import Sequence

import psutil
import torch

from student_trainer.generating.rollouts.rows import WrittenBatch
from student_trainer.objective.loss import Objective, StepLoss
from student_trainer.ranks.world import Ranks
from student_trainer.run.parts import Parts, Progress
from student_trainer.teacher.prefetch import MicroBatch


def loss_metrics(
    learnt: Sequence[tuple[MicroBatch, StepLoss, object]],
    objective: Objective,
    normalizer: int,
    ranks: Ranks,
) -> dict[str, float]:
    """Returns the losses of a step, in nats per valid position, without terms of weight 0.

    loss/total is what is minimised. Rows that the student wrote have no cross entropy: loss/ce is
    the mean over the positions of data, without which there is none, and loss/kd that over all.

    loss/kd is the divergence at temperature T, without the factor T^2. With top_k it is over k + 1
    outcomes, a lower bound of the divergence over all tokens; with sampled it is an unbiased
    estimate, which may be below 0. loss/total uses the same value. Representation.kd_is says which.
    """
    of_data = [(part, loss) for part, loss, _ in learnt if not isinstance(part, WrittenBatch)]
    of_rollouts = [(part, loss) for part, loss, _ in learnt if isinstance(part, WrittenBatch)]
    ce_sum, kd_sum, positions, _, written_sum, written = ranks.totals(
        *_sums_of(of_data), *_sums_of(of_rollouts)
    )
    ce, kd = ce_sum / normalizer, kd_sum / normalizer
    metrics = {"loss/total": objective.total(ce, kd)}
    if written:
        kd_written = written_sum / normalizer
        metrics["loss/total"] += objective.without_cross_entropy().total(0.0, kd_written)
        kd += kd_written
    if objective.alpha > 0 and positions:
        metrics["loss/ce"] = ce_sum / positions
    if objective.alpha < 1:
        metrics["loss/kd"] = kd
    return metrics


def _sums_of(learnt: Sequence[tuple[MicroBatch, StepLoss]]) -> list[float]:
    """Returns the sums of cross entropy and divergence, and over how many positions."""
    if not learnt:
        return [0.0, 0.0, 0.0]
    sums = torch.stack([torch.stack([loss.ce_sum, loss.kd_sum]) for _, loss in learnt]).sum(0)
    return [*sums.tolist(), sum(part.batch.num_valid for part, _ in learnt)]


def count_metrics(parts: Parts, progress: Progress, num_valid: int) -> dict[str, float]:
    """Returns the counts up to the end of a step, and its valid positions on all ranks."""
    metrics: dict[str, float] = {
        "optim/skipped_steps": progress.skipped_steps,
        "data/tokens_seen": progress.tokens_seen,
    }
    if parts.steps_per_epoch is not None:
        metrics["data/epoch"] = progress.step / parts.steps_per_epoch
    metrics["data/valid_tokens"] = num_valid
    return metrics


def progress_metrics(progress: Progress, now: float) -> dict[str, float]:
    """Returns what a chart may have as its x axis, beside the step.

    That is the Unix time, the tokens trained on, and the seconds of training. The last two count
    from the run's first step, over all attempts.
    """
    return {
        "time": now,
        "progress/tokens": progress.tokens_seen,
        "progress/seconds": progress.wall_seconds,
    }


def pace_metrics(
    parts: Parts, num_tokens: int, seconds: float, waited_seconds: float
) -> dict[str, float]:
    """Returns how fast a step was, and how long it waited for the teacher."""
    metrics = {
        "perf/tokens_per_second": num_tokens / seconds,
        "time/step_seconds": seconds,
        "time/teacher_wait_seconds": waited_seconds,
    }
    if parts.teaching is not None or (parts.mixed is not None and parts.mixed.teachings):
        metrics["time/teacher_wait_share"] = waited_seconds / seconds
    return metrics


def wire_metrics(parts: Parts) -> dict[str, float]:
    """Returns what was received over the wire since the last step.

    That includes prefetched answers for coming steps, and those of an evaluation in between.
    """
    teaching = parts.teaching
    if teaching is None or teaching.take_received is None:
        return {}
    received_bytes, positions = parts.ranks.totals(*teaching.take_received())
    metrics: dict[str, float] = {
        "wire/received_bytes": received_bytes,
        "wire/positions": positions,
    }
    if positions:
        metrics["wire/bytes_per_token"] = received_bytes / positions
    return metrics


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Returns memory/rss_bytes and, on CUDA, memory/cuda_peak_bytes (tensors, since the start)."""
    metrics: dict[str, float] = {"memory/rss_bytes": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        metrics["memory/cuda_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return metrics
