"""The loss of a step and its gradients, computed together, a chunk of tokens at a time.

Legend: N tokens (the valid positions of a micro-batch), n tokens of a chunk, V vocabulary, D hidden
size, K top-k. s are student logits, T the temperature, p and q the teacher's and the student's
distribution at T.

    total = [alpha * sum CE + (1 - alpha) * T^2 * sum D(p, q)] / normalizer

`reference.py` is the same in float64, a row at a time. Here the logits of a chunk exist, are turned
in place into the gradient, multiplied into the gradients of hidden states and head, and their
memory taken by the next chunk: [N, V] never exists, and the backward pass has nothing left to
recompute. Arithmetic is float32 whatever the model computes in (float64 where it does); on CUDA
the products with 16-bit hidden states take 16-bit factors and accumulate in float32.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lectern_common.errors import InvalidRequest
from lectern_models.output_head import OutputHead
from student_trainer.divergences import Divergence, divergence_from_teacher, divergence_named
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TeacherTargets,
)

# Logits of a chunk, in bytes. On the CPU the handful of passes over them should find them in the
# cache; on CUDA the products need many rows to fill the device.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}
# Fewer rows make poor matrix products, and read and write the head's gradient too often.
_MIN_CHUNK_TOKENS = 64


@dataclass(frozen=True)
class Objective:
    """What is minimised; see the module's head.

    `divergence` is "forward_kl", "reverse_kl" or "jsd" (with `beta`). `chunk_tokens` changes speed
    and memory, and results by the order of float sums alone; None chooses it.
    """

    alpha: float
    temperature: float
    divergence: str = "forward_kl"
    beta: float | None = None
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InvalidRequest(f"alpha is {self.alpha}; it must be 0 to 1", "alpha")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InvalidRequest(
                f"temperature is {self.temperature}; it must be finite and > 0", "temperature"
            )
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise InvalidRequest(f"chunk_tokens is {self.chunk_tokens}; it must be >= 1")
        divergence_named(self.divergence, self.beta)


class StepLoss(NamedTuple):
    """Scalars in float64. Sums over rows, in nats; 0 where the objective gives them no weight.

    `kd_sum` is D at T, without T^2: over K + 1 outcomes with top_k targets, an unbiased estimate
    with sampled ones. `total` is what to call `backward()` on, once.
    """

    total: Tensor
    ce_sum: Tensor
    kd_sum: Tensor


def distillation_loss(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    targets: TeacherTargets | None,
    objective: Objective,
    normalizer: int,
) -> StepLoss:
    """Returns the loss of N rows; gradients reach `hidden_ND` and the head's weight and bias.

    Under `torch.no_grad()`, or where nothing requires a gradient, none is computed.

    Args:
        hidden_ND: the student's final-norm hidden states at the valid positions.
        head: the student's live parameters; tied ones need nothing special.
        labels_N: int64, the token that follows each row; 0 <= label < V (no mask value).
        targets: the teacher at the same N positions; None exactly when alpha is 1.
        normalizer: valid positions of the whole optimizer step.

    Raises:
        InvalidRequest: targets are missing or of no effect, their rows, vocabulary or temperature
            are not the student's, they are draws and the divergence is not forward KL, or a count
            is off.
    """
    _require_consistent(hidden_ND, head, labels_N, targets, objective, normalizer)
    call = _Call(head, labels_N, targets, objective, normalizer)
    if torch.is_grad_enabled():
        outputs = _LossWithGradients.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head.weight_VD, head.bias_V, call
        )
    else:
        outputs, _ = _evaluate(hidden_ND, call, (False, False, False))
    return StepLoss(*outputs)


def auto_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Returns the rows whose float32 logits are computed at a time."""
    wanted = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"])
    return max(_MIN_CHUNK_TOKENS, wanted // (4 * vocab_size))


@dataclass(frozen=True)
class _Call:
    """The arguments of `distillation_loss` that autograd does not look at."""

    head: OutputHead
    labels_N: Tensor
    targets: TeacherTargets | None
    objective: Objective
    normalizer: int


class _LossWithGradients(torch.autograd.Function):
    """Computes the gradients in `forward`; `backward` hands them over, times the incoming one."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, _weight_VD: Tensor, _bias_V: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs, ctx.gradients = _evaluate(hidden_ND, call, ctx.needs_input_grad[:3])
        ctx.mark_non_differentiable(outputs[1], outputs[2])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a StepLoss were handed over before")
        return (*(None if part is None else part.mul_(total) for part in gradients), None)


def _evaluate(
    hidden_ND: Tensor, call: _Call, wanted: tuple[bool, bool, bool]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Returns (total, ce_sum, kd_sum) and the wanted gradients of hidden, weight and bias.

    For each chunk: (1) student logits, (2) the losses and their gradient by the logits, (3) through
    the head's transform, (4) into the gradients of hidden states and head.
    """
    objective, num_rows, vocab_size = call.objective, len(hidden_ND), call.head.vocab_size
    device = hidden_ND.device
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    chunk_tokens = objective.chunk_tokens or auto_chunk_tokens(vocab_size, device)
    buffers = _Buffers(min(chunk_tokens, num_rows), vocab_size, dtype, device)
    divergence = divergence_named(objective.divergence, objective.beta)
    sums_2 = torch.zeros(2, dtype=torch.float64, device=device)

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        head = _with_operands(call.head, hidden_ND)
        targets = _targets_with_operands(call.targets, dtype)
        gradients = _Gradients(hidden_ND, call.head, wanted, dtype)
        for start in range(0, num_rows, chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, num_rows))
            hidden_nD = hidden_ND[rows].to(head.weight_VD.dtype)
            logits_nV = head.logits(hidden_nD, buffers.get("student", rows))
            slope = head.transform.derivative(logits_nV) if any(wanted) else 1.0
            chunk_targets = None if targets is None else targets.rows(rows.start, rows.stop)
            ce_n, kd_n, gradient_nV = _losses_and_gradient(
                logits_nV, call, rows, chunk_targets, divergence, buffers
            )
            sums_2 += torch.stack([ce_n.sum(dtype=torch.float64), kd_n.sum(dtype=torch.float64)])
            if any(wanted):
                if isinstance(slope, Tensor) or slope != 1.0:
                    gradient_nV.mul_(slope)
                gradients.add(rows, hidden_nD, head.weight_VD, gradient_nV)
        ce_sum, kd_sum = sums_2.unbind()
        total = objective.alpha * ce_sum
        total = total + (1 - objective.alpha) * objective.temperature**2 * kd_sum
        return (total / call.normalizer, ce_sum, kd_sum), gradients.parts()


