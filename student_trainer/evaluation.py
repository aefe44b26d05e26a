"""Validation loss: cross entropy at temperature 1, in nats per token, over rows held out for it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest
from lectern_models.output_head import OutputHead
from student_trainer.batch_sources import Batch
from student_trainer.micro_batch import at_valid_positions
from student_trainer.objective import Objective, StepLoss, distillation_loss
from student_trainer.stopping import Stop
from student_trainer.students import Student

_CROSS_ENTROPY = Objective(alpha=1.0, temperature=1.0)


@torch.no_grad()
def validation_loss(
    student: Student, batches: Iterable[Batch], device: torch.device, stop: Stop
) -> float:
    """Returns the mean over all valid positions of all batches, dropout off.

    The student is left in the mode that it was in.

    Raises:
        StopRequested: a stop was requested.
        InvalidRequest: there is no valid position.
    """
    was_training = student.training
    student.eval()
    loss_sum, num_positions = 0.0, 0
    try:
        for batch in batches:
            stop.check()
            if not batch.num_valid:
                continue
            loss = at_valid_positions(student, batch, device, _cross_entropy)
            loss_sum += loss.ce_sum.item()
            num_positions += batch.num_valid
    finally:
        student.train(was_training)
    if not num_positions:
        raise InvalidRequest("the validation set has no valid position")
    return loss_sum / num_positions


def _cross_entropy(hidden_ND: Tensor, head: OutputHead, labels_N: Tensor) -> StepLoss:
    return distillation_loss(hidden_ND, head, labels_N, None, _CROSS_ENTROPY, 1)
