"""The loss of a step and its gradients, computed together, a chunk of tokens at a time.

Legend: N tokens (the valid positions of a micro-batch), n tokens of a chunk, V vocabulary, D hidden
size, K top-k. s are student logits, T the temperature, p and q the teacher's and the student's
distribution at T.

    total = [alpha * sum CE + (1 - alpha) * T^2 * sum D(p, q)] / normalizer

`reference.py` computes the same in float64, a row at a time. Here only one chunk's logits exist at
a time: they are turned in place into their gradient, which is multiplied into the gradients of
hidden states and head, and the next chunk reuses their memory. So [N, V] never exists, and the
backward pass recomputes nothing. Arithmetic is float32 whatever the model computes in (float64 if
the model does); `lectern_models/logits/products.py` says which factors are 16 bits wide on CUDA.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lectern_common.checks.vocabularies import Untaught
from lectern_common.errors import InvalidRequest
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.products import projected
from student_trainer.objective.divergences import divergence_named, teacher_rows
from student_trainer.objective.infinite import REVERSE_KL_IS_INFINITE, require_finite
from student_trainer.objective.rows import (
    HeadGradients,
    RowTerms,
    block_rows,
    compiled_row_losses,
    row_losses,
)
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TeacherTargets,
    TopKTargets,
)

_Number = TypeVar("_Number", float, Tensor)

# Rows of a chunk. For each number of the head's gradient a chunk reads and writes 8 bytes and does
# 2 operations a row, so arithmetic takes half the time at 4 x (FLOP/s over bytes/s) rows: 1,181 on
# an H100, 824 on an H200. A CPU core gets there at 64 rows, and to its full speed at 256.
_CHUNK_TOKENS = {"cpu": 256, "cuda": 1280}


@dataclass(frozen=True)
class Objective:
    """What is minimised; the formula is in the module's docstring.

    `divergence` is "forward_kl", "reverse_kl" or "jsd" (with `beta`). `chunk_tokens` changes speed
    and memory, and results only by the order of float sums; None means `auto_chunk_tokens`.
    `compiled` has torch.compile compile the elementwise part at its first use.

    In some ids the teacher has no say: `student_only_ids` is how many, the last ones, only the
    student has, and `untaught_ids` are others, that mean something else to the teacher. There p is
    0, so that the student learns not to produce them, p sums to 1 over the others, and D is over
    all ids of the student.

    `may_be_infinite`: an infinite divergence is a result, as of a measurement; else it is refused.
    """

    alpha: float
    temperature: float
    divergence: str = "forward_kl"
    beta: float | None = None
    chunk_tokens: int | None = None
    compiled: bool = False
    student_only_ids: int = 0
    untaught_ids: tuple[int, ...] = ()
    may_be_infinite: bool = False

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
        if self.student_only_ids < 0:
            raise InvalidRequest(f"student_only_ids is {self.student_only_ids}; it must be >= 0")
        untaught = bool(self.student_only_ids or self.untaught_ids)
        if untaught and self.alpha < 1 and self.divergence == "reverse_kl":
            what = f"the student's last {self.student_only_ids} ids, which it lacks"
            if self.untaught_ids:
                what = f"{len(self.untaught_ids)} ids that mean something else to it"
            raise InvalidRequest(REVERSE_KL_IS_INFINITE.format(what=what), "divergence")

    def leaving_out(self, untaught: Untaught) -> "Objective":
        """Returns the objective with these ids in which the teacher has no say."""
        return replace(self, student_only_ids=untaught.student_only, untaught_ids=untaught.ids)

    def without_cross_entropy(self) -> "Objective":
        """Returns the objective of rows that the student wrote: T^2 * D."""
        return replace(self, alpha=0.0)

    def total(self, ce: _Number, kd: _Number) -> _Number:
        """Returns alpha * CE + (1 - alpha) * T^2 * D, of sums or of means."""
        return self.alpha * ce + (1 - self.alpha) * self.temperature**2 * kd


class StepLoss(NamedTuple):
    """Float64 scalars, and D of each row; `ce_sum` and `kd_sum` are sums over rows, in nats.

    A term without weight is 0.

    `kd_sum` is D at T, without T^2: over K + 1 outcomes with top_k targets, an unbiased estimate
    with sampled ones. Call `backward()` on `total`, once.
    """

    total: Tensor
    ce_sum: Tensor
    kd_sum: Tensor
    kd_N: Tensor


def distillation_loss(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    targets: TeacherTargets | None,
    objective: Objective,
    normalizer: int,
) -> StepLoss:
    """Returns the loss of N rows; gradients reach `hidden_ND` and the head's weight and bias.

    Under `torch.no_grad()`, or if nothing requires a gradient, none is computed.

    Args:
        hidden_ND: the student's final-norm hidden states at the valid positions.
        head: over the student's live parameters; tied ones need no special treatment.
        labels_N: int64, the token that follows each row; 0 <= label < V (no mask value).
        targets: the teacher's at the same N positions; None if and only if alpha is 1.
        normalizer: number of valid positions in the whole optimizer step.

    Raises:
        InvalidRequest: targets are missing or have no effect; their number of rows, vocabulary or
            temperature does not match; they are draws and the divergence is not forward KL; the
            number of labels does not match, or the normalizer is below 1; a loss is infinite,
            because one side rules out an id (a logit of -inf) that the other does not.
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
    """Returns how many rows' float32 logits to compute at a time, whatever the vocabulary.

    They take 2 * 4 * vocab_size bytes a row: the student's and the teacher's.
    """
    return _CHUNK_TOKENS.get(device.type, _CHUNK_TOKENS["cuda"])


