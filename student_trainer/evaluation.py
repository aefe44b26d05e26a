"""Validation loss: cross entropy at temperature 1, in nats per token, over rows held out for it."""

from collections.abc import Iterable

import torch

from lectern_common.errors import InvalidRequest
from student_trainer.batch_sources import Batch
from student_trainer.objective import Objective, distillation_loss
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
            valid_BS = torch.from_numpy(batch.valid_BS).to(device)
            if not batch.num_valid:
                continue
            hidden_BSD = student.hidden_states(torch.from_numpy(batch.inputs_BS).to(device))
            labels_N = torch.from_numpy(batch.labels_BS).to(device)[valid_BS]
            loss = distillation_loss(
                hidden_BSD[valid_BS], student.output_head(), labels_N, None, _CROSS_ENTROPY, 1
            )
            loss_sum += loss.ce_sum.item()
            num_positions += batch.num_valid
    finally:
        student.train(was_training)
    if not num_positions:
        raise InvalidRequest("the validation set has no valid position")
    return loss_sum / num_positions
