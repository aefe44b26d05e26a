"""The metrics of a step's line in metrics.jsonl: losses, counts, speed, memory, wire."""

import psutil
import torch

from student_trainer.objective.loss import Objective, StepLoss
from student_trainer.ranks.world import Ranks
from student_trainer.run.parts import Parts, Progress


def loss_metrics(
    losses: list[StepLoss], objective: Objective, normalizer: int, ranks: Ranks
) -> dict[str, float]:
    """Returns the losses of a step, in nats per valid position, without terms of weight 0.

    loss/kd is the divergence at temperature T, without the factor T^2. With top_k it is over k + 1
    outcomes, a lower bound of the divergence over all tokens; with sampled it is an unbiased
    estimate, which may be below 0. loss/total uses the same value. Representation.kd_is says which.
    """
    sums = torch.stack([torch.stack([loss.ce_sum, loss.kd_sum]) for loss in losses]).sum(0)
    ce, kd = (total / normalizer for total in ranks.totals(*sums.tolist()))
    metrics = {"loss/total": objective.total(ce, kd)}
    if objective.alpha > 0:
        metrics["loss/ce"] = ce
    if objective.alpha < 1:
        metrics["loss/kd"] = kd
    return metrics


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
    if parts.teaching is not None:
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
