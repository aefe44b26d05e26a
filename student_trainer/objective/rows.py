"""Losses of a few rows, their gradients by the logits, and the sums of the head's gradients.

Legend: N tokens, n tokens (rows) of a chunk, V vocabulary, D hidden size.

Elementwise work on the logits makes a dozen passes over [n, V]. A few rows at a time stay in the
CPU's cache from the first pass to the last, which takes a third of the time. With torch.compile
there are few passes, so all rows are processed at once.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lectern_common.errors import Misconfigured
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.products import add_gradient_by_weight, gradient_by_hidden, product_dtype
from student_trainer.objective.divergences import Divergence, TeacherRows, divergence_from_teacher
from student_trainer.targets import DenseTargets

# Elements of [n, V] processed at a time. On CUDA a kernel should run longer than its launch.
_BLOCK_NUMEL = {"cpu": 1 << 17, "cuda": 1 << 25}
# A process compiles one graph for an objective's first chunk and one for all other numbers of rows.
_MAX_GRAPHS = 64


class RowTerms(NamedTuple):
    """What all rows of a call share; a weight of None leaves its term out.

    `ce_weight` multiplies the cross entropy, `kd_weight` T dD/ds; both are float32 or float64
    scalars.
    """

    student: OutputHead
    teacher: OutputHead | None  # if the teacher's rows are projections by it
    temperature: float
    divergence: Divergence
    ce_weight: Tensor | None
    kd_weight: Tensor | None
    untaught: Tensor | None = None  # int64, ids that the teacher rules out


def block_rows(vocab_size: int, device: torch.device) -> int:
    """Returns how many rows to process at a time, for speed."""
    return max(1, _BLOCK_NUMEL.get(device.type, _BLOCK_NUMEL["cuda"]) // vocab_size)


def row_losses(
    projected_nV: Tensor, labels_n: Tensor, teacher: TeacherRows | None, terms: RowTerms
) -> tuple[Tensor, Tensor]:
    """Returns CE [n] and D [n]; overwrites `projected_nV` with d total / d projected.

    The total is ce_weight * sum CE + T * kd_weight * sum D; a term left out is 0.

    Args:
        projected_nV: the student's hidden states times its weight, before bias and transform.
        labels_n: int64, the token that follows each row.
        teacher: at the same rows; DenseTargets hold projections if `terms.teacher` is given.
        terms: see RowTerms.
    """
    logits_nV = terms.student.transformed(projected_nV)
    ce_n = kd_n = logits_nV.new_zeros(len(logits_nV))
    gradient_nV = None
    if terms.ce_weight is not None:
        ce_n, gradient_nV = _cross_entropy(logits_nV, labels_n)
        gradient_nV.mul_(terms.ce_weight)
    if terms.kd_weight is not None and teacher is not None:
        if terms.teacher is not None and isinstance(teacher, DenseTargets):
            teacher = DenseTargets(terms.teacher.transformed(teacher.logits_NV))
        kd_n, kd_nV = divergence_from_teacher(
            logits_nV, teacher, terms.temperature, terms.divergence, terms.untaught
        )
        kd_nV.mul_(terms.kd_weight)
        gradient_nV = kd_nV if gradient_nV is None else gradient_nV.add_(kd_nV)
    if gradient_nV is None:
        raise ValueError("neither term has a weight")
    slope = terms.student.transform.derivative(logits_nV)
    if isinstance(slope, Tensor) or slope != 1.0:
        gradient_nV.mul_(slope)
    projected_nV.copy_(gradient_nV)
    return ce_n, kd_n


def compiled_row_losses(
    projected_nV: Tensor, labels_n: Tensor, teacher: TeacherRows | None, terms: RowTerms
) -> tuple[Tensor, Tensor]:
    """As `row_losses`, by torch.compile; results differ only by the rounding of float sums.

    Raises:
        Misconfigured: torch.compile does not work here.
    """
    try:
        with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS):
            return _compiled()(projected_nV, labels_n, teacher, terms)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(str(error).split())[:300]
        raise Misconfigured(
            f"device.compile does not work here; set it to false: {reason}"
        ) from error


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(row_losses, fullgraph=True)


def _cross_entropy(logits_nV: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross entropy [n] and its gradient, softmax - onehot [n, V]."""
    labels_n1 = labels_n[:, None]
    log_q_nV = logits_nV.log_softmax(-1)
    ce_n = -log_q_nV.gather(1, labels_n1).squeeze(1)
    gradient_nV = log_q_nV.exp_()
    gradient_nV.scatter_add_(1, labels_n1, gradient_nV.new_full((1, 1), -1.0).expand_as(labels_n1))
    return ce_n, gradient_nV


class HeadGradients:
    """The gradients of hidden states, weight and bias, gathered chunk by chunk, if requested.

    Weight and bias are summed in float32 (float64 if the hidden states are).
    """

    def __init__(
        self, hidden_ND: Tensor, head: OutputHead, wanted: tuple[bool, bool, bool]
    ) -> None:
        """Args:
        hidden_ND: all hidden states; only shape, dtype and device are used.
        head: likewise, its weight and bias.
        wanted: whether the gradients of (hidden states, weight, bias) are requested.
        """
        hidden, weight, bias = wanted
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        self._head = head
        self._factor_dtype = product_dtype(hidden_ND)
        self._hidden_ND = torch.empty_like(hidden_ND) if hidden else None
        self._weight_VD = torch.zeros_like(head.weight_VD, dtype=dtype) if weight else None
        self._bias_V = None
        if bias and head.bias_V is not None:
            self._bias_V = torch.zeros_like(head.bias_V, dtype=dtype)

    def add(self, rows: slice, hidden_nD: Tensor, weight_VD: Tensor, gradient_nV: Tensor) -> None:
        """Adds one chunk's gradient by hidden_nD @ weight.T; `rows` is its place among all rows."""
        if self._bias_V is not None:
            self._bias_V += gradient_nV.sum(0)
        gradient_nV = gradient_nV.to(self._factor_dtype)
        if self._hidden_ND is not None:
            self._hidden_ND[rows] = gradient_by_hidden(gradient_nV, weight_VD)
        if self._weight_VD is not None:
            add_gradient_by_weight(self._weight_VD, gradient_nV, hidden_nD)

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of hidden states, weight and bias, each in its tensor's dtype."""
        weight, bias = self._weight_VD, self._bias_V
        return (
            self._hidden_ND,
            None if weight is None else weight.to(self._head.weight_VD.dtype),
            None if bias is None or self._head.bias_V is None else bias.to(self._head.bias_V.dtype),
        )
