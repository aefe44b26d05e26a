"""Between a batch and the objective: the valid positions, of the student and of the teacher.

Legend: B sequences, S tokens, N valid positions, D hidden size.
"""

import numpy as np
import torch
from torch import Tensor

from student_trainer.batch_sources import Batch
from student_trainer.students import Student
from student_trainer.targets import Representation, TargetsProvider, TeacherTargets


def hidden_and_labels(
    student: Student, batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns (hidden_ND, labels_N) at the valid positions, by sequence, then by position."""
    valid_BS = torch.from_numpy(batch.valid_BS).to(device)
    hidden_BSD = student.hidden_states(torch.from_numpy(batch.inputs_BS).to(device))
    return hidden_BSD[valid_BS], torch.from_numpy(batch.labels_BS).to(device)[valid_BS]


def ask(
    teacher: TargetsProvider, batch: Batch, representation: Representation, temperature: float
) -> TeacherTargets:
    """Returns the teacher's targets at the same positions, in the same order.

    Raises:
        LecternError: as TargetsProvider.score says.
    """
    sequences = [row.astype(np.uint32) for row in batch.inputs_BS]
    return teacher.score(sequences, list(batch.valid_BS), representation, temperature)
