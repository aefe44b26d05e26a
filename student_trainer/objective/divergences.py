"""Divergences between the teacher's and the student's distribution, with their gradients.

Legend: N rows, O outcomes; p the teacher's probabilities, q the student's, both at the temperature.

A divergence takes (log_q, log_p), both [N, O], and may overwrite them. It returns

    d_N    D(p, q) in nats
    g_NO   q_o (f_o - sum_j q_j f_j) with f = dD/dq

g is the derivative of D by the outcomes' logits: dD/ds = g / T if every token is an outcome by
itself; a token within a larger outcome gets its share of that, q_token / q_outcome.

Every logarithm must be finite. An outcome with p = 0 contributes 0 to forward_kl and jsd.

For dense and hidden targets every token is an outcome. For top_k the outcomes are the teacher's K
most likely tokens and one for all other tokens, the rest, which is never renormalised away; at
K = V there is no rest. Sampled targets give unbiased estimates of forward_kl and of its gradient.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest
from student_trainer.targets import DenseTargets, SampledTargets, TopKTargets

# Replaces a teacher's -inf (a token ruled out): probability 0, but a finite logarithm.
_LOWEST_LOGIT = -1e30

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SampledRows(NamedTuple):
    """The draws of some rows, as tensors only: one record per distinct id of a row."""

    rows_R: Tensor  # int64, the record's row
    ids_R: Tensor  # int64
    frequencies_R: Tensor  # share of the row's draws
    log_probs_R: Tensor  # log p


TeacherRows = DenseTargets | TopKTargets | SampledRows


def forward_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p log(p / q); g = q - p."""
    p = log_p.exp()
    d_N = log_p.sub_(log_q).mul_(p).sum(-1)
    return d_N, log_q.exp_().sub_(p)


def reverse_kl(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q log(q / p); g = q (log(q / p) - D)."""
    log_ratio = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    d_N = torch.mul(q, log_ratio).sum(-1)
    return d_N, q.mul_(log_ratio.sub_(d_N[:, None]))


def jsd(log_q: Tensor, log_p: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    g = (1 - beta) q (log(q / m) - KL(q || m)).
    """
    p, q = log_p.exp(), log_q.exp()
    # If p and q are both 0, so is m; any finite log m will do then, as it is multiplied by 0.
    log_m = torch.lerp(q, p, beta).clamp_(min=torch.finfo(q.dtype).tiny).log_()
    p_to_m_N = log_p.sub_(log_m).mul_(p).sum(-1)
    log_ratio = log_q.sub_(log_m)
    q_to_m_N = torch.mul(q, log_ratio, out=p).sum(-1)
    d_N = beta * p_to_m_N + (1 - beta) * q_to_m_N
    return d_N, q.mul_(log_ratio.sub_(q_to_m_N[:, None])).mul_(1 - beta)


def divergence_named(name: str, beta: float | None) -> Divergence:
    """Returns the divergence called `name`; beta (0 < beta < 1) is only for jsd.

    Raises:
        InvalidRequest: the name is unknown, or beta is missing, out of range or has no effect.
    """
    plain: dict[str, Divergence] = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}
    if name in plain:
        if beta is not None:
            raise InvalidRequest(f"beta has no effect with divergence {name}", "beta")
        return plain[name]
    if name != "jsd":
        raise InvalidRequest(f"divergence {name} is not forward_kl, reverse_kl or jsd")
    if beta is None or not 0 < beta < 1:
        raise InvalidRequest(f"beta is {beta}; jsd needs 0 < beta < 1", "beta")
    return partial(jsd, beta=beta)


def teacher_rows(targets: DenseTargets | TopKTargets | SampledTargets) -> TeacherRows:
    """Returns the targets as `divergence_from_teacher` takes them: draws as SampledRows."""
    if not isinstance(targets, SampledTargets):
        return targets
    frequencies_R = targets.counts_R.to(torch.float64) / targets.num_draws
    return SampledRows(targets.row_of_record(), targets.ids_R, frequencies_R, targets.log_probs_R)


