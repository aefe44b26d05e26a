"""Between a batch and the objective: the valid positions, of the student and of the teacher.

Legend: B sequences, S tokens, N valid positions, D hidden size.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lectern_models.output_head import OutputHead
from student_trainer.batch_sources import Batch
from student_trainer.students import Student
from student_trainer.targets import Representation, TargetsProvider, TeacherTargets

_Result = TypeVar("_Result")


def at_valid_positions(
    student: Student,
    batch: Batch,
    device: torch.device,
    compute: Callable[[Tensor, OutputHead, Tensor], _Result],
) -> _Result:
    """Returns compute(hidden_ND, head, labels_N), rows by sequence, then by position.

    It is called within the student's forward, where parameters that are split among several
    devices are whole. Tensors in its result must be tensors or tuples of them, for `backward()`.
    """
    valid_BS = torch.from_numpy(batch.valid_BS).to(device)
    labels_N = torch.from_numpy(batch.labels_BS).to(device)[valid_BS]
    result: _Result = student(
        torch.from_numpy(batch.inputs_BS).to(device),
        lambda hidden_BSD, head: compute(hidden_BSD[valid_BS], head, labels_N),
    )
    return result


def ask(
    teacher: TargetsProvider, batch: Batch, representation: Representation, temperature: float
) -> TeacherTargets:
    """Returns the teacher's targets at the same positions, in the same order.

    Raises:
        LecternError: as TargetsProvider.score says.
    """
    sequences = [row.astype(np.uint32) for row in batch.inputs_BS]
    return teacher.score(sequences, list(batch.valid_BS), representation, temperature)
