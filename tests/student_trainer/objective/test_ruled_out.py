"""Logits of -inf, and ids that only the student has, compared with float64, a row at a time.

Legend: N rows, V the student's vocabulary, W the teacher's, K top-k.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lectern_common.errors import InvalidRequest
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.top_k import log_normalizers, ordered_top_k
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.objective.reference import kd_logit_gradient, kd_loss
from student_trainer.targets import DenseTargets, HiddenTargets, TopKTargets
from tests.student_trainer.objective.test_sampled_loss import drawn_ids, sampled_targets

torch.set_num_threads(1)

N, V = 5, 13
EVERY_DIVERGENCE = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5), ("jsd", 0.1)]
# Draws serve forward_kl only, and only top_k has a k.
SERVED = [
    (representation, divergence, beta, k)
    for representation in ("dense", "hidden", "top_k", "sampled")
    for divergence, beta in EVERY_DIVERGENCE
    for k in ([2, 4, V - 3, V - 1, V] if representation == "top_k" else [4])
    if representation != "sampled" or divergence == "forward_kl"
]
MASKED = [3, 7, 12]
LABELS = torch.tensor([0, 1, 2, 4, 5])


def normal(seed, *shape):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask(ids, size=V):
    return torch.zeros(size).index_fill_(0, torch.tensor(ids), -math.inf)


def targets_of(representation, logits_NW, temperature, k):
    if representation == "dense":
        return DenseTargets(logits_NW)
    if representation == "hidden":  # the mask is the head's bias
        bias_W = torch.where(logits_NW[0].isneginf(), -math.inf, 0.0)
        plain_NW = logits_NW.masked_fill(logits_NW.isneginf(), 0.0)
        return HiddenTargets(plain_NW, OutputHead(torch.eye(plain_NW.shape[1]), bias_W))
    if representation == "sampled":
        return sampled_targets(logits_NW, 30, temperature)
    values_NK, ids_NK = ordered_top_k(logits_NW, k)
    rest_N, normalizer_N = log_normalizers(logits_NW, ids_NK, temperature)
    return TopKTargets(values_NK, ids_NK, rest_N, normalizer_N, temperature, logits_NW.shape[1])


def compare(
    representation,
    divergence,
    beta,
    *,
    teacher_NW,
    student_bias_V,
    temperature=1.5,
    k=4,
    untaught=(),
):
    """Compares loss and gradient by each logit with the reference, at every position."""
    student_NV = normal(1, N, V).requires_grad_()
    head = OutputHead(torch.eye(V), student_bias_V)
    targets = targets_of(representation, teacher_NW, temperature, k)
    student_only = V - teacher_NW.shape[1]
    objective = Objective(
        0.4, temperature, divergence, beta, student_only_ids=student_only, untaught_ids=untaught
    )
    loss = distillation_loss(student_NV, head, LABELS, targets, objective, N)
    loss.total.backward()
    rows = F.pad(teacher_NW, (0, student_only), value=-math.inf).double()
    rows[:, list(untaught)] = -math.inf
    draws = drawn_ids(targets) if representation == "sampled" else [None] * N
    losses, gradients = [], []
    for row in range(N):
        logits_V = (student_NV.detach()[row] + student_bias_V).double().numpy()
        top_k = k if representation == "top_k" else None
        named = (logits_V, rows[row].numpy(), int(LABELS[row]), temperature, 0.4, divergence, beta)
        losses.append(kd_loss(*named, top_k, draws[row]))
        gradients.append(kd_logit_gradient(*named, top_k, draws[row]))
    assert loss.total.item() == pytest.approx(np.mean(losses), rel=2e-6)
    expected_NV = torch.tensor(np.array(gradients)) / N
    torch.testing.assert_close(student_NV.grad.double(), expected_NV, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize(("representation", "divergence", "beta", "k"), SERVED)
@pytest.mark.parametrize("who", ["teacher", "student", "both"])
def test_ruled_out_ids_give_the_limits_or_are_refused_where_there_is_none(
    who, representation, divergence, beta, k
):
    out_V = mask(MASKED)
    teacher_NV = normal(2, N, V) + (out_V if who != "student" else 0)
    bias_V = out_V if who != "teacher" else torch.zeros(V)
    arguments = {"teacher_NW": teacher_NV, "student_bias_V": bias_V, "k": k}
    if not is_infinite(who, divergence, representation, teacher_NV, k):
        compare(representation, divergence, beta, **arguments)
        return
    with pytest.raises(
        InvalidRequest, match=rf"^row \d: {divergence} is infinite, because the {who}"
    ):
        compare(representation, divergence, beta, **arguments)


def is_infinite(who, divergence, representation, teacher_NV, k):
    """Whether an outcome that only one side rules out has probability on the other."""
    if who != {"forward_kl": "student", "reverse_kl": "teacher"}.get(divergence):
        return False
    if representation == "sampled":  # infinite only if such an id was drawn
        draws = drawn_ids(sampled_targets(teacher_NV, 30, 1.5))
        assert any(set(MASKED) & set(ids) for ids in draws)
    if representation != "top_k":
        return True
    kept_NK = ordered_top_k(teacher_NV, k)[1]
    is_kept = torch.isin(kept_NK, torch.tensor(MASKED)).any()  # an outcome of its own
    return bool(is_kept) or (who == "teacher" and k == V - len(MASKED))


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min, -3.3895e38])
def test_a_mask_of_the_lowest_number_is_a_mask(lowest):
    teacher_NV = normal(2, N, V)
    teacher_NV[:, MASKED] = lowest
    student_NV = normal(1, N, V)
    head = OutputHead(torch.eye(V))
    with pytest.raises(
        InvalidRequest, match=r"reverse_kl is infinite.* id 3 .*use forward_kl or jsd"
    ):
        distillation_loss(
            student_NV, head, LABELS, DenseTargets(teacher_NV), Objective(0.0, 1.0, "reverse_kl"), N
        )
    for name, beta in (("forward_kl", None), ("jsd", 0.3)):
        loss = distillation_loss(
            student_NV, head, LABELS, DenseTargets(teacher_NV), Objective(0.0, 1.0, name, beta), N
        )
        masked_NV = teacher_NV.index_fill(1, torch.tensor(MASKED), -math.inf).double().numpy()
        expected = [
            kd_loss(student_NV[row].numpy(), masked_NV[row], 0, 1.0, 0.0, name, beta)
            for row in range(N)
        ]
        assert loss.kd_sum.item() == pytest.approx(sum(expected), rel=1e-6)


def test_a_label_that_the_student_rules_out_is_named():
    with pytest.raises(InvalidRequest, match=r"row 3: the cross entropy is infinite.* id 4 "):
        distillation_loss(
            normal(1, N, V),
            OutputHead(torch.eye(V), mask([4])),
            LABELS,
            None,
            Objective(1.0, 1.0),
            N,
        )


def test_an_infinity_of_another_kind_is_the_callers():
    """A student that overflows is a step to skip, not a mask."""
    student_NV = torch.full((N, V), 3e38)
    student_NV[:, 0] = -3e38
    loss = distillation_loss(
        student_NV, OutputHead(torch.eye(V)), LABELS, None, Objective(1.0, 1.0), N
    )
    assert loss.total.isinf()


@pytest.mark.parametrize("teacher_width", [V - 1, V - 4])
@pytest.mark.parametrize(("representation", "divergence", "beta", "k"), SERVED)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_ids_that_only_the_student_has_get_no_teacher_mass(
    temperature, representation, divergence, beta, k, teacher_width
):
    arguments = {
        "teacher_NW": normal(2, N, teacher_width),
        "student_bias_V": torch.zeros(V),
        "temperature": temperature,
        "k": min(k, teacher_width),
    }
    if divergence == "reverse_kl":
        with pytest.raises(InvalidRequest, match=r"last [14] ids, which it lacks") as refusal:
            compare(representation, divergence, beta, **arguments)
        assert refusal.value.field == "divergence"
        return
    compare(representation, divergence, beta, **arguments)


def test_distillation_alone_lowers_ids_that_only_the_student_has():
    student_NV = normal(1, N, V).requires_grad_()
    objective = Objective(0.0, 2.0, student_only_ids=4)
    teacher = DenseTargets(normal(2, N, V - 4))
    distillation_loss(
        student_NV, OutputHead(torch.eye(V)), LABELS, teacher, objective, 1
    ).total.backward()
    q_NV = F.softmax(student_NV.detach() / 2.0, -1)
    torch.testing.assert_close(student_NV.grad[:, V - 4 :], 2.0 * q_NV[:, V - 4 :])


def test_a_narrower_teacher_is_refused_unless_the_objective_says_by_how_much():
    for teacher_width, student_only in ((V - 4, 0), (V - 4, 3), (V, 4), (V + 1, 0)):
        with pytest.raises(InvalidRequest, match=f"teacher rows cover {teacher_width} ids"):
            distillation_loss(
                normal(1, N, V),
                OutputHead(torch.eye(V)),
                LABELS,
                DenseTargets(normal(2, N, teacher_width)),
                Objective(0.5, 1.0, student_only_ids=student_only),
                N,
            )


@pytest.mark.parametrize("representation", ["dense", "hidden", "top_k"])
@pytest.mark.parametrize(("divergence", "beta"), EVERY_DIVERGENCE)
@pytest.mark.parametrize("teacher_width", [V, V - 3])
def test_ids_that_mean_something_else_to_the_teacher_get_none_of_its_mass(
    teacher_width, divergence, beta, representation
):
    teacher_NW = normal(2, N, teacher_width)
    teacher_NW[:, 2] += 9  # the teacher's likeliest token, as a thought would be
    arguments = {
        "teacher_NW": teacher_NW,
        "student_bias_V": torch.zeros(V),
        "untaught": (2, 5),
        # All of them, so that none is hidden in the rest: see the next test.
        "k": teacher_width,
    }
    if divergence == "reverse_kl":
        with pytest.raises(InvalidRequest, match="2 ids that mean something else to it"):
            compare(representation, divergence, beta, **arguments)
        return
    compare(representation, divergence, beta, **arguments)


def test_untaught_ids_within_top_ks_rest_stay_with_it():
    teacher_NV = normal(2, N, V)
    targets = targets_of("top_k", teacher_NV, 1.5, 4)
    objective = Objective(0.0, 1.5, untaught_ids=(2, 5))
    student_NV = normal(1, N, V).requires_grad_()
    distillation_loss(
        student_NV, OutputHead(torch.eye(V)), LABELS, targets, objective, 1
    ).total.backward()
    for row in range(N):
        kept = targets.ids_NK[row]
        in_rest = [one for one in (2, 5) if one not in kept]
        outcomes = targets.logits_NK[row].double() / 1.5
        outcomes[torch.isin(kept, torch.tensor([2, 5]))] = -math.inf
        p = torch.cat([outcomes, targets.log_rest_t_N[row : row + 1].double()]).softmax(0)
        q = F.softmax(student_NV.detach()[row].double() / 1.5, -1)
        rest = 1 - q[kept].sum()
        expected = q.clone()
        expected[kept] -= p[:-1]
        others = torch.ones(V, dtype=torch.bool).index_fill_(0, kept, False)
        expected[others] = (q[others] / rest) * (rest - p[-1])
        torch.testing.assert_close(
            student_NV.grad[row].double() / 1.5, expected, atol=1e-6, rtol=1e-5
        )
        assert in_rest == [] or others[in_rest].all()


def test_untaught_ids_are_refused_for_draws_and_beyond_the_teacher():
    for representation, ids, words in (
        ("sampled", (2,), "draws cannot leave out ids"),
        ("dense", (V,), f"untaught_ids has id {V}"),
    ):
        targets = targets_of(representation, normal(2, N, V), 1.0, 4)
        with pytest.raises(InvalidRequest, match=words):
            distillation_loss(
                normal(1, N, V),
                OutputHead(torch.eye(V)),
                LABELS,
                targets,
                Objective(0.5, 1.0, untaught_ids=ids),
                N,
            )
