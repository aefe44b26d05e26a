"""The loss of rows of several sources: each has its own teacher's targets and its own objective.

Legend: B rows, S tokens, N valid positions, n valid positions of one source, D hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lectern_models.logits.output_head import OutputHead
from student_trainer.objective.loss import Objective, StepLoss, distillation_loss
from student_trainer.targets import TeacherTargets

# The objective for no rows at all, which needs no teacher.
_NOTHING = Objective(alpha=1.0, temperature=1.0)


class OfSource(NamedTuple):
    """The positions of one source; `targets` is None for a source without a teacher."""

    source: int
    positions_n: Tensor  # int64, which of the N positions, rising
    targets: TeacherTargets | None
    objective: Objective


class SourceLoss(NamedTuple):
    """The loss of one source's positions; see StepLoss."""

    source: int
    num_positions: int
    loss: StepLoss


def loss_of_sources(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    of_sources: Sequence[OfSource],
    normalizer: int,
) -> tuple[Tensor, tuple[SourceLoss, ...]]:
    """Returns the sum of the losses of all sources, and each of them.

    Every position counts the same, whatever its source: each loss is divided by `normalizer`, the
    number of valid positions of the whole step. Call `backward()` on the sum.

    Args:
        hidden_ND: the student's final-norm hidden states at the valid positions.
        head: over the student's live parameters.
        labels_N: int64, the token that follows each row.
        of_sources: those that have positions; other positions have no loss.
        normalizer: number of valid positions in the whole optimizer step.

    Raises:
        InvalidRequest: as distillation_loss says.
    """
    if not of_sources:
        # A sum over no rows still reaches every parameter, as ranks that share them need it.
        rows = slice(0, 0)
        nothing = distillation_loss(
            hidden_ND[rows], head, labels_N[rows], None, _NOTHING, normalizer
        )
        return nothing.total, ()
    losses = []
    for one in of_sources:
        # One source alone keeps its rows where they are.
        is_all = len(one.positions_n) == len(hidden_ND)
        hidden_nD = hidden_ND if is_all else hidden_ND[one.positions_n]
        labels_n = labels_N if is_all else labels_N[one.positions_n]
        loss = distillation_loss(hidden_nD, head, labels_n, one.targets, one.objective, normalizer)
        losses.append(SourceLoss(one.source, len(one.positions_n), loss))
    return torch.stack([one.loss.total for one in losses]).sum(), tuple(losses)
