"""The chunked loss, compared with float64 autograd on the plain formula over whole logits.

Legend: N rows, V vocabulary, D and E hidden sizes of student and teacher, K top-k.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lectern_common.errors import InvalidRequest
from lectern_models.logits.output_head import HeadTransform, OutputHead
from student_trainer.objective.loss import Objective, auto_chunk_tokens, distillation_loss
from student_trainer.objective.reference import kd_logit_gradient, kd_loss
from student_trainer.targets import DenseTargets, HiddenTargets, TopKTargets

torch.set_num_threads(1)

DIVERGENCES = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5), ("jsd", 0.2)]
TRANSFORMS = {
    "plain": HeadTransform(),
    "scale": HeadTransform(scale=0.25),
    "divisor": HeadTransform(divisor=4.0),
    "soft_cap": HeadTransform(scale=2.0, divisor=3.0, soft_cap=5.0),
}
REPRESENTATIONS = ["dense", "hidden", "top_k"]


@dataclass
class Case:
    """A student and a teacher of random weights, in the given dtype."""

    hidden_ND: torch.Tensor
    weight_VD: torch.Tensor
    bias_V: torch.Tensor
    labels_N: torch.Tensor
    teacher_NE: torch.Tensor
    teacher_head: OutputHead
    transform: HeadTransform

    @property
    def head(self):
        return OutputHead(self.weight_VD, self.bias_V, self.transform)

    @property
    def teacher_logits_NV(self):
        head = self.teacher_head
        assert head.bias_V is not None
        return self.teacher_NE.double() @ head.weight_VD.double().T + head.bias_V.double()

    def targets(self, representation, temperature, k=5):
        if representation == "hidden":
            return HiddenTargets(self.teacher_NE, self.teacher_head)
        logits_NV = self.teacher_logits_NV
        if representation == "dense":
            return DenseTargets(logits_NV.to(self.hidden_ND.dtype))
        return top_k_targets(logits_NV, temperature, k, self.hidden_ND.dtype)

    def gradients(self):
        return self.hidden_ND.grad, self.weight_VD.grad, self.bias_V.grad


def make_case(rows=13, vocab=29, student=8, teacher=16, transform="plain", dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + vocab)

    def normal(*shape, spread=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).to(dtype)

    return Case(
        normal(rows, student).requires_grad_(),
        normal(vocab, student, spread=0.7).requires_grad_(),
        normal(vocab, spread=0.3).requires_grad_(),
        torch.randint(vocab, (rows,), generator=generator),
        normal(rows, teacher),
        OutputHead(normal(vocab, teacher, spread=0.5), normal(vocab, spread=0.3)),
        TRANSFORMS[transform],
    )


def top_k_targets(logits_NV, temperature, k, dtype=torch.float32):
    # Of equal logits the lower id comes first, as on the wire.
    falling = logits_NV.sort(descending=True, stable=True)
    values_NK, ids_NK = falling.values[:, :k], falling.indices[:, :k]
    rest_NR = falling.values[:, k:]
    return TopKTargets(
        values_NK.to(dtype),
        ids_NK,
        (rest_NR / temperature).logsumexp(-1).to(dtype),
        (logits_NV / temperature).logsumexp(-1).to(dtype),
        temperature,
        logits_NV.shape[1],
    )


def plain_losses(case, representation, objective, k=5):
    """Returns (CE sum, D sum) in float64 with torch's own losses; autograd follows them."""
    transform = case.transform
    logits_NV = case.hidden_ND @ case.weight_VD.T + case.bias_V
    logits_NV = logits_NV * transform.scale / transform.divisor
    if transform.soft_cap is not None:
        logits_NV = transform.soft_cap * torch.tanh(logits_NV / transform.soft_cap)
    ce_sum = F.cross_entropy(logits_NV, case.labels_N, reduction="sum")
    q_NO = F.log_softmax(logits_NV / objective.temperature, -1)
    p_NO = F.log_softmax(case.teacher_logits_NV / objective.temperature, -1)
    if representation == "top_k" and k < q_NO.shape[1]:
        kept_NV = torch.zeros_like(p_NO).scatter_(1, p_NO.topk(k).indices, 1.0).bool()
        p_NO, q_NO = (
            torch.cat(
                [x[kept_NV].view(-1, k), x.masked_fill(kept_NV, -math.inf).logsumexp(-1, True)], 1
            )
            for x in (p_NO, q_NO)
        )

    def kl(a, b):
        return F.kl_div(b, a, reduction="sum", log_target=True)

    if objective.divergence == "forward_kl":
        return ce_sum, kl(p_NO, q_NO)
    if objective.divergence == "reverse_kl":
        return ce_sum, kl(q_NO, p_NO)
    m_NO = torch.logaddexp(math.log(objective.beta) + p_NO, math.log(1 - objective.beta) + q_NO)
    return ce_sum, objective.beta * kl(p_NO, m_NO) + (1 - objective.beta) * kl(q_NO, m_NO)


