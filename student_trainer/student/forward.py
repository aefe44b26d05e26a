"""Computes the student and asks the teacher at a batch's valid positions.

Legend: B sequences, S tokens, N valid positions, D hidden size.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.student.student import Student
from student_trainer.targets import TargetsProvider, TeacherTargets

_Result = TypeVar("_Result")


def at_valid_positions(
    student: Student,
    batch: Batch,
    device: torch.device,
    compute: Callable[[Tensor, OutputHead, Tensor], _Result],
) -> _Result:
    """Returns compute(hidden_ND, head, labels_N), with rows by sequence, then by position.

    `compute` is called within the student's forward, where parameters that are split among devices
    are whole. For `backward()`, it must return its tensors by themselves or in tuples.
    """
    valid_BS = torch.from_numpy(batch.valid_BS).to(device)
    labels_N = torch.from_numpy(batch.labels_BS).to(device)[valid_BS]
    position_ids_BS = batch.position_ids_BS
    result: _Result = student(
        torch.from_numpy(batch.inputs_BS).to(device),
        lambda hidden_BSD, head: compute(hidden_BSD[valid_BS], head, labels_N),
        None if position_ids_BS is None else torch.from_numpy(position_ids_BS).to(device),
    )
    return result


def ask(
    teacher: TargetsProvider, batch: Batch, representation: Representation, temperature: float
) -> TeacherTargets:
    """Returns the teacher's targets at the same positions, in the same order.

    Sends what Batch.sequences yields: no padding, and nothing without a valid position.

    Raises:
        LecternError: as TargetsProvider.score says.
    """
    asked = list(batch.sequences())
    sequences, positions = [ids for ids, _ in asked], [valid for _, valid in asked]
    return teacher.score(sequences, positions, representation, temperature)
