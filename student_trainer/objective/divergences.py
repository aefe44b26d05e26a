"""Divergences between the teacher's and the student's distribution, with their gradients.

Legend: N rows, O outcomes; p the teacher's probabilities, q the student's, both at temperature T.

A divergence takes the student's and the teacher's logits, both [N, O], and T; it leaves them
unchanged. A constant added to a row's logits changes nothing. It returns

    d_N    D(p, q) in nats
    g_NO   q_o (f_o - sum_j q_j f_j) with f = dD/dq

g is the derivative of D by the outcomes' logits: dD/ds = g / T if every token is an outcome by
itself; a token within a larger outcome gets its share of that, q_token / q_outcome.

A logit of -inf rules an outcome out: its probability is 0, and 0 log 0 is 0. A row's D is inf if

    forward_kl   the student rules out what the teacher does not; g is still q - p
    reverse_kl   the teacher rules out what the student does not; g is 0, as there is none

and jsd is always finite. Rows that are not logits (nan, inf, all -inf) give nan.

For dense and hidden targets every token is an outcome. For top_k the outcomes are the teacher's K
most likely tokens and one for all other tokens, the rest, which is never renormalised away; at
K = V there is no rest. Sampled targets give unbiased estimates of forward_kl and of its gradient.
Ids in which the teacher has no say (see `Objective`) are ruled out by it. Those among top_k's rest
cannot be told from it: their mass, less than that of the last token kept each, stays with the rest.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lectern_common.errors import InvalidRequest
from lectern_models.logits.masks import LOWEST_LOGIT, with_masks
from student_trainer.targets import DenseTargets, SampledTargets, TopKTargets

# log(q / p) below which q is nothing beside p in float32 (and nearly in float64).
_LOWEST_LOG_RATIO = -30.0

Divergence = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class SampledRows(NamedTuple):
    """The draws of some rows, as tensors only: one record per distinct id of a row."""

    rows_R: Tensor  # int64, the record's row
    ids_R: Tensor  # int64
    frequencies_R: Tensor  # share of the row's draws
    log_probs_R: Tensor  # log p


TeacherRows = DenseTargets | TopKTargets | SampledRows


def forward_kl(student_NO: Tensor, teacher_NO: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p log(p / q); g = q - p."""
    log_q, log_p = _log_softmax(student_NO, temperature), _log_softmax(teacher_NO, temperature)
    p = log_p.exp()
    d_N = _where_not_0(p, log_p.sub_(log_q)).mul_(p).sum(-1)
    return d_N, log_q.exp_().sub_(p)