def plain_total(case, representation, objective, normalizer, k=5):
    ce_sum, kd_sum = plain_losses(case, representation, objective, k)
    kd_weight = (1 - objective.alpha) * objective.temperature**2
    return (objective.alpha * ce_sum + kd_weight * kd_sum) / normalizer


def in_float64(case):
    """Returns the case with leaves of its own in float64."""
    leaves = {
        name: getattr(case, name).detach().double().requires_grad_()
        for name in ("hidden_ND", "weight_VD", "bias_V")
    }
    return replace(case, **leaves)


def largest_error(ours, exact):
    return (ours.double() - exact).abs().max().item() / exact.abs().max().item()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_losses_and_every_gradient_equal_float64_autograd(
    alpha, divergence, beta, representation, transform
):
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        case = make_case(transform=transform, dtype=dtype)
        objective = Objective(alpha, 1.5, divergence, beta, chunk_tokens=5)
        loss = distillation_loss(
            case.hidden_ND,
            case.head,
            case.labels_N,
            case.targets(representation, 1.5),
            objective,
            normalizer=40,
        )
        loss.total.backward()
        exact = in_float64(case)
        ce_sum, kd_sum = plain_losses(exact, representation, objective)
        total = plain_total(exact, representation, objective, 40)
        total.backward()
        assert loss.total.item() == pytest.approx(total.item(), rel=tolerance)
        assert loss.kd_sum.item() == pytest.approx(kd_sum.item(), rel=2 * tolerance)
        assert loss.ce_sum.item() == pytest.approx(ce_sum.item() if alpha else 0, rel=tolerance)
        for ours, theirs in zip(case.gradients(), exact.gradients(), strict=True):
            assert ours.dtype == dtype
            assert largest_error(ours, theirs) < tolerance


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_loss_equals_the_reference_row_by_row(divergence, beta, representation):
    case = make_case(rows=6)
    logits_NV = (case.hidden_ND @ case.weight_VD.T + case.bias_V).detach().numpy()
    teacher_NV = case.teacher_logits_NV.numpy()
    top_k = 5 if representation == "top_k" else None
    objective = Objective(0.3, 2.0, divergence, beta)
    loss = distillation_loss(
        case.hidden_ND, case.head, case.labels_N, case.targets(representation, 2.0), objective, 6
    )
    loss.total.backward()
    rows = [
        (logits_NV[row], teacher_NV[row], case.labels_N[row].item(), 2.0, 0.3, divergence, beta)
        for row in range(6)
    ]
    expected = sum(kd_loss(*row, top_k=top_k) for row in rows) / 6
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    by_logit_NV = torch.tensor([kd_logit_gradient(*row, top_k=top_k).tolist() for row in rows])
    assert largest_error(case.bias_V.grad, by_logit_NV.double().sum(0) / 6) < 1e-5