@dataclass(frozen=True)
class _Call:
    """The arguments of `distillation_loss` that autograd does not track."""

    head: OutputHead
    labels_N: Tensor
    targets: TeacherTargets | None
    objective: Objective
    normalizer: int


class _LossWithGradients(torch.autograd.Function):
    """Computes the gradients in `forward`; `backward` returns them times the incoming one."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, _weight_VD: Tensor, _bias_V: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs, ctx.gradients = _evaluate(hidden_ND, call, ctx.needs_input_grad[:3])
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("backward() was already called on this StepLoss")
        if total.is_cpu and total.item() == 1:  # on CUDA, item() would wait for the device
            return (*gradients, None)
        return (*(None if part is None else part.mul_(total) for part in gradients), None)


def _evaluate(
    hidden_ND: Tensor, call: _Call, wanted: tuple[bool, bool, bool]
) -> tuple[
    tuple[Tensor, Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]
]:
    """Returns (total, ce_sum, kd_sum, kd_N) and the wanted gradients of hidden, weight and bias.

    For each chunk: (1) multiply both sides' hidden states by their heads, (2) compute the losses
    and overwrite the student's product with their gradient by it, (3) add that to the gradients of
    hidden states and head.
    """
    objective, targets, num_rows = call.objective, call.targets, len(hidden_ND)
    device = hidden_ND.device
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    chunk_tokens = objective.chunk_tokens or auto_chunk_tokens(call.head.vocab_size, device)
    chunk_shape = (min(chunk_tokens, num_rows), call.head.vocab_size)

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        student_nV = torch.empty(chunk_shape, dtype=dtype, device=device)
        teacher_nV = None
        if isinstance(targets, HiddenTargets):
            teacher_shape = (chunk_shape[0], targets.head.vocab_size)
            teacher_nV = torch.empty(teacher_shape, dtype=dtype, device=device)
        # Converted once, here, on CUDA; on the CPU the products widen it a piece at a time.
        weight_VD = call.head.weight_VD.detach()
        if hidden_ND.is_cuda:
            weight_VD = weight_VD.to(hidden_ND.dtype)
        gradients = HeadGradients(hidden_ND, call.head, wanted)
        terms = _row_terms(call, dtype, device)
        losses_2N = torch.zeros(2, num_rows, dtype=dtype, device=device)
        for start in range(0, num_rows, chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, num_rows))
            hidden_nD = hidden_ND[rows]
            projected_nV = projected(hidden_nD, weight_VD, student_nV[: len(hidden_nD)])
            teacher = _chunk_targets(targets, rows, teacher_nV)
            _losses_and_gradient(
                projected_nV, call.labels_N[rows], teacher, terms, objective, losses_2N[:, rows]
            )
            if any(wanted):
                gradients.add(rows, hidden_nD, weight_VD, projected_nV)
        # Not on CUDA unless there may be something to find: reading a value waits for the device.
        may_be = objective.divergence == "reverse_kl" or call.head.bias_V is not None
        if device.type != "cuda" or may_be:
            refused = None if objective.may_be_infinite else targets
            require_finite(
                losses_2N, hidden_ND, call.head, call.labels_N, refused, objective.divergence
            )
        ce_sum, kd_sum = losses_2N.sum(1, dtype=torch.float64).unbind()
        total = objective.total(ce_sum, kd_sum) / call.normalizer
        return (total, ce_sum, kd_sum, losses_2N[1]), gradients.parts()


def _row_terms(call: _Call, dtype: torch.dtype, device: torch.device) -> RowTerms:
    objective, targets = call.objective, call.targets

    def scalar(weight: float) -> Tensor:
        return torch.full((), weight / call.normalizer, dtype=dtype, device=device)

    return RowTerms(
        student=OutputHead(call.head.weight_VD.detach(), call.head.bias_V, call.head.transform),
        teacher=targets.head if isinstance(targets, HiddenTargets) else None,
        temperature=objective.temperature,
        divergence=divergence_named(objective.divergence, objective.beta),
        untaught=torch.tensor(objective.untaught_ids, device=device)
        if objective.untaught_ids
        else None,
        ce_weight=scalar(objective.alpha) if objective.alpha > 0 else None,
        # T^2 from the objective, 1 / T from dD/ds.
        kd_weight=None
        if targets is None
        else scalar((1 - objective.alpha) * objective.temperature),
    )


def _chunk_targets(
    targets: TeacherTargets | None, rows: slice, teacher_nV: Tensor | None
) -> DenseTargets | TopKTargets | SampledTargets | None:
    """Returns the teacher's rows of a chunk; hidden states times the head, in `teacher_nV`."""
    chunk = None if targets is None else targets.rows(rows.start, rows.stop)
    if not isinstance(chunk, HiddenTargets):
        return chunk
    hidden_nD = chunk.hidden_ND
    if teacher_nV is not None:
        teacher_nV = teacher_nV[: len(chunk)]
        if teacher_nV.dtype == torch.float64:
            hidden_nD = hidden_nD.to(teacher_nV.dtype)
    return DenseTargets(projected(hidden_nD, chunk.head.weight_VD, teacher_nV))