def _losses_and_gradient(
    logits_nV: Tensor,
    call: _Call,
    rows: slice,
    targets: TeacherTargets | None,
    divergence: Divergence,
    buffers: "_Buffers",
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns CE [n], D [n] and d total / d logits [n, V]; overwrites `logits_nV`.

    No cross entropy at alpha 0, no divergence without targets: 0 stands for them.
    """
    alpha, temperature = call.objective.alpha, call.objective.temperature
    ce_weight = alpha / call.normalizer
    # T^2 of the objective, 1 / T of dD/ds.
    kd_weight = (1 - alpha) * temperature / call.normalizer
    zero = logits_nV.new_zeros(())
    if targets is None:
        gradient_nV = buffers.get("cross_entropy", rows)
        ce_n = _cross_entropy(logits_nV, call.labels_N[rows], ce_weight, gradient_nV)
        return ce_n, zero, gradient_nV
    scratch = partial(buffers.get, rows=rows)
    if alpha == 0:
        kd_n, kd_nV = divergence_from_teacher(logits_nV, targets, temperature, divergence, scratch)
        return zero, kd_n, kd_nV.mul_(kd_weight)
    gradient_nV = buffers.get("cross_entropy", rows)
    ce_n = _cross_entropy(logits_nV, call.labels_N[rows], ce_weight, gradient_nV)
    kd_n, kd_nV = divergence_from_teacher(logits_nV, targets, temperature, divergence, scratch)
    return ce_n, kd_n, gradient_nV.add_(kd_nV, alpha=kd_weight)


def _cross_entropy(
    logits_nV: Tensor, labels_n: Tensor, weight: float, gradient_nV: Tensor
) -> Tensor:
    """Returns the cross entropy [n]; writes weight * (softmax - onehot) into `gradient_nV`."""
    labels_n1 = labels_n[:, None]
    largest_n1 = logits_nV.amax(-1, keepdim=True)
    torch.sub(logits_nV, largest_n1, out=gradient_nV).exp_()
    sums_n1 = gradient_nV.sum(-1, keepdim=True)
    gradient_nV.mul_(weight / sums_n1)
    gradient_nV.scatter_(1, labels_n1, gradient_nV.gather(1, labels_n1) - weight)
    return (sums_n1.log() - (logits_nV.gather(1, labels_n1) - largest_n1)).squeeze(1)


@dataclass
class _Buffers:
    """Memory for a chunk's [n, V] tensors, made when first asked for and used by every chunk."""

    num_rows: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str, rows: slice) -> Tensor:
        """Returns the named tensor, cut to as many rows; what is in it is the last user's."""
        if name not in self._tensors:
            self._tensors[name] = torch.empty(
                self.num_rows, self.vocab_size, dtype=self.dtype, device=self.device
            )
        return self._tensors[name][: rows.stop - rows.start]