@pytest.mark.parametrize("representation", [None, *REPRESENTATIONS])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 12, 13, 14, 1000])
def test_any_chunk_size_gives_the_whole_batch_result(chunk_tokens, representation):
    results = []
    for size in (chunk_tokens, 13):
        case = make_case(transform="soft_cap")
        alpha = 1.0 if representation is None else 0.5
        targets = None if representation is None else case.targets(representation, 2.0)
        objective = Objective(alpha, 2.0, chunk_tokens=size)
        loss = distillation_loss(
            case.hidden_ND, case.head, case.labels_N, targets, objective, normalizer=13
        )
        loss.total.backward()
        results.append((loss.total, loss.ce_sum, loss.kd_sum, *case.gradients()))
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_hidden_and_whole_top_k_targets_equal_dense_ones(divergence, beta, alpha):
    results = {}
    for representation in REPRESENTATIONS:
        case = make_case()
        objective = Objective(alpha, 2.0, divergence, beta)
        targets = case.targets(representation, 2.0, k=29)
        loss = distillation_loss(
            case.hidden_ND, case.head, case.labels_N, targets, objective, normalizer=13
        )
        loss.total.backward()
        results[representation] = (loss.total, loss.kd_sum, *case.gradients())
    for representation in ("hidden", "top_k"):
        for ours, dense in zip(results[representation], results["dense"], strict=True):
            torch.testing.assert_close(ours, dense, rtol=1e-6, atol=1e-6)


def test_total_weighs_numbers_and_tensors_alike():
    objective = Objective(0.25, 2.0)
    # 0.25 * 3 + 0.75 * 4 * 0.5
    assert objective.total(3.0, 0.5) == 2.25
    both = objective.total(torch.tensor([3.0, 0.0]).double(), torch.tensor([0.5, 1.0]).double())
    assert both.tolist() == [2.25, 3.0]
    assert Objective(1.0, 2.0).total(3.0, 0.0) == 3.0


