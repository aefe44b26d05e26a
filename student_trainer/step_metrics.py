"""What a step's line in metrics.jsonl says of losses and of the wire."""

import torch

from student_trainer.objective import Objective, StepLoss
from student_trainer.ranks import Ranks
from student_trainer.run_parts import Parts


def loss_metrics(
    losses: list[StepLoss], objective: Objective, normalizer: int, ranks: Ranks
) -> dict[str, float]:
    """Returns the losses of a step, in nats per valid position; a term of weight 0 has none.

    loss/kd is the divergence at the temperature T, without T^2; with top_k it is that over k + 1
    outcomes, a lower bound of the divergence over all tokens; with sampled an unbiased estimate of
    it, which may be below 0. loss/total contains the same. Which it is says Representation.kd_is.
    """
    sums = torch.stack([torch.stack([loss.ce_sum, loss.kd_sum]) for loss in losses]).sum(0)
    ce, kd = (total / normalizer for total in ranks.totals(*sums.tolist()))
    metrics = {"loss/total": objective.total(ce, kd)}
    if objective.alpha > 0:
        metrics["loss/ce"] = ce
    if objective.alpha < 1:
        metrics["loss/kd"] = kd
    return metrics


def wire_metrics(parts: Parts) -> dict[str, float]:
    """Returns what has come over the wire since the last step.

    That is for this step, for some to come, and for an evaluation between the two.
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
