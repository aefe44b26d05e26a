"""Distillation from draws: the loss and gradient of given draws, and their averages over draws.

Legend: N rows, V vocabulary, U draws of a row, S seeds, R records.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lectern_common.errors import InvalidRequest
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.sampled import draw, uniforms
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.objective.reference import kd_logit_gradient, kd_loss
from student_trainer.targets import DenseTargets, SampledTargets, of_step
from tests.student_trainer.objective.test_loss import LargestTensor, largest_error, make_case

torch.set_num_threads(1)


def targets_of(draws, num_draws, temperature, vocab_size, dtype=torch.float32):
    row_starts = np.concatenate([[0], np.cumsum(draws.row_lengths_C.numpy())])
    return SampledTargets(
        draws.ids_R,
        draws.counts_R,
        draws.log_probs_R.to(dtype),
        row_starts,
        num_draws,
        temperature,
        vocab_size,
    )


def sampled_targets(logits_NV, num_draws, temperature, seed=0, dtype=torch.float32):
    """Returns targets drawn at each row, as if the rows were the positions of one sequence."""
    num_rows, vocab_size = logits_NV.shape
    values = uniforms(
        seed, np.arange(num_rows, dtype=np.uint32), np.ones(num_rows, bool), num_draws
    )
    draws = draw(logits_NV, torch.from_numpy(values), temperature)
    if dtype == torch.float64:
        log_p_NV = F.log_softmax(logits_NV.double() / temperature, -1)
        rows_R = torch.repeat_interleave(torch.arange(num_rows), draws.row_lengths_C)
        draws = draws._replace(log_probs_R=log_p_NV[rows_R, draws.ids_R])
    return targets_of(draws, num_draws, temperature, vocab_size, dtype)


def drawn_ids(targets):
    """Returns each row's draws, each id as often as drawn."""
    rows = [targets.rows(row, row + 1) for row in range(len(targets))]
    return [torch.repeat_interleave(row.ids_R, row.counts_R).tolist() for row in rows]


def by_logit(logits_NV, targets, objective, labels_N=None):
    """Returns (StepLoss, d total / d logits [N, V]) with a normalizer of 1."""
    logits_NV = logits_NV.clone().requires_grad_()
    head = OutputHead(torch.eye(logits_NV.shape[1], dtype=logits_NV.dtype))
    labels_N = torch.zeros(len(logits_NV), dtype=torch.int64) if labels_N is None else labels_N
    loss = distillation_loss(logits_NV, head, labels_N, targets, objective, 1)
    loss.total.backward()
    return loss, logits_NV.grad