def test_alpha_one_is_torchs_cross_entropy_and_takes_no_targets():
    """F-DISTILL-KDSTEP-001, for the training path."""
    case = make_case()
    loss = distillation_loss(
        case.hidden_ND, case.head, case.labels_N, None, Objective(1.0, 2.0), normalizer=13
    )
    loss.total.backward()
    exact = in_float64(case)
    expected = F.cross_entropy(exact.hidden_ND @ exact.weight_VD.T + exact.bias_V, exact.labels_N)
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.kd_sum.item() == 0
    for ours, theirs in zip(case.gradients(), exact.gradients(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)


def test_alpha_zero_does_no_cross_entropy_work():
    """FALSIFY-TRAIN-004, for the training path: the labels do not affect the result."""
    results = []
    for label in (0, 28):
        case = make_case()
        labels_N = torch.full_like(case.labels_N, label)
        targets = case.targets("dense", 2.0)
        loss = distillation_loss(
            case.hidden_ND, case.head, labels_N, targets, Objective(0.0, 2.0), normalizer=13
        )
        loss.total.backward()
        assert loss.total.item() == pytest.approx(4 * loss.kd_sum.item() / 13, rel=1e-12)
        assert loss.ce_sum.item() == 0
        results.append((loss.total, *case.gradients()))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_and_gradient_are_zero_when_student_equals_teacher(
    temperature, divergence, beta, representation
):
    """F-DISTILL-KDSTEP-002, for the training path."""
    case = make_case(student=16)
    case.teacher_NE = case.hidden_ND.detach()
    case.teacher_head = OutputHead(case.weight_VD.detach(), case.bias_V.detach())
    objective = Objective(0.0, temperature, divergence, beta)
    loss = distillation_loss(
        case.hidden_ND,
        case.head,
        case.labels_N,
        case.targets(representation, temperature),
        objective,
        normalizer=13,
    )
    loss.total.backward()
    assert abs(loss.kd_sum.item()) / 13 < 1e-6
    for gradient in case.gradients():
        assert gradient.abs().max() < 1e-6 * max(1.0, temperature)


@pytest.mark.parametrize("representation", ["dense", "top_k"])
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("teacher", ["opposite", "equal", "one_hot"])
def test_extreme_logits_give_finite_and_accurate_results(
    teacher, temperature, divergence, beta, representation
):
    vocab = 12
    student_NV = torch.tensor([[1e4, -1e4, 0.0, 50.0] * 3, [-1e4] * 11 + [1e4]])
    teacher_NV = {
        "opposite": -student_NV,
        "equal": student_NV.clone(),
        "one_hot": torch.full((2, vocab), -1e4).index_fill_(1, torch.tensor([7]), 1e4),
    }[teacher]
    logits_NV = student_NV.clone().requires_grad_()
    head = OutputHead(torch.eye(vocab))
    targets = (
        DenseTargets(teacher_NV)
        if representation == "dense"
        # float32 rounds a sum of 1e5 by 4e-3; the formula is tested.
        else top_k_targets(teacher_NV.double(), temperature, 3, torch.float64)
    )
    labels_N = torch.tensor([3, 0])
    objective = Objective(0.5, temperature, divergence, beta)
    loss = distillation_loss(logits_NV, head, labels_N, targets, objective, normalizer=2)
    loss.total.backward()
    assert logits_NV.grad is not None and logits_NV.grad.isfinite().all()
    top_k = 3 if representation == "top_k" else None
    pairs = zip(student_NV.numpy(), teacher_NV.numpy(), [3, 0], strict=True)
    rows = [(*pair, temperature, 0.5, divergence, beta, top_k) for pair in pairs]
    expected = sum(kd_loss(*row) for row in rows) / 2
    assert loss.total.item() == pytest.approx(expected, rel=1e-5, abs=1e-4)
    by_logit_NV = torch.tensor([kd_logit_gradient(*row).tolist() for row in rows]) / 2
    # reverse_kl's gradient contains log(q / p), up to 2e4 / T: float32's share of that, times T.
    torch.testing.assert_close(logits_NV.grad, by_logit_NV.float(), rtol=1e-5, atol=2e4 * 1e-7)


@pytest.mark.parametrize(("divergence", "beta"), [d for d in DIVERGENCES if d[0] != "reverse_kl"])
def test_tokens_that_the_teacher_rules_out_contribute_nothing(divergence, beta):
    logits_NV = torch.tensor([[0.5, -0.5, 1.0, 3.0]], requires_grad=True)
    teacher_NV = torch.tensor([[1.0, -math.inf, 2.0, -math.inf]])
    loss = distillation_loss(
        logits_NV,
        OutputHead(torch.eye(4)),
        torch.tensor([0]),
        DenseTargets(teacher_NV),
        Objective(0.0, 1.0, divergence, beta),
        normalizer=1,
    )
    loss.total.backward()
    row = (logits_NV.detach().numpy()[0], teacher_NV.numpy()[0], 0, 1.0, 0.0, divergence, beta)
    assert loss.total.item() == pytest.approx(kd_loss(*row), rel=1e-6)
    assert logits_NV.grad is not None
    torch.testing.assert_close(logits_NV.grad[0].double(), torch.tensor(kd_logit_gradient(*row)))
    assert torch.isneginf(teacher_NV).sum() == 2  # the caller's tensor is kept


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_inputs_are_left_unchanged(representation):
    case = make_case()
    targets = case.targets(representation, 2.0)
    tensors = [value for value in vars(targets).values() if isinstance(value, torch.Tensor)]
    tensors += [case.hidden_ND, case.weight_VD, case.bias_V, case.labels_N, case.teacher_NE]
    copies = [tensor.detach().clone() for tensor in tensors]
    objective = Objective(0.5, 2.0)
    loss = distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, 13)
    loss.total.backward()
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_tied_weights_get_the_gradients_of_both_uses():
    embedding = torch.randn(11, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    input_ids, labels = torch.tensor([1, 4, 4, 10]), torch.tensor([4, 4, 10, 0])
    hidden = torch.tanh(embedding[input_ids])
    objective = Objective(1.0, 1.0, chunk_tokens=3)
    distillation_loss(hidden, OutputHead(embedding), labels, None, objective, 4).total.backward()
    exact = embedding.detach().double().requires_grad_()
    F.cross_entropy(torch.tanh(exact[input_ids]) @ exact.T, labels).backward()
    assert largest_error(embedding.grad, exact.grad) < 1e-6


def test_gradients_accumulate_over_micro_batches_to_those_of_the_whole():
    whole, parts = make_case(), make_case()
    objective = Objective(0.3, 2.0)
    targets = whole.targets("hidden", 2.0)
    distillation_loss(
        whole.hidden_ND, whole.head, whole.labels_N, targets, objective, 13
    ).total.backward()
    for start, stop in ((0, 4), (4, 13)):
        cut = slice(start, stop)
        distillation_loss(
            parts.hidden_ND[cut],
            parts.head,
            parts.labels_N[cut],
            targets.rows(start, stop),
            objective,
            13,
        ).total.backward()
    for ours, theirs in zip(parts.gradients(), whole.gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_incoming_gradient_scales_all_gradients():
    once, thrice = make_case(), make_case()
    for case, factor in ((once, 1), (thrice, 3)):
        targets = case.targets("dense", 1.0)
        loss = distillation_loss(
            case.hidden_ND, case.head, case.labels_N, targets, Objective(0.5, 1.0), 13
        )
        (loss.total * factor).backward()
    for one, three in zip(once.gradients(), thrice.gradients(), strict=True):
        torch.testing.assert_close(3 * one, three)


def test_a_second_backward_is_refused():
    case = make_case()
    loss = distillation_loss(
        case.hidden_ND, case.head, case.labels_N, None, Objective(1.0, 1.0), normalizer=13
    )
    loss.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already called"):
        loss.total.backward()


def test_without_gradients_the_losses_are_the_same_and_nothing_requires_one():
    case = make_case()
    targets, objective = case.targets("hidden", 2.0), Objective(0.5, 2.0)
    arguments = (case.head, case.labels_N, targets, objective, 13)
    with_gradients = distillation_loss(case.hidden_ND, *arguments)
    with torch.no_grad():
        without = distillation_loss(case.hidden_ND, *arguments)
    assert not without.total.requires_grad
    assert with_gradients.total.item() == without.total.item()
    assert with_gradients.kd_sum.item() == without.kd_sum.item()
    assert not with_gradients.kd_sum.requires_grad


def test_frozen_head_gets_no_gradient_and_the_body_still_does():
    case = make_case()
    head = OutputHead(case.weight_VD.detach(), case.bias_V.detach())
    distillation_loss(
        case.hidden_ND, head, case.labels_N, None, Objective(1.0, 1.0), 13
    ).total.backward()
    frozen, case.hidden_ND.grad = case.hidden_ND.grad, None
    distillation_loss(
        case.hidden_ND, case.head, case.labels_N, None, Objective(1.0, 1.0), 13
    ).total.backward()
    assert torch.equal(frozen, case.hidden_ND.grad)


def test_no_rows_give_zero_loss_and_zero_gradients():
    case = make_case()
    for representation in REPRESENTATIONS:
        loss = distillation_loss(
            case.hidden_ND[:0],
            case.head,
            case.labels_N[:0],
            case.targets(representation, 1.0).rows(0, 0),
            Objective(0.5, 1.0),
            normalizer=7,
        )
        loss.total.backward()
        assert loss.total.item() == 0
    assert not case.weight_VD.grad.any()


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("representation", [None, *REPRESENTATIONS])
def test_no_tensor_has_all_tokens_times_vocabulary(representation, transform):
    rows, vocab, chunk = 96, 400, 16
    case = make_case(rows=rows, vocab=vocab, transform=transform)
    # A dense teacher's rows are [N, V] when they arrive; from then on they are only sliced.
    targets = None if representation is None else case.targets(representation, 2.0)
    alpha = 1.0 if representation is None else 0.5
    for divergence, beta in DIVERGENCES:
        objective = Objective(alpha, 2.0, divergence, beta, chunk_tokens=chunk)
        with LargestTensor() as largest:
            loss = distillation_loss(
                case.hidden_ND, case.head, case.labels_N, targets, objective, rows
            )
            loss.total.backward()
        assert largest.elements <= max(chunk * vocab, vocab * 16)
    assert case.weight_VD.grad.any()


def test_auto_chunk_has_enough_rows_that_products_are_not_memory_bound():
    """Rows >= 4 x peak FLOP/s over bytes/s, for an H100 and for a core with 512-bit vectors."""
    for vocab in (100, 2048, 32768, 151936):
        assert 4 * 989e12 / 3.35e12 <= auto_chunk_tokens(vocab, torch.device("cuda")) <= 2048
        assert max(96, 4 * 170e9 / 12e9) <= auto_chunk_tokens(vocab, torch.device("cpu")) <= 512


def test_equal_inputs_give_equal_bytes():
    def run():
        case = make_case(rows=300, vocab=200, student=32, teacher=64)
        results = []
        for representation in REPRESENTATIONS:
            loss = distillation_loss(
                case.hidden_ND,
                case.head,
                case.labels_N,
                case.targets(representation, 2.0),
                Objective(0.3, 2.0, chunk_tokens=64),
                300,
            )
            loss.total.backward()
            results += [loss.total, loss.kd_sum, loss.ce_sum]
        return [tensor.detach().numpy().tobytes() for tensor in (*results, *case.gradients())]

    first = run()
    assert all(run() == first for _ in range(3))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_bfloat16_hidden_states_are_computed_in_float32(representation):
    narrow, wide = make_case(), make_case()
    narrow.hidden_ND = narrow.hidden_ND.detach().bfloat16().requires_grad_()
    narrow.teacher_NE = wide.teacher_NE = narrow.teacher_NE.bfloat16()
    wide.hidden_ND = narrow.hidden_ND.detach().float().requires_grad_()
    head = narrow.teacher_head
    narrow_head = OutputHead(head.weight_VD.bfloat16(), head.bias_V)
    narrow.teacher_head = wide.teacher_head = narrow_head
    objective = Objective(0.5, 2.0)
    targets = wide.targets(representation, 2.0)
    # An enclosing autocast, as in a training step, must not reach the loss either.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = distillation_loss(
            narrow.hidden_ND, narrow.head, narrow.labels_N, targets, objective, 13
        )
    theirs = distillation_loss(wide.hidden_ND, wide.head, wide.labels_N, targets, objective, 13)
    ours.total.backward()
    theirs.total.backward()
    assert ours.total.item() == theirs.total.item()
    assert torch.equal(narrow.weight_VD.grad, wide.weight_VD.grad)
    assert narrow.hidden_ND.grad.dtype == torch.bfloat16
    assert torch.equal(narrow.hidden_ND.grad, wide.hidden_ND.grad.bfloat16())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0, 10.0]),
    named=st.sampled_from(DIVERGENCES),
    k=st.integers(1, 17),
    chunk_tokens=st.integers(1, 6),
)
def test_top_k_equals_the_plain_formula_for_any_k(
    seed, spread, temperature, named, k, chunk_tokens
):
    generator = torch.Generator().manual_seed(seed)
    case = make_case(rows=5, vocab=17, dtype=torch.float64)
    case.teacher_NE = torch.randn(5, 16, generator=generator, dtype=torch.float64) * spread
    divergence, beta = named
    objective = Objective(0.0, temperature, divergence, beta, chunk_tokens)
    targets = case.targets("top_k", temperature, k)
    loss = distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, objective, 5)
    loss.total.backward()
    exact = in_float64(case)
    exact.teacher_head = case.teacher_head
    total = plain_total(exact, "top_k", objective, 5, k)
    total.backward()
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-12, abs=1e-12)
    for ours, theirs in zip(case.gradients(), exact.gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.1, 1.0, 3.0, 10.0]),
    named=st.sampled_from(DIVERGENCES),
    representation=st.sampled_from(REPRESENTATIONS),
)
def test_divergence_is_not_negative_and_logit_gradients_sum_to_zero(
    seed, temperature, named, representation
):
    generator = torch.Generator().manual_seed(seed)
    case = make_case(rows=4, vocab=19)
    case.teacher_NE = 3 * torch.randn(4, 16, generator=generator)
    targets = case.targets(representation, temperature)
    loss = distillation_loss(
        case.hidden_ND, case.head, case.labels_N, targets, Objective(0.0, temperature, *named), 4
    )
    loss.total.backward()
    assert loss.kd_sum.item() > -1e-6
    assert abs(case.bias_V.grad.sum().item()) < 1e-5 * max(1.0, temperature)


