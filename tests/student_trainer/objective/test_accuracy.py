"""How far loss and gradients are from float64 when student and teacher are close.

At KL about 0.02 nats the gradient is a small difference of two nearly equal distributions: rounding
before the subtraction spoils it, rounding after it does not.

Legend: N rows, V vocabulary, D hidden size of both sides, O outcomes, R records of draws.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.products import add_gradient_by_weight, gradient_by_hidden
from lectern_models.logits.sampled import draw, uniforms
from student_trainer.objective import rows
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.targets import DenseTargets, HiddenTargets, SampledTargets, TopKTargets
from tests.student_trainer.objective.test_loss import top_k_targets

torch.set_num_threads(1)

N, V, D, K, DRAWS = 96, 700, 48, 20, 50
CASES = [
    (representation, *divergence)
    for representation in ("dense", "hidden", "top_k", "sampled")
    for divergence in (("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5))
    if representation != "sampled" or divergence[0] == "forward_kl"
]


@dataclass
class Pair:
    """A student close to its teacher; every number is exact in bfloat16."""

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    teacher_ND: torch.Tensor
    teacher_VD: torch.Tensor
    labels_N: torch.Tensor

    def targets(self, representation, temperature, dtype):
        if representation == "hidden":
            head = OutputHead(self.teacher_VD.to(dtype))
            return HiddenTargets(self.teacher_ND.to(dtype), head)
        logits_NV = self.teacher_ND.double() @ self.teacher_VD.double().T
        if representation == "dense":
            return DenseTargets(logits_NV.float())
        if representation == "top_k":
            return top_k_targets(logits_NV, temperature, K)
        values = uniforms(0, np.arange(N, dtype=np.uint32), np.ones(N, bool), DRAWS)
        draws = draw(logits_NV, torch.from_numpy(values), temperature)
        starts = np.concatenate([[0], np.cumsum(draws.row_lengths_C.numpy())])
        return SampledTargets(
            draws.ids_R, draws.counts_R, draws.log_probs_R, starts, DRAWS, temperature, V
        )


def close_pair():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, spread=1.0):
        return spread * torch.randn(*shape, generator=generator)

    teacher_ND, teacher_VD = normal(N, D), normal(V, D, spread=2 * D**-0.5)
    student = (teacher_ND + normal(N, D, spread=0.07), teacher_VD + normal(V, D, spread=0.02))
    tensors = (*student, teacher_ND, teacher_VD)
    hidden_ND, weight_VD, teacher_ND, teacher_VD = (t.bfloat16().float() for t in tensors)
    labels_N = torch.randint(V, (N,), generator=generator)
    return Pair(hidden_ND, weight_VD, teacher_ND, teacher_VD, labels_N)


def computed(pair, case, dtype, temperature=1.0, alpha=0.0, chunk_tokens=40):
    """Returns (StepLoss, dX, dW) of the objective with factors stored in that dtype."""
    representation, divergence, beta = case
    hidden_ND = pair.hidden_ND.to(dtype, copy=True).requires_grad_()
    weight_VD = pair.weight_VD.to(dtype, copy=True).requires_grad_()
    targets = pair.targets(representation, temperature, dtype)
    objective = Objective(alpha, temperature, divergence, beta, chunk_tokens)
    loss = distillation_loss(hidden_ND, OutputHead(weight_VD), pair.labels_N, targets, objective, N)
    loss.total.backward()
    return loss, hidden_ND.grad, weight_VD.grad


def exact(pair, case, temperature=1.0, alpha=0.0):
    """Returns (total, sum of D, dX, dW) by autograd in float64 from the same inputs."""
    representation, divergence, beta = case
    hidden_ND = pair.hidden_ND.double().requires_grad_()
    weight_VD = pair.weight_VD.double().requires_grad_()
    targets = pair.targets(representation, temperature, torch.float64)
    logits_NV = hidden_ND @ weight_VD.T
    log_q_NV = F.log_softmax(logits_NV / temperature, -1)
    if isinstance(targets, SampledTargets):
        rows_R = targets.row_of_record()
        log_ratio_R = targets.log_probs_R.double() - log_q_NV[rows_R, targets.ids_R]
        kd_sum = (log_ratio_R * targets.counts_R).sum() / DRAWS
    else:
        log_p_NO, log_q_NO = outcomes(targets, log_q_NV, temperature)
        kd_sum = divergence_sum(log_p_NO, log_q_NO, divergence, beta)
    total = alpha * F.cross_entropy(logits_NV, pair.labels_N, reduction="sum")
    total = (total + (1 - alpha) * temperature**2 * kd_sum) / N
    total.backward()
    return total.item(), kd_sum.item(), hidden_ND.grad, weight_VD.grad


def outcomes(targets, log_q_NV, temperature):
    """Returns log p and log q of each outcome [N, O]; top_k's last one is the rest."""
    if isinstance(targets, TopKTargets):
        kept_NV = torch.zeros_like(log_q_NV).scatter_(1, targets.ids_NK, 1).bool()
        log_rest_N1 = log_q_NV.masked_fill(kept_NV, -math.inf).logsumexp(-1, True)
        log_q_NO = torch.cat([log_q_NV.gather(1, targets.ids_NK), log_rest_N1], 1)
        logits_NO = [
            targets.logits_NK.double() / temperature,
            targets.log_rest_t_N.double()[:, None],
        ]
        return F.log_softmax(torch.cat(logits_NO, 1), -1), log_q_NO
    teacher_NV = (
        targets.logits_NV
        if isinstance(targets, DenseTargets)
        else targets.hidden_ND @ targets.head.weight_VD.T
    )
    return F.log_softmax(teacher_NV.double() / temperature, -1), log_q_NV