# ---- given draws ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(1, 23),
    num_draws=st.integers(1, 256),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0, 10.0]),
    alpha=st.sampled_from([0.0, 0.4]),
    chunk_tokens=st.integers(1, 7),
)
def test_loss_and_gradient_equal_the_reference_at_each_position(
    seed, vocab, num_draws, temperature, alpha, chunk_tokens
):
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = 2 * torch.randn(2, 5, vocab, generator=generator, dtype=torch.float64)
    labels_N = torch.randint(vocab, (5,), generator=generator)
    targets = sampled_targets(teacher_NV, num_draws, temperature, seed, torch.float64)
    objective = Objective(alpha, temperature, chunk_tokens=chunk_tokens)
    loss, gradient_NV = by_logit(student_NV, targets, objective, labels_N)
    pairs = zip(student_NV.numpy(), teacher_NV.numpy(), labels_N.tolist(), strict=True)
    rows = [
        (*pair, temperature, alpha, "forward_kl", None, None, draws)
        for pair, draws in zip(pairs, drawn_ids(targets), strict=True)
    ]
    assert loss.total.item() == pytest.approx(sum(kd_loss(*row) for row in rows), rel=1e-11)
    for row, gradient_V in zip(rows, gradient_NV, strict=True):
        np.testing.assert_allclose(gradient_V, kd_logit_gradient(*row), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transform", ["plain", "scale", "divisor", "soft_cap"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_every_gradient_is_the_exact_gradient_of_the_estimate(alpha, transform):
    """Against autograd in float64 on the plain formula, through the head."""
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        case = make_case(transform=transform, dtype=dtype)
        targets = sampled_targets(case.teacher_logits_NV, 12, 1.5, dtype=torch.float64)
        given_targets = replace(targets, log_probs_R=targets.log_probs_R.to(dtype))
        objective = Objective(alpha, 1.5, chunk_tokens=5)
        loss = distillation_loss(
            case.hidden_ND, case.head, case.labels_N, given_targets, objective, normalizer=40
        )
        loss.total.backward()

        leaves = [
            tensor.detach().double().requires_grad_()
            for tensor in (case.hidden_ND, case.weight_VD, case.bias_V)
        ]
        hidden_ND, weight_VD, bias_V = leaves
        logits_NV = (hidden_ND @ weight_VD.T + bias_V) * case.transform.scale
        logits_NV = logits_NV / case.transform.divisor
        if case.transform.soft_cap is not None:
            logits_NV = case.transform.soft_cap * torch.tanh(logits_NV / case.transform.soft_cap)
        log_q_NV = F.log_softmax(logits_NV / 1.5, -1)
        log_p_NV = F.log_softmax(case.teacher_logits_NV / 1.5, -1)
        kd_sum = sum(
            (
                (log_p_NV[row, ids] - log_q_NV[row, ids]).mean()
                for row, ids in enumerate(drawn_ids(targets))
            ),
            torch.zeros((), dtype=torch.float64),
        )
        ce_sum = F.cross_entropy(logits_NV, case.labels_N, reduction="sum")
        total = (alpha * ce_sum + (1 - alpha) * 1.5**2 * kd_sum) / 40
        total.backward()
        assert loss.kd_sum.item() == pytest.approx(kd_sum.item(), rel=3 * tolerance)
        assert loss.total.item() == pytest.approx(total.item(), rel=3 * tolerance)
        for ours, exact in zip(case.gradients(), leaves, strict=True):
            assert ours.dtype == dtype
            assert largest_error(ours, exact.grad) < tolerance


def test_frequencies_equal_to_the_probabilities_give_the_dense_result():
    """p of 1/2, 1/4, 1/8, 1/8 drawn exactly as often in 16 draws."""
    p_V = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    student_1V = torch.tensor([[0.3, -1.0, 2.0, 0.7]], dtype=torch.float64)
    targets = SampledTargets(
        torch.arange(4), torch.tensor([8, 4, 2, 2]), p_V.log(), np.array([0, 4]), 16, 1.0, 4
    )
    ours, ours_1V = by_logit(student_1V, targets, Objective(0.0, 1.0))
    dense, dense_1V = by_logit(student_1V, DenseTargets(p_V.log()[None]), Objective(0.0, 1.0))
    assert ours.kd_sum.item() == pytest.approx(dense.kd_sum.item(), rel=1e-12)
    torch.testing.assert_close(ours_1V, dense_1V)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 12, 13, 14, 1000])
def test_any_chunk_size_gives_the_whole_batch_result(chunk_tokens):
    results = []
    for size in (chunk_tokens, 13):
        case = make_case(transform="soft_cap")
        targets = sampled_targets(case.teacher_logits_NV, 20, 2.0)
        objective = Objective(0.5, 2.0, chunk_tokens=size)
        loss = distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, 13)
        loss.total.backward()
        results.append((loss.total, loss.ce_sum, loss.kd_sum, *case.gradients()))
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-7)


def test_sliced_rows_equal_the_original_rows():
    targets = sampled_targets(
        torch.randn(9, 30, generator=torch.Generator().manual_seed(0)), 7, 1.0
    )
    assert len(targets) == 9
    cut = targets.rows(3, 8).rows(1, 4)
    assert len(cut) == 3
    assert drawn_ids(cut) == drawn_ids(targets)[4:7]
    assert cut.row_of_record().tolist() == [
        row for row, ids in enumerate(drawn_ids(cut)) for _ in set(ids)
    ]
    assert len(targets.rows(9, 9)) == len(targets.rows(0, 0)) == 0
    assert drawn_ids(targets.to(torch.device("cpu"))) == drawn_ids(targets)


def test_estimate_and_loss_are_zero_when_student_equals_teacher():
    case = make_case(student=16)
    case.teacher_NE = case.hidden_ND.detach()
    case.teacher_head = OutputHead(case.weight_VD.detach(), case.bias_V.detach())
    targets = sampled_targets(case.teacher_logits_NV, 50, 2.0)
    loss = distillation_loss(
        case.hidden_ND, case.head, case.labels_N, targets, Objective(0.0, 2.0), 13
    )
    assert abs(loss.kd_sum.item()) / 13 < 1e-6


def test_inputs_are_left_unchanged_and_equal_inputs_give_equal_bytes():
    results = []
    for _ in range(2):
        case = make_case(rows=200, vocab=150)
        targets = sampled_targets(case.teacher_logits_NV, 50, 2.0)
        tensors = [targets.ids_R, targets.counts_R, targets.log_probs_R, case.hidden_ND]
        copies = [tensor.detach().clone() for tensor in tensors]
        objective = Objective(0.3, 2.0, chunk_tokens=64)
        loss = distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, 200)
        loss.total.backward()
        assert all(torch.equal(*pair) for pair in zip(tensors, copies, strict=True))
        results.append(
            [part.detach().numpy().tobytes() for part in (loss.total, *case.gradients())]
        )
    assert results[0] == results[1]