def test_top_k_at_another_temperature_is_refused():
    case = make_case()
    targets = case.targets("top_k", 2.0)
    with pytest.raises(InvalidRequest, match=r"at temperature 2\.0, the loss at 1\.0") as refusal:
        distillation_loss(case.hidden_ND, case.head, case.labels_N, targets, Objective(0, 1.0), 13)
    assert refusal.value.field == "temperature"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": None}, "targets are missing"),
        ({"objective": Objective(1.0, 2.0)}, "targets have no effect"),
        ({"labels_N": torch.zeros(12, dtype=torch.int64)}, "13 rows, but 12 labels"),
        ({"normalizer": 0}, "normalizer is 0"),
        ({"targets": DenseTargets(torch.zeros(12, 29))}, "13 rows, but 12 teacher rows"),
        ({"targets": DenseTargets(torch.zeros(13, 30))}, "teacher rows cover 30 ids"),
        (
            {"targets": HiddenTargets(torch.zeros(13, 2), OutputHead(torch.zeros(28, 2)))},
            "teacher rows cover 28 ids",
        ),
    ],
)
def test_inconsistent_arguments_are_refused(change, message):
    case = make_case()
    arguments = {
        "hidden_ND": case.hidden_ND,
        "head": case.head,
        "labels_N": case.labels_N,
        "targets": case.targets("dense", 2.0),
        "objective": Objective(0.5, 2.0),
        "normalizer": 13,
    }
    with pytest.raises(InvalidRequest, match=message):
        distillation_loss(**(arguments | change))


