"""Computes the student and asks the teacher at a batch's valid positions.

Legend: B sequences, S tokens, N valid positions, D hidden size.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.wire.formats import Representation
from lectern_models.output_head import OutputHead
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

    Documents that do not attend to each other are sent as one sequence each; a sequence without a
    valid position is not sent.

    Raises:
        LecternError: as TargetsProvider.score says.
    """
    sequences, positions = [], []
    for row, (inputs_S, valid_S) in enumerate(zip(batch.inputs_BS, batch.valid_BS, strict=True)):
        starts = _later_documents(batch, row)
        for ids, asked in zip(
            np.split(inputs_S.astype(np.uint32), starts), np.split(valid_S, starts), strict=True
        ):
            if asked.any():
                sequences.append(ids)
                positions.append(asked)
    return teacher.score(sequences, positions, representation, temperature)


def _later_documents(batch: Batch, row: int) -> npt.NDArray[np.int64]:
    """Returns where documents begin within a row, except at its start."""
    if batch.position_ids_BS is None:
        return np.empty(0, np.int64)
    starts: npt.NDArray[np.int64] = np.flatnonzero(batch.position_ids_BS[row] == 0)
    return starts[starts > 0]