def _losses_and_gradient(
    projected_nV: Tensor,
    labels_n: Tensor,
    targets: DenseTargets | TopKTargets | SampledTargets | None,
    terms: RowTerms,
    objective: Objective,
    losses_2n: Tensor,
) -> None:
    """Writes CE and D into `losses_2n`, d total / d projected into `projected_nV`."""
    num_rows, vocab_size = projected_nV.shape
    size = num_rows if objective.compiled else block_rows(vocab_size, projected_nV.device)
    compute = compiled_row_losses if objective.compiled else row_losses
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        teacher = None if targets is None else teacher_rows(targets.rows(rows.start, rows.stop))
        losses_2n[0, rows], losses_2n[1, rows] = compute(
            projected_nV[rows], labels_n[rows], teacher, terms
        )


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
        raise InvalidRequest(f"normalizer is {normalizer}; it must be >= 1")
    if (targets is None) != (objective.alpha == 1):
        raise InvalidRequest(
            f"alpha is {objective.alpha}: "
            + ("the teacher's targets are missing" if targets is None else "targets have no effect")
        )
    if targets is None:
        return
    if len(targets) != len(hidden_ND):
        raise InvalidRequest(f"{len(hidden_ND)} rows, but {len(targets)} teacher rows", "targets")
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
                f"{targets.temperature}, the loss at {objective.temperature}; they are valid only "
                "at their own",
                "temperature",
            )
        if sampled and objective.divergence != "forward_kl":
            raise InvalidRequest(
                f"divergence {objective.divergence} needs the teacher's probability of every "
                "token, but draws give it only for the tokens drawn; use forward_kl, or another "
                "representation than sampled",
                "divergence",
            )
    if isinstance(targets, SampledTargets) and objective.untaught_ids:
        raise InvalidRequest(
            "draws cannot leave out ids that mean something else to the teacher, because it may "
            "draw them; use another representation than sampled",
            "untaught_ids",
        )
    if max(objective.untaught_ids, default=0) >= teacher_vocab:
        raise InvalidRequest(
            f"untaught_ids has id {max(objective.untaught_ids)}, but the teacher has ids below "
            f"{teacher_vocab}",
            "untaught_ids",
        )
    if teacher_vocab + objective.student_only_ids != head.vocab_size:
        raise InvalidRequest(
            f"teacher rows cover {teacher_vocab} ids, but the student has {head.vocab_size} "
            f"({objective.student_only_ids} of them expected to be only its own)",
            "vocab_size",
        )