def reverse_kl(student_NO: Tensor, teacher_NO: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q log(q / p); g = q (log(q / p) - D)."""
    log_q, log_p = _log_softmax(student_NO, temperature), _log_softmax(teacher_NO, temperature)
    log_ratio = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    log_ratio = _where_not_0(q, log_ratio)
    d_N = torch.mul(q, log_ratio).sum(-1)
    g_NO = q.mul_(log_ratio.sub_(d_N[:, None]))
    return d_N, g_NO.masked_fill_(d_N.isinf()[:, None], 0)


def jsd(
    student_NO: Tensor, teacher_NO: Tensor, temperature: float, *, beta: float
) -> tuple[Tensor, Tensor]:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    g = (1 - beta) q (log(q / m) - KL(q || m)).

    Near equality log q - log p and log q - log m lose their digits if they are taken as written,
    so with r = log(q / p), which comes from the difference of the logits themselves:

        log(q / m) = -log1p(beta expm1(-r)),  log(p / m) = log(q / m) - r
    """
    r, q, p = _log_ratio(student_NO, teacher_NO, temperature)
    near = r.clamp(min=_LOWEST_LOG_RATIO)
    # Where r < near, log(q / m) is r - near more: expm1(-r) might overflow there.
    base = near.neg().expm1_().mul_(beta).log1p_().neg_()
    q_to_m = r.sub_(near).add_(base)
    p_to_m = base.sub_(near)
    kl_q_N = torch.mul(q, q_to_m, out=near).sum(-1)
    d_N = beta * p.mul_(p_to_m).sum(-1) + (1 - beta) * kl_q_N
    return d_N, q.mul_(q_to_m.sub_(kl_q_N[:, None])).mul_(1 - beta)


def _log_ratio(
    student_NO: Tensor, teacher_NO: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log(q / p), q and p, [N, O] each; the first is as accurate as the logits' difference.

    r = (s - t) / T - c, where c makes sum_o p_o exp(r_o) = 1. The two normalisers give c to some
    float32 digits of themselves; what that sum then lacks gives the rest.
    """
    q, log_z_q_N1 = _softmax(student_NO, temperature)
    p, log_z_p_N1 = _softmax(teacher_NO, temperature)
    # -inf - -inf is nan: both rule the outcome out, so any finite ratio will do.
    largest = -LOWEST_LOGIT
    r = (student_NO - teacher_NO).nan_to_num_(nan=0.0, posinf=largest, neginf=-largest)
    r = _scaled(r, temperature).sub_(log_z_q_N1 - log_z_p_N1)
    # p expm1(r), as -q expm1(-r) where r > 0, so that nothing overflows.
    lacking_N1 = torch.where(r > 0, -q, p).mul_(r.abs().neg_().expm1_()).sum(-1, keepdim=True)
    return r.sub_(lacking_N1.log1p_()), q, p


def _softmax(logits_NO: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the probabilities [N, O] and their log-normaliser [N, 1]."""
    scaled_NO = _scaled(logits_NO, temperature)
    largest_N1 = scaled_NO.amax(-1, keepdim=True)
    weights_NO = torch.sub(scaled_NO, largest_N1).exp_()
    sums_N1 = weights_NO.sum(-1, keepdim=True)
    return weights_NO.div_(sums_N1), largest_N1 + sums_N1.log()


def _where_not_0(probabilities: Tensor, values: Tensor) -> Tensor:
    """Returns the values, with 0 where the probability is 0: 0 log 0 is 0."""
    # ReLU's backward pass is this function, in a sixth of the time of a mask and masked_fill.
    kept: Tensor = torch.ops.aten.threshold_backward(values, probabilities, 0.0)
    return kept


def _log_softmax(logits_NO: Tensor, temperature: float) -> Tensor:
    return _scaled(logits_NO, temperature).log_softmax(-1)


def _scaled(logits_NO: Tensor, temperature: float) -> Tensor:
    """Returns logits / T; the same tensor at T = 1."""
    return logits_NO if temperature == 1 else logits_NO * (1 / temperature)


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
    logits_nV: Tensor,
    teacher: TeacherRows,
    temperature: float,
    divergence: Divergence,
    untaught: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns D [n] and T dD/ds [n, V], where s are the student's logits.

    Args:
        logits_nV: s, float32 or float64; left unchanged.
        teacher: the teacher at the same rows; left unchanged. Ids that it lacks, the last ones of
            the student, are ruled out.
        temperature: T; the targets' own for top_k and sampled.
        divergence: from `divergence_named`; must be forward_kl for draws.
        untaught: further ids that the teacher rules out; None for draws.
    """
    if isinstance(teacher, TopKTargets):
        if untaught is not None:
            out_nK = torch.isin(teacher.ids_NK, untaught)
            logits_NK = teacher.logits_NK.masked_fill(out_nK, -math.inf)
            teacher = replace(teacher, logits_NK=logits_NK)
        return _top_k_divergence(logits_nV, teacher, temperature, divergence)
    if isinstance(teacher, SampledRows):
        if divergence is not forward_kl:
            raise ValueError("sampled targets work only with forward_kl")
        return _sampled_forward_kl(logits_nV, teacher, temperature)
    teacher_nV = with_masks(teacher.logits_NV.to(logits_nV.dtype))
    if untaught is not None:
        teacher_nV = teacher_nV.index_fill(1, untaught, -math.inf)
    student_only = logits_nV.shape[1] - teacher_nV.shape[1]
    if student_only:
        teacher_nV = F.pad(teacher_nV, (0, student_only), value=-math.inf)
    return divergence(logits_nV, teacher_nV, temperature)


def _top_k_divergence(
    logits_nV: Tensor, targets: TopKTargets, temperature: float, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """As `divergence_from_teacher`, over K + 1 outcomes, the last the rest; over K if K = V.

    The outcomes' logits are at T already, in float64, which costs little for so few a row.
    """
    ids_nK = targets.ids_NK
    num_kept, has_rest = ids_nK.shape[1], ids_nK.shape[1] < logits_nV.shape[1]
    outcomes_nO = logits_nV.gather(1, ids_nK).to(torch.float64) / temperature
    rest_nV = logits_nV * (1 / temperature)
    if has_rest:
        # The rest gets its own shift, so that its mass is exact even if tiny.
        rest_nV.scatter_(1, ids_nK, -math.inf)
        largest_n1 = rest_nV.amax(-1, keepdim=True).clamp_(min=LOWEST_LOGIT)
        rest_nV.sub_(largest_n1).exp_()
        sums_n1 = rest_nV.sum(-1, keepdim=True)
        log_rest_n1 = largest_n1.to(torch.float64) + sums_n1.to(torch.float64).log()
        outcomes_nO = torch.cat([outcomes_nO, log_rest_n1], dim=1)
    teacher_nO = _teacher_outcomes(targets, temperature, has_rest)
    kd_n, g_nO = divergence(outcomes_nO, teacher_nO, 1.0)
    kd_n, g_nO = kd_n.to(logits_nV.dtype), g_nO.to(logits_nV.dtype)
    if has_rest:
        # A rest of only -inf has no share to give.
        rest_nV.mul_(g_nO[:, num_kept:] / sums_n1.clamp_(min=torch.finfo(sums_n1.dtype).tiny))
    return kd_n, rest_nV.scatter_(1, ids_nK, g_nO[:, :num_kept])


def _teacher_outcomes(targets: TopKTargets, temperature: float, has_rest: bool) -> Tensor:
    """Returns the logit of each outcome at T, in float64; the rest is one more.

    The normaliser is summed again over them: the targets' own is rounded, so p would not sum to 1.
    """
    outcomes_nO = targets.logits_NK.to(torch.float64) / temperature
    if has_rest:
        rest_n1 = targets.log_rest_t_N.to(torch.float64)[:, None]
        outcomes_nO = torch.cat([outcomes_nO, rest_n1], dim=1)
    return with_masks(outcomes_nO)


def _sampled_forward_kl(
    logits_nV: Tensor, teacher: SampledRows, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL(p || q) = E_p[log p - log q] as the mean over the draws; T dD/ds = q - count / draws.

    Both are unbiased over draws, and the second is T times the first's own gradient.
    """
    rows_R, ids_R = teacher.rows_R, teacher.ids_R
    log_q_nV = _log_softmax(logits_nV, temperature)
    frequencies_R = teacher.frequencies_R.to(log_q_nV.dtype)
    log_ratio_R = teacher.log_probs_R.to(log_q_nV.dtype) - log_q_nV[rows_R, ids_R]
    kd_n = logits_nV.new_zeros(len(logits_nV)).index_add_(0, rows_R, log_ratio_R * frequencies_R)
    q_nV = log_q_nV.exp_()
    # A row's ids are distinct, so no element is written twice.
    q_nV[rows_R, ids_R] -= frequencies_R
    return kd_n, q_nV