def divergence_sum(log_p_NO, log_q_NO, divergence, beta):
    def kl(log_a, log_b):
        return F.kl_div(log_b, log_a, reduction="sum", log_target=True)

    if divergence == "forward_kl":
        return kl(log_p_NO, log_q_NO)
    if divergence == "reverse_kl":
        return kl(log_q_NO, log_p_NO)
    log_m = torch.logaddexp(math.log(beta) + log_p_NO, math.log(1 - beta) + log_q_NO)
    return beta * kl(log_p_NO, log_m) + (1 - beta) * kl(log_q_NO, log_m)


def error(ours, exactly):
    """Returns the norm of the difference over the norm of the exact value."""
    return ((ours.double() - exactly).norm() / exactly.norm()).item()


def test_the_pair_is_as_close_as_these_tests_assume():
    _, kd_sum, *_ = exact(close_pair(), ("hidden", "forward_kl", None))
    assert 0.015 < kd_sum / N < 0.025


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16_factors_cost_at_most_half_a_percent_of_the_gradients(case, temperature):
    pair = close_pair()
    loss, dx, dw = computed(pair, case, torch.bfloat16, temperature)
    total, _, exact_dx, exact_dw = exact(pair, case, temperature)
    # A mean of draws of both signs may be small compared with its parts.
    scale = abs(total) if case[0] != "sampled" else max(abs(total), 0.02)
    assert abs(loss.total.item() - total) < 1e-4 * scale
    assert dx.dtype == dw.dtype == torch.bfloat16
    assert error(dx, exact_dx) < 5e-3
    assert error(dw, exact_dw) < 5e-3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_parameters_behind_bfloat16_states_get_a_float32_gradient(case):
    """Mixed precision on the CPU: the head's gradient is not rounded anywhere."""
    pair = close_pair()
    hidden_ND = pair.hidden_ND.bfloat16().requires_grad_()
    weight_VD = pair.weight_VD.clone().requires_grad_()
    targets = pair.targets(case[0], 1.0, torch.bfloat16)
    objective = Objective(0.0, 1.0, case[1], case[2], 40)
    head = OutputHead(weight_VD)
    distillation_loss(hidden_ND, head, pair.labels_N, targets, objective, N).total.backward()
    _, _, _, exact_dw = exact(pair, case)
    assert weight_VD.grad.dtype == torch.float32
    assert error(weight_VD.grad, exact_dw) < 3e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_16_bit_factors_cost_at_most_half_a_percent_of_the_gradients(case, monkeypatch):
    """What CUDA does: the gradient by the logits is rounded to bfloat16 before its two products."""
    monkeypatch.setattr(rows, "product_dtype", lambda _: torch.bfloat16)
    pair = close_pair()
    _, dx, dw = computed(pair, case, torch.bfloat16)
    _, _, exact_dx, exact_dw = exact(pair, case)
    assert error(dx, exact_dx) < 5e-3
    assert error(dw, exact_dw) < 5e-3


def test_a_gradient_rounded_once_costs_a_fifth_of_a_percent():
    generator = torch.Generator().manual_seed(0)
    gradient_NV, weight_VD, hidden_ND = (
        torch.randn(*shape, generator=generator) for shape in ((N, V), (V, D), (N, D))
    )
    exact_ND = gradient_NV.double() @ weight_VD.double()
    exact_VD = gradient_NV.double().T @ hidden_ND.double()
    narrow_NV, sum_VD = gradient_NV.bfloat16(), torch.zeros(V, D)
    add_gradient_by_weight(sum_VD, narrow_NV, hidden_ND)
    assert 1e-3 < error(gradient_by_hidden(narrow_NV, weight_VD), exact_ND) < 2e-3
    assert 1e-3 < error(sum_VD, exact_VD) < 2e-3


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_gives_the_same_at_any_chunk_size_and_is_near_float64(case, alpha):
    pair = close_pair()
    whole, whole_dx, whole_dw = computed(pair, case, torch.float32, 2.0, alpha, chunk_tokens=N)
    total, _, exact_dx, exact_dw = exact(pair, case, 2.0, alpha)
    assert abs(whole.total.item() - total) < 1e-4 * max(abs(total), 0.02)
    assert error(whole_dx, exact_dx) < 3e-5
    assert error(whole_dw, exact_dw) < 3e-5
    for chunk_tokens in (1, 7, 64, 95, 1000):
        loss, dx, dw = computed(pair, case, torch.float32, 2.0, alpha, chunk_tokens)
        assert loss.total.item() == pytest.approx(whole.total.item(), rel=1e-6)
        assert error(dx, whole_dx.double()) < 1e-6
        assert error(dw, whole_dw.double()) < 1e-6
