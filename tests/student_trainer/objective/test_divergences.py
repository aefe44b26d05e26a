"""The rest of top_k, from a thousandth of the mass to almost nothing, compared with float64.

Legend: N rows, V vocabulary, K top-k, O = K + 1 outcomes.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from student_trainer.objective.divergences import (
    divergence_from_teacher,
    divergence_named,
    teacher_rows,
)
from student_trainer.targets import DenseTargets, TopKTargets

torch.set_num_threads(1)

N, V, K = 8, 400, 20
DIVERGENCES = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5), ("jsd", 0.1)]


def normal(seed, rows=N):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, V, generator=generator, dtype=torch.float64)


def with_rest(logits_NV, mass, temperature):
    """Returns float32 logits whose K largest leave `mass` at that temperature."""
    falling_NV = (logits_NV / temperature).sort(descending=True).values
    ratio_N1 = falling_NV[:, :K].logsumexp(-1, True) - falling_NV[:, K:].logsumexp(-1, True)
    shift_N1 = temperature * (math.log(mass / (1 - mass)) + ratio_N1)
    is_rest_NV = logits_NV < logits_NV.topk(K).values[:, -1:]
    assert (shift_N1 < 0).all()
    return torch.where(is_rest_NV, logits_NV + shift_N1, logits_NV).float()


def as_on_the_wire(logits_NV, temperature, k=K):
    """Returns float32 targets whose numbers are float64's, rounded once."""
    values_NV, ids_NV = logits_NV.double().sort(descending=True, stable=True)
    return TopKTargets(
        values_NV[:, :k].float(),
        ids_NV[:, :k],
        (values_NV[:, k:] / temperature).logsumexp(-1).float(),
        (values_NV / temperature).logsumexp(-1).float(),
        temperature,
        V,
    )


def exact(student_NV, teacher_NV, temperature, name, beta):
    """Returns D [N], T dD/ds [N, V] by autograd in float64, and the teacher's rest [N]."""
    student_NV = student_NV.double().requires_grad_()
    kept_NV = torch.zeros_like(teacher_NV).scatter_(1, teacher_NV.topk(K).indices, 1).bool()

    def log_outcomes(logits_NV):
        log_NV = F.log_softmax(logits_NV.double() / temperature, -1)
        rest_N1 = log_NV.masked_fill(kept_NV, -math.inf).logsumexp(-1, True)
        return torch.cat([log_NV[kept_NV].view(N, K), rest_N1], 1)

    def kl(a_NO, b_NO):
        return F.kl_div(b_NO, a_NO, reduction="none", log_target=True).sum(-1)

    p_NO, q_NO = log_outcomes(teacher_NV), log_outcomes(student_NV)
    if name == "jsd":
        m_NO = torch.logaddexp(math.log(beta) + p_NO, math.log(1 - beta) + q_NO)
        d_N = beta * kl(p_NO, m_NO) + (1 - beta) * kl(q_NO, m_NO)
    else:
        d_N = kl(p_NO, q_NO) if name == "forward_kl" else kl(q_NO, p_NO)
    d_N.sum().backward()
    return d_N.detach(), temperature * student_NV.grad, p_NO[:, -1].exp()


def ours(student_NV, targets, temperature, name, beta):
    return divergence_from_teacher(
        student_NV, teacher_rows(targets), temperature, divergence_named(name, beta)
    )