def test_no_rows_give_zero_loss():
    case = make_case()
    targets = sampled_targets(case.teacher_logits_NV, 5, 1.0).rows(0, 0)
    arguments = (case.head, case.labels_N[:0], targets, Objective(0.5, 1.0), 7)
    assert distillation_loss(case.hidden_ND[:0], *arguments).total.item() == 0


def test_no_tensor_has_all_tokens_times_vocabulary():
    rows, vocab, chunk = 96, 400, 16
    case = make_case(rows=rows, vocab=vocab)
    targets = sampled_targets(case.teacher_logits_NV, 50, 2.0)
    objective = Objective(0.5, 2.0, chunk_tokens=chunk)
    with LargestTensor() as largest:
        loss = distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, rows)
        loss.total.backward()
    assert largest.elements <= max(chunk * vocab, vocab * 16)


@pytest.mark.parametrize(
    ("objective", "field", "message"),
    [
        (Objective(0, 1.0), "temperature", r"sampled targets are at temperature 2\.0, the loss at"),
        (Objective(0, 2.0, "reverse_kl"), "divergence", "draws give it only for the tokens drawn"),
        (Objective(0, 2.0, "jsd", 0.5), "divergence", "use forward_kl, or another"),
    ],
)
def test_objectives_that_draws_cannot_serve_are_refused(objective, field, message):
    case = make_case()
    targets = sampled_targets(case.teacher_logits_NV, 5, 2.0)
    with pytest.raises(InvalidRequest, match=message) as refusal:
        distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, 13)
    assert refusal.value.field == field


def test_another_vocabulary_is_refused():
    case = make_case()
    targets = replace(sampled_targets(case.teacher_logits_NV, 5, 2.0), vocab_size=30)
    with pytest.raises(InvalidRequest, match="teacher rows cover 30 ids"):
        distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, Objective(0, 2.0), 13)


# ---- on average ----------------------------------------------------------------------------------

TEACHERS = {"flat": 0.5, "peaked": 3.0}
ROWS, VOCAB, DRAWS, TEMPERATURE = 6, 40, 10, 1.5
# More and more of them, each used once.
SEEDS = [range(20), range(20, 120), range(120, 620), range(620, 3020)]


def pair_of(teacher):
    """Returns (student, teacher) logits [N, V] in float64."""
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(2, ROWS, VOCAB, generator=generator, dtype=torch.float64)
    return normal[0], TEACHERS[teacher] * normal[1]


def mean_over(seeds, student_NV, teacher_NV):
    """Returns the estimates of D [N] and T dD/ds [N, V], averaged over seeds, through the loss."""
    tokens, asked = np.arange(ROWS, dtype=np.uint32), np.ones(ROWS, bool)
    values_SNU = torch.from_numpy(np.stack([uniforms(s, tokens, asked, DRAWS) for s in seeds]))
    kd, gradients = [], []
    for row in range(ROWS):
        student_SV, teacher_SV = (x[row].expand(len(seeds), -1) for x in (student_NV, teacher_NV))
        draws = draw(teacher_SV, values_SNU[:, row], TEMPERATURE)
        targets = targets_of(draws, DRAWS, TEMPERATURE, VOCAB)
        loss, gradient_SV = by_logit(student_SV, targets, Objective(0.0, TEMPERATURE))
        kd.append(loss.kd_sum / len(seeds))
        # The loss is T^2 D: its gradient by the logits, over T, is T dD/ds.
        gradients.append(gradient_SV.mean(0) / TEMPERATURE)
    return torch.stack(kd), torch.stack(gradients)


def exact(student_NV, teacher_NV):
    """Returns D [N], T dD/ds [N, V], p [N, V] and the variance of log(p / q) under p [N]."""
    log_p = F.log_softmax(teacher_NV / TEMPERATURE, -1)
    log_q = F.log_softmax(student_NV / TEMPERATURE, -1)
    p, ratio = log_p.exp(), log_p - log_q
    d_N = (p * ratio).sum(-1)
    return d_N, log_q.exp() - p, p, (p * ratio**2).sum(-1) - d_N**2


def gradient_misfit(mean_NV, num_seeds, student_NV, teacher_NV):
    """Returns chi-squared over its degrees of freedom: 1 on average for unbiased draws.

    In T dD/ds = q - frequency the frequencies of num_seeds x DRAWS draws are multinomial.
    """
    _, gradient_NV, p_NV, _ = exact(student_NV, teacher_NV)
    chi_squared = (num_seeds * DRAWS * (mean_NV - gradient_NV) ** 2 / p_NV).sum()
    return (chi_squared / (ROWS * (VOCAB - 1))).item()