class _Gradients:
    """Gradients of hidden states, weight and bias, filled a chunk at a time; None: not wanted."""

    def __init__(
        self,
        hidden_ND: Tensor,
        head: OutputHead,
        wanted: tuple[bool, bool, bool],
        dtype: torch.dtype,
    ) -> None:
        hidden, weight, bias = wanted
        self._head = head
        self.hidden_ND = torch.empty_like(hidden_ND) if hidden else None
        self.weight_VD = torch.zeros_like(head.weight_VD, dtype=dtype) if weight else None
        self.bias_V = (
            torch.zeros_like(head.bias_V, dtype=dtype) if bias and head.bias_V is not None else None
        )

    def add(self, rows: slice, hidden_nD: Tensor, weight_VD: Tensor, gradient_nV: Tensor) -> None:
        """Takes in dL/d(projected) of a chunk, with hidden states and weight in operand dtype."""
        if self.bias_V is not None:
            self.bias_V += gradient_nV.sum(0)
        factor_nV = gradient_nV.to(weight_VD.dtype)
        if self.hidden_ND is not None:
            self.hidden_ND[rows] = factor_nV @ weight_VD
        if self.weight_VD is None:
            return
        if factor_nV.dtype == self.weight_VD.dtype:
            self.weight_VD.addmm_(factor_nV.T, hidden_nD)
        else:
            self.weight_VD += torch.mm(factor_nV.T, hidden_nD, out_dtype=self.weight_VD.dtype)

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of hidden states, weight and bias in their parameters' dtypes."""
        weight, bias = self.weight_VD, self.bias_V
        return (
            self.hidden_ND,
            None if weight is None else weight.to(self._head.weight_VD.dtype),
            None if bias is None or self._head.bias_V is None else bias.to(self._head.bias_V.dtype),
        )


def _with_operands(head: OutputHead, hidden_ND: Tensor) -> OutputHead:
    """Returns the head in the dtype its products take, so that no chunk converts it again."""
    dtype = hidden_ND.dtype
    if not hidden_ND.is_cuda:
        dtype = torch.promote_types(dtype, torch.float32)
    return OutputHead(head.weight_VD.detach().to(dtype), head.bias_V, head.transform)


def _targets_with_operands(
    targets: TeacherTargets | None, dtype: torch.dtype
) -> TeacherTargets | None:
    """Returns the targets; hidden ones with their head in the dtype its products take."""
    if not isinstance(targets, HiddenTargets):
        return targets
    hidden_ND = targets.hidden_ND
    if dtype == torch.float64:
        hidden_ND = hidden_ND.to(dtype)
    return HiddenTargets(hidden_ND, _with_operands(targets.head, hidden_ND))


def _require_consistent(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    targets: TeacherTargets | None,
    objective: Objective,
    normalizer: int,
) -> None:
    if len(labels_N) != len(hidden_ND):
        raise InvalidRequest(f"{len(hidden_ND)} rows, but {len(labels_N)} labels", "labels")
    if normalizer < 1:
        raise InvalidRequest(f"normalizer is {normalizer}; a step has valid positions")
    if (targets is None) != (objective.alpha == 1):
        raise InvalidRequest(
            f"alpha is {objective.alpha}: "
            + ("a teacher's targets are missing" if targets is None else "targets have no effect")
        )
    if targets is None:
        return
    if len(targets) != len(hidden_ND):
        raise InvalidRequest(f"{len(hidden_ND)} rows, but {len(targets)} of the teacher", "targets")
    if isinstance(targets, HiddenTargets):
        teacher_vocab = targets.head.vocab_size
    elif isinstance(targets, DenseTargets):
        teacher_vocab = targets.logits_NV.shape[1]
    else:
        teacher_vocab = targets.vocab_size
        sampled = isinstance(targets, SampledTargets)
        if targets.temperature != objective.temperature:
            raise InvalidRequest(
                f"{'sampled' if sampled else 'top_k'} targets are at temperature "
                f"{targets.temperature}, the loss at {objective.temperature}; they hold at their "
                "own alone",
                "temperature",
            )
        if sampled and objective.divergence != "forward_kl":
            raise InvalidRequest(
                f"divergence {objective.divergence} needs the teacher's probability of every "
                "token, and draws tell it of those drawn alone; take forward_kl, or another "
                "representation than sampled",
                "divergence",
            )
    if teacher_vocab != head.vocab_size:
        raise InvalidRequest(
            f"teacher rows cover {teacher_vocab} ids, the student has {head.vocab_size}",
            "vocab_size",
        )