def divergence_from_teacher(
    logits_nV: Tensor, teacher: TeacherRows, temperature: float, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """Returns D [n] and T dD/ds [n, V], where s are the student's logits.

    Args:
        logits_nV: s, float32 or float64; left unchanged.
        teacher: the teacher at the same rows; left unchanged.
        temperature: T; the targets' own for top_k and sampled.
        divergence: from `divergence_named`; must be forward_kl for draws.
    """
    if isinstance(teacher, TopKTargets):
        return _top_k_divergence(logits_nV, teacher, temperature, divergence)
    if isinstance(teacher, SampledRows):
        if divergence is not forward_kl:
            raise ValueError("sampled targets work only with forward_kl")
        return _sampled_forward_kl(logits_nV, teacher, temperature)
    teacher_nV = teacher.logits_NV.to(logits_nV.dtype).clamp(min=_LOWEST_LOGIT)
    log_p = _scaled(teacher_nV, temperature).log_softmax(-1)
    return divergence(_scaled(logits_nV, temperature).log_softmax(-1), log_p)


def _scaled(logits_nV: Tensor, temperature: float) -> Tensor:
    return logits_nV if temperature == 1 else logits_nV * (1 / temperature)


def _top_k_divergence(
    logits_nV: Tensor, targets: TopKTargets, temperature: float, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """As `divergence_from_teacher`, over K + 1 outcomes, the last the rest; over K if K = V."""
    ids_nK = targets.ids_NK
    num_kept, has_rest = ids_nK.shape[1], ids_nK.shape[1] < targets.vocab_size
    logits_nV = logits_nV * (1 / temperature)
    outcomes_nO = logits_nV.gather(1, ids_nK)
    if has_rest:
        # The rest gets its own shift, so that its mass is exact even if tiny.
        logits_nV.scatter_(1, ids_nK, -math.inf)
        largest_n1 = logits_nV.amax(-1, keepdim=True)
        logits_nV.sub_(largest_n1).exp_()
        sums_n1 = logits_nV.sum(-1, keepdim=True)
        outcomes_nO = torch.cat([outcomes_nO, largest_n1 + sums_n1.log()], dim=1)
    log_q = outcomes_nO.log_softmax(-1)
    log_p = _teacher_outcomes(targets, temperature, has_rest).to(log_q.dtype)
    kd_n, g_nO = divergence(log_q, log_p)
    if has_rest:
        logits_nV.mul_(g_nO[:, num_kept:] / sums_n1)
    return kd_n, logits_nV.scatter_(1, ids_nK, g_nO[:, :num_kept])


def _teacher_outcomes(targets: TopKTargets, temperature: float, has_rest: bool) -> Tensor:
    """Returns log p of each outcome, in float64, which costs little for so few values a row.

    The rest is one more logit, and the normaliser is summed over all of them here: the targets'
    own is rounded, so p would not sum to 1.
    """
    outcomes_nO = targets.logits_NK.to(torch.float64) / temperature
    if has_rest:
        rest_n1 = targets.log_rest_t_N.to(torch.float64)[:, None]
        outcomes_nO = torch.cat([outcomes_nO, rest_n1], dim=1)
    return outcomes_nO.clamp_(min=_LOWEST_LOGIT).log_softmax(-1)


def _sampled_forward_kl(
    logits_nV: Tensor, teacher: SampledRows, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL(p || q) = E_p[log p - log q] as the mean over the draws; T dD/ds = q - count / draws.

    Both are unbiased over draws, and the second is T times the first's own gradient.
    """
    rows_R, ids_R = teacher.rows_R, teacher.ids_R
    log_q_nV = _scaled(logits_nV, temperature).log_softmax(-1)
    frequencies_R = teacher.frequencies_R.to(log_q_nV.dtype)
    log_ratio_R = teacher.log_probs_R.to(log_q_nV.dtype) - log_q_nV[rows_R, ids_R]
    kd_n = logits_nV.new_zeros(len(logits_nV)).index_add_(0, rows_R, log_ratio_R * frequencies_R)
    q_nV = log_q_nV.exp_()
    # A row's ids are distinct, so no element is written twice.
    q_nV[rows_R, ids_R] -= frequencies_R
    return kd_n, q_nV