def value_misfit(mean_N, num_seeds, student_NV, teacher_NV):
    """Returns the mean of squared errors over their variances: 1 on average if unbiased."""
    d_N, _, _, variance_N = exact(student_NV, teacher_NV)
    return (num_seeds * DRAWS * (mean_N - d_N) ** 2 / variance_N).mean().item()


# Chi-squared with 234 degrees of freedom is outside 234 x this once in 10,000 times; with 6 above
# 6 x that.
GRADIENT_MISFIT = (0.68, 1.38)
VALUE_MISFIT = 4.7


@pytest.mark.parametrize("teacher", TEACHERS)
def test_mean_gradient_converges_to_the_dense_one(teacher):
    """The error falls as 1 / sqrt(draws): its square over the variance stays about 1."""
    pair = pair_of(teacher)
    for seeds in SEEDS:
        _, gradient_NV = mean_over(seeds, *pair)
        misfit = gradient_misfit(gradient_NV, len(seeds), *pair)
        assert GRADIENT_MISFIT[0] < misfit < GRADIENT_MISFIT[1]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_mean_kl_estimate_converges_to_the_true_kl(teacher):
    pair = pair_of(teacher)
    for seeds in SEEDS:
        kd_N, _ = mean_over(seeds, *pair)
        assert value_misfit(kd_N, len(seeds), *pair) < VALUE_MISFIT


@pytest.mark.parametrize("teacher", TEACHERS)
def test_renormalised_top_k_of_the_same_size_would_not_pass(teacher):
    """The check above rejects the gradient and value of a biased estimator."""
    student_NV, teacher_NV = pair_of(teacher)
    _, gradient_NV, p_NV, _ = exact(student_NV, teacher_NV)
    kept_NK = p_NV.topk(DRAWS).indices
    biased_NV = torch.zeros_like(p_NV).scatter_(1, kept_NK, p_NV.gather(1, kept_NK))
    biased_NV /= biased_NV.sum(-1, keepdim=True)
    log_ratio_NV = biased_NV.clamp(min=1e-30).log() - F.log_softmax(student_NV / TEMPERATURE, -1)
    mean_NV = gradient_NV + p_NV - biased_NV
    assert gradient_misfit(mean_NV, 2400, student_NV, teacher_NV) > 2 * GRADIENT_MISFIT[1]
    mean_N = (biased_NV * log_ratio_NV).sum(-1)
    assert value_misfit(mean_N, 2400, student_NV, teacher_NV) > 2 * VALUE_MISFIT


# ---- seeds ---------------------------------------------------------------------------------------


def test_each_step_has_its_own_draws_as_a_function_of_seed_and_step():
    sampled = Representation("sampled", num_draws=5)
    seeds = {
        (run_seed, step): of_step(sampled, run_seed, step).seed
        for run_seed in (0, 1, 2**63 - 1)
        for step in (0, 1, 1000)
    }
    assert len(set(seeds.values())) == 9
    assert all(seed is not None and 0 <= seed < 2**64 for seed in seeds.values())
    # Written down once: a change here changes every sampled run that is resumed.
    assert seeds[(0, 0)] == 13238389300853459902
    assert of_step(sampled, 0, 1) == replace(sampled, seed=seeds[(0, 1)])
    for other in (Representation("dense"), Representation("top_k", 3)):
        assert of_step(other, 1, 2) == other


@pytest.mark.parametrize(
    ("kind", "settings_of_it"),
    [("dense", {"top_k": 3}), ("sampled", {"top_k": 3}), ("top_k", {"num_draws": 3})],
)
def test_a_setting_without_effect_is_refused(kind, settings_of_it):
    with pytest.raises(InvalidRequest, match=f"no effect with representation {kind}"):
        Representation(kind, **settings_of_it)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    results = []
    for device in ("cpu", "cuda"):
        case = make_case(rows=200, vocab=500, student=64, teacher=128)
        targets = sampled_targets(case.teacher_logits_NV, 50, 2.0).to(torch.device(device))
        hidden_ND = case.hidden_ND.detach().to(device).requires_grad_()
        head = OutputHead(
            case.weight_VD.detach().to(device).requires_grad_(), case.bias_V.detach().to(device)
        )
        labels_N = case.labels_N.to(device)
        loss = distillation_loss(hidden_ND, head, labels_N, targets, Objective(0.3, 2.0), 200)
        loss.total.backward()
        results.append((loss.kd_sum.item(), hidden_ND.grad.double().cpu()))
    (kd, gradient), (cuda_kd, cuda_gradient) = results
    assert cuda_kd == pytest.approx(kd, rel=1e-5)
    assert largest_error(cuda_gradient, gradient) < 1e-4