@pytest.mark.parametrize(
    "settings_of_it",
    [
        {"alpha": -0.1},
        {"alpha": math.nan},
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"divergence": "kl"},
        {"divergence": "jsd"},
        {"divergence": "jsd", "beta": 0.0},
        {"beta": 0.5},
        {"chunk_tokens": 0},
    ],
)
def test_an_objective_out_of_range_is_refused(settings_of_it):
    with pytest.raises(InvalidRequest):
        Objective(**({"alpha": 0.5, "temperature": 1.0} | settings_of_it))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype, representation):
    results = []
    for device in ("cpu", "cuda"):
        case = make_case(rows=200, vocab=500, student=64, teacher=128)
        hidden_ND = case.hidden_ND.detach().to(dtype).to(device).requires_grad_()
        weight_VD = case.weight_VD.detach().to(dtype).float().to(device).requires_grad_()
        teacher = case.teacher_head
        head = OutputHead(teacher.weight_VD.to(dtype).to(device), teacher.bias_V.to(device))
        targets = (
            HiddenTargets(case.teacher_NE.to(dtype).to(device), head)
            if representation == "hidden"
            else case.targets(representation, 2.0).to(torch.device(device))
        )
        loss = distillation_loss(
            hidden_ND,
            OutputHead(weight_VD, case.bias_V.detach().to(device)),
            case.labels_N.to(device),
            targets,
            Objective(0.3, 2.0),
            200,
        )
        loss.total.backward()
        leaves = (hidden_ND, weight_VD)
        results.append([loss.total.item(), *(leaf.grad.double().cpu() for leaf in leaves)])
    (total, *gradients), (cuda_total, *cuda_gradients) = results
    assert cuda_total == pytest.approx(total, rel=1e-5)
    for ours, theirs in zip(cuda_gradients, gradients, strict=True):
        assert largest_error(ours, theirs) < (1e-2 if dtype == torch.bfloat16 else 1e-4)