@pytest.mark.parametrize("student", ["broad", "near"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
@pytest.mark.parametrize("exponent", range(3, 13))
def test_value_and_gradient_are_accurate_however_small_the_rest(
    exponent, name, beta, temperature, student
):
    """Errors in float32: 1e-6 of D or 1e-6 nats; 1e-5 of the rows' gradient (by its norm)."""
    teacher_NV = with_rest(2 * normal(exponent), 10.0**-exponent, temperature)
    student_NV = 2 * normal(100) if student == "broad" else teacher_NV + normal(100) / 2
    student_NV = student_NV.float()
    exact_N, exact_NV, rest_N = exact(student_NV, teacher_NV, temperature, name, beta)
    assert rest_N.log10().round().eq(-exponent).all()
    targets = as_on_the_wire(teacher_NV, temperature)
    kd_N, gradient_NV = ours(student_NV, targets, temperature, name, beta)
    torch.testing.assert_close(kd_N.double(), exact_N, rtol=1e-6, atol=1e-6)
    assert (gradient_NV.double() - exact_NV).norm() < 1e-5 * exact_NV.norm()


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
def test_top_k_of_the_whole_vocabulary_equals_dense_and_has_no_rest(name, beta):
    student_NV, teacher_NV = normal(1).float(), normal(2).float()
    targets = as_on_the_wire(teacher_NV, 2.0, k=V)
    assert targets.log_rest_t_N.isneginf().all()
    kd_N, gradient_NV = ours(student_NV, targets, 2.0, name, beta)
    dense_N, dense_NV = ours(student_NV, DenseTargets(teacher_NV), 2.0, name, beta)
    torch.testing.assert_close(kd_N, dense_N, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_NV, dense_NV, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "beta"), DIVERGENCES)
def test_a_rest_of_probability_zero_gives_finite_numbers_unless_the_divergence_is_infinite(
    name, beta
):
    teacher_NV = normal(3).float()
    targets = as_on_the_wire(teacher_NV, 1.0)
    targets.log_rest_t_N.fill_(-math.inf)
    kd_N, gradient_NV = ours(normal(4).float(), targets, 1.0, name, beta)
    assert kd_N.isinf().all() if name == "reverse_kl" else kd_N.isfinite().all()
    assert gradient_NV.isfinite().all()


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("vocab_size", [50, 32_000])
def test_jsd_stays_accurate_however_close_student_and_teacher_are(
    vocab_size, beta, temperature, size
):
    """Taken as written in float32, the gradient is off by 5e-3 at 1e-3, TRL's by 2e-3."""
    generator = torch.Generator().manual_seed(1)
    rows = 32 if vocab_size == 50 else 2
    teacher_NV = 3 * torch.randn(rows, vocab_size, generator=generator)
    student_NV = teacher_NV + size * torch.randn(rows, vocab_size, generator=generator)
    log_p, log_q = (
        F.log_softmax(logits_NV.double() / temperature, -1).requires_grad_()
        for logits_NV in (teacher_NV, student_NV)
    )
    log_m = torch.logaddexp(math.log(beta) + log_p, math.log1p(-beta) + log_q)
    exact_N = (beta * log_p.exp() * (log_p - log_m)).sum(-1)
    exact_N = exact_N + ((1 - beta) * log_q.exp() * (log_q - log_m)).sum(-1)
    [by_log_q] = torch.autograd.grad(exact_N.sum(), log_q)
    exact_NV = by_log_q - log_q.exp() * by_log_q.sum(-1, keepdim=True)

    kd_N, gradient_NV = ours(student_NV, DenseTargets(teacher_NV), temperature, "jsd", beta)
    assert (gradient_NV.double() - exact_NV).norm() < 5e-7 * exact_NV.norm()
    allowed = 1e-5 + 1e-6 / (size * beta * (1 - beta))
    assert ((kd_N.double() - exact_N).abs() / exact_N).max() < allowed
    assert gradient_NV.sum(-1).abs().max() < 1e-6 * gradient_NV.abs().sum(-1).max()


@pytest.mark.parametrize("constant", [-300.0, 300.0])
def test_jsd_does_not_depend_on_a_constant_added_to_a_row(constant):
    teacher_NV, student_NV = normal(1).float(), (normal(1) + 0.1 * normal(2)).float()
    # In sixteenths both sums are exact.
    teacher_NV, student_NV = (16 * teacher_NV).round() / 16, (16 * student_NV).round() / 16
    expected_N, expected_NV = ours(student_NV, DenseTargets(teacher_NV), 1.0, "jsd", 0.1)
    kd_N, gradient_NV = ours(student_NV + constant, DenseTargets(teacher_NV), 1.0, "jsd", 0.1)
    torch.testing.assert_close(kd_N, expected_N, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_NV, expected_NV, rtol=1e-5, atol=1e-9)
