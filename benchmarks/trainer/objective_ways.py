"""Forward KL at T = 1, computed by the trainer, by plain PyTorch, by TRL and by Liger.

Each goes from the hidden states and heads of student and teacher to the loss and the gradients of
the student's hidden states and head. No cross entropy: TRL's kernel has none.

Legend: N tokens, V vocabulary, D and E hidden sizes of student and teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lectern_models.logits.output_head import OutputHead
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.targets import HiddenTargets

_OBJECTIVE = Objective(alpha=0.0, temperature=1.0)
# Vocabulary ids per float64 matrix product.
_EXACT_IDS = 8192


@dataclass(frozen=True)
class Case:
    """Sizes, and the dtype in which hidden states and heads are stored: float32 or bfloat16."""

    vocab_size: int
    student_hidden: int
    teacher_hidden: int
    tokens: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Inputs:
    hidden_ND: Tensor
    weight_VD: Tensor
    teacher_NE: Tensor
    teacher_VE: Tensor
    labels_N: Tensor


def inputs(case: Case) -> Inputs:
    """Returns a student and a teacher that differ by about 0.02 nats, the same on every call.

    Every number is exact in bfloat16. The teacher's logits are the student's plus noise of 0.2: its
    first D columns are the student's own.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    width, more = case.student_hidden, case.teacher_hidden - case.student_hidden

    def normal(rows: int, columns: int, spread: float = 1.0) -> Tensor:
        values = torch.randn(rows, columns, generator=generator, dtype=torch.bfloat16)
        return values.mul_(spread)

    hidden_ND, weight_VD = normal(case.tokens, width), normal(case.vocab_size, width, width**-0.5)
    teacher_NE = torch.cat([hidden_ND, normal(case.tokens, more)], 1)
    teacher_VE = torch.empty(case.vocab_size, case.teacher_hidden, dtype=dtype)
    teacher_VE[:, :width] = weight_VD
    teacher_VE[:, width:] = normal(case.vocab_size, more, 0.2 * more**-0.5)
    return Inputs(
        hidden_ND.to(dtype).requires_grad_(),
        weight_VD.to(dtype).requires_grad_(),
        teacher_NE.to(dtype),
        teacher_VE,
        torch.randint(case.vocab_size, (case.tokens,), generator=generator),
    )


def ours(given: Inputs) -> Tensor:
    targets = HiddenTargets(given.teacher_NE, OutputHead(given.teacher_VE))
    head = OutputHead(given.weight_VD)
    arguments = (given.labels_N, targets, _OBJECTIVE, len(given.labels_N))
    return distillation_loss(given.hidden_ND, head, *arguments).total


def plain(given: Inputs) -> Tensor:
    """All logits at once, as a plain loop computes them: in the models' dtype, then float32."""
    student = (given.hidden_ND @ given.weight_VD.T).float()
    teacher = (given.teacher_NE @ given.teacher_VE.T).float()
    return functional.kl_div(
        functional.log_softmax(student, -1),
        functional.log_softmax(teacher, -1),
        log_target=True,
        reduction="batchmean",
    )


def trl(given: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    # beta 0 is the forward KL.
    sides = (given.hidden_ND, given.weight_VD, None, given.teacher_NE, given.teacher_VE, None)
    apply: Any = ChunkedDivergenceFunction.apply  # has no types
    divergence_N, _entropy_N = apply(*sides, 0.0)
    mean: Tensor = divergence_N.sum() / len(given.labels_N)
    return mean


def liger(given: Inputs) -> Tensor:
    """Liger with its defaults: chunks of 1,024 tokens through torch.compile."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    divergence = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    sides = (given.hidden_ND, given.weight_VD, given.teacher_NE, given.teacher_VE)
    loss: Tensor = divergence(*sides, given.labels_N)
    return loss


WAYS: dict[str, Callable[[Inputs], Tensor]] = {
    "ours": ours,
    "plain": plain,
    "trl": trl,
    "liger": liger,
}


def step(way: str, given: Inputs) -> float:
    """Returns the loss; its gradients are in the inputs' `.grad`."""
    given.hidden_ND.grad = given.weight_VD.grad = None
    loss = WAYS[way](given)
    loss.backward()
    return loss.item()


@torch.no_grad()
def exact(given: Inputs) -> tuple[float, Tensor, Tensor]:
    """Returns loss and gradients of hidden states and weight in float64, some ids at a time."""
    hidden_ND, teacher_NE = given.hidden_ND.double(), given.teacher_NE.double()
    pieces = range(0, len(given.weight_VD), _EXACT_IDS)
    weights = [given.weight_VD[start : start + _EXACT_IDS] for start in pieces]
    heads = [given.teacher_VE[start : start + _EXACT_IDS] for start in pieces]
    student_NV = torch.cat([hidden_ND @ weight.double().T for weight in weights], 1)
    teacher_NV = torch.cat([teacher_NE @ head.double().T for head in heads], 1)
    log_q, log_p = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    loss = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    gradient_NV = (log_q.exp() - log_p.exp()) / len(hidden_ND)
    by_piece = zip(gradient_NV.split(_EXACT_IDS, 1), weights, strict=True)
    by_hidden = torch.stack([part @ weight.double() for part, weight in by_piece]).sum(0)
    return loss.item(), by_hidden, gradient_NV.T @ hidden_ND


def error(computed: Tensor | None, exactly: Tensor) -> float:
    """Returns the norm of the difference over the norm of `exactly`."""
    if computed is None:
        return float("nan")
    return float((computed.double() - exactly).norm() / exactly.norm())
