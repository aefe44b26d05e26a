"""The float64 reference, against torch's own losses, finite differences and hand-worked numbers."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lectern_common.errors import InvalidRequest
from student_trainer.objective.reference import kd_logit_gradient, kd_loss, kd_step, log_softmax

DIVERGENCES = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5), ("jsd", 0.1)]

logit_rows = hnp.arrays(np.float64, 7, elements=st.floats(-12, 12))
temperatures = st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0, 10.0])


class CountingTeacher:
    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def vocab_size(self):
        return len(self.rows[0])

    def logits_for_batch(self, input_ids):
        self.asked.append(input_ids)
        return self.rows[: len(input_ids)]


def random_rows(seed, vocab_size=23, spread=3.0):
    generator = np.random.default_rng(seed)
    return generator.normal(0, spread, (2, vocab_size))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_kd_loss_agrees_with_torch_kl_div_loss(seed, temperature):
    """KL numerics: within 1e-4 of torch's KLDivLoss."""
    student, teacher = random_rows(seed)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(torch.tensor(student)[None] / temperature, -1),
        torch.softmax(torch.tensor(teacher)[None] / temperature, -1),
    )
    cross_entropy = torch.nn.functional.cross_entropy(
        torch.tensor(student)[None], torch.tensor([4])
    )
    for alpha in (0.0, 0.3, 1.0):
        expected = alpha * cross_entropy + (1 - alpha) * temperature**2 * divergence
        assert kd_loss(student, teacher, 4, temperature, alpha) == pytest.approx(
            expected.item(), rel=1e-4, abs=1e-4
        )


def test_losses_equal_hand_worked_values_for_two_tokens():
    # At T = 2 the student's odds are 3 : 1 and the teacher's 1 : 1.
    student, teacher = [2 * math.log(3), 0.0], [0.0, 0.0]
    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    reverse = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    mixture = [0.625, 0.375]
    jsd = 0.5 * sum(0.5 * math.log(0.5 / m) for m in mixture)
    jsd += 0.5 * sum(q * math.log(q / m) for q, m in zip([0.75, 0.25], mixture, strict=True))
    assert kd_loss(student, teacher, 0, 2.0, 0.0) == pytest.approx(4 * forward)
    assert kd_loss(student, teacher, 0, 2.0, 0.0, "reverse_kl") == pytest.approx(4 * reverse)
    assert kd_loss(student, teacher, 0, 2.0, 0.0, "jsd", 0.5) == pytest.approx(4 * jsd)
    # The cross entropy is at T = 1, where the student's odds are 9 : 1.
    assert kd_loss(student, teacher, 1, 2.0, 1.0) == pytest.approx(math.log(10))
    assert kd_logit_gradient(student, teacher, 0, 2.0, 0.0) == pytest.approx([0.5, -0.5])
    assert kd_logit_gradient(student, teacher, 1, 2.0, 1.0) == pytest.approx([0.9, -0.9])


@pytest.mark.parametrize("top_k", [None, 1, 3, 7])
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gradient_agrees_with_finite_differences(temperature, divergence, beta, top_k):
    student, teacher = random_rows(3, vocab_size=7, spread=1.5)
    arguments = (teacher, 2, temperature, 0.4, divergence, beta, top_k)
    gradient = kd_logit_gradient(student, *arguments)
    step = 1e-5
    for token in range(7):
        nudge = step * (np.arange(7) == token)
        rise = kd_loss(student + nudge, *arguments) - kd_loss(student - nudge, *arguments)
        assert gradient[token] == pytest.approx(rise / (2 * step), rel=1e-6, abs=1e-8)


def test_at_alpha_one_the_gradient_is_the_cross_entropy_gradient():
    """F-DISTILL-KDSTEP-001."""
    student, teacher = random_rows(1)
    logits = torch.tensor(student[None], requires_grad=True)
    torch.nn.functional.cross_entropy(logits, torch.tensor([9])).backward()
    gradient = kd_logit_gradient(student, teacher, 9, 4.0, 1.0)
    assert logits.grad is not None
    np.testing.assert_allclose(gradient, logits.grad[0].numpy(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_loss_and_gradient_are_zero_when_student_equals_teacher(divergence, beta, top_k):
    """F-DISTILL-KDSTEP-002."""
    _, teacher = random_rows(2)
    arguments = (teacher, teacher, 0, 2.0, 0.0, divergence, beta, top_k)
    assert abs(kd_loss(*arguments)) < 1e-12
    assert np.abs(kd_logit_gradient(*arguments)).max() < 1e-6


@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_loss_rises_strictly_as_the_student_moves_away(divergence, beta):
    """F-DISTILL-KDSTEP-003."""
    teacher, direction = random_rows(4)
    losses = [
        kd_loss(teacher + distance * direction, teacher, 0, 2.0, 0.0, divergence, beta)
        for distance in (0.0, 0.1, 0.3, 0.6, 1.0, 1.5)
    ]
    assert all(before < after for before, after in itertools.pairwise(losses))


def test_temperature_keeps_the_most_likely_token():
    """FALSIFY-TRAIN-003: 1,000 random vectors."""
    rows = np.random.default_rng(0).normal(0, 4, (1000, 50))
    for temperature in (1, 2, 3, 5, 10):
        for row in rows:
            assert np.exp(log_softmax(row / temperature)).argmax() == row.argmax()


def test_at_alpha_zero_the_loss_is_only_the_divergence():
    """FALSIFY-TRAIN-004."""
    student, teacher = random_rows(5)
    p, q = (np.exp(row / 3) / np.exp(row / 3).sum() for row in (teacher, student))
    divergence = 9 * np.sum(p * np.log(p / q))
    for label in range(len(teacher)):
        loss = kd_loss(student, teacher, label, 3.0, 0.0)
        assert loss == pytest.approx(divergence, rel=1e-6)


def test_top_k_merges_the_rest_and_does_not_renormalise():
    student, teacher = np.log([0.4, 0.3, 0.2, 0.1]), np.log([0.1, 0.5, 0.15, 0.25])
    # Ids 1 and 3 are kept; 0 and 2 are one outcome.
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.3, 0.1, 0.6])
    expected = np.sum(p * np.log(p / q))
    assert kd_loss(student, teacher, 0, 1.0, 0.0, top_k=2) == pytest.approx(expected)
    # Each token of the rest gets its share of the outcome's gradient.
    gradient = kd_logit_gradient(student, teacher, 0, 1.0, 0.0, top_k=2)
    assert gradient == pytest.approx([0.35 * 4 / 6, -0.2, 0.35 * 2 / 6, -0.15])


@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(divergence, beta):
    student, teacher = random_rows(6)
    full = (student, teacher, 3, 2.0, 0.3, divergence, beta)
    assert kd_loss(*full, top_k=23) == pytest.approx(kd_loss(*full), rel=1e-12)
    np.testing.assert_allclose(kd_logit_gradient(*full, top_k=23), kd_logit_gradient(*full))


def test_draws_count_as_often_as_they_were_drawn():
    student, teacher = np.log([0.4, 0.3, 0.2, 0.1]), np.log([0.1, 0.5, 0.15, 0.25])
    drawn = (student, teacher, 0, 1.0, 0.0, "forward_kl", None, None, [1, 3, 1, 1])
    expected = (3 * math.log(0.5 / 0.3) + math.log(0.25 / 0.1)) / 4
    assert kd_loss(*drawn) == pytest.approx(expected)
    assert kd_logit_gradient(*drawn) == pytest.approx([0.4, 0.3 - 0.75, 0.2, 0.1 - 0.25])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_gradient_from_draws_agrees_with_finite_differences(temperature):
    student, teacher = random_rows(3, vocab_size=7, spread=1.5)
    arguments = (teacher, 2, temperature, 0.4, "forward_kl", None, None, [0, 4, 4, 6])
    gradient = kd_logit_gradient(student, *arguments)
    step = 1e-5
    for token in range(7):
        nudge = step * (np.arange(7) == token)
        rise = kd_loss(student + nudge, *arguments) - kd_loss(student - nudge, *arguments)
        assert gradient[token] == pytest.approx(rise / (2 * step), rel=1e-6, abs=1e-8)


def test_averages_over_all_possible_draws_are_the_full_loss_and_gradient():
    """Exact, without sampling: the expectation over every sequence of three draws from four ids."""
    student, teacher = random_rows(8, vocab_size=4, spread=1.0)
    full = (student, teacher, 1, 2.0, 0.3)
    p = np.exp(teacher / 2) / np.exp(teacher / 2).sum()
    loss, gradient = 0.0, np.zeros(4)
    for draws in itertools.product(range(4), repeat=3):
        drawn = (*full, "forward_kl", None, None, draws)
        loss += p[list(draws)].prod() * kd_loss(*drawn)
        gradient += p[list(draws)].prod() * kd_logit_gradient(*drawn)
    assert loss == pytest.approx(kd_loss(*full), rel=1e-12)
    np.testing.assert_allclose(gradient, kd_logit_gradient(*full), rtol=1e-12)


@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_extreme_logits_give_finite_losses_and_gradients(temperature, divergence, beta):
    student = np.array([1e4, -1e4, 0.0, 1e4])
    teacher = np.array([-1e4, 1e4, 0.0, 1e4])
    for top_k in (None, 1, 2):
        arguments = (student, teacher, 1, temperature, 0.5, divergence, beta, top_k)
        assert math.isfinite(kd_loss(*arguments))
        assert np.isfinite(kd_logit_gradient(*arguments)).all()


@settings(deadline=None)
@given(logit_rows, logit_rows, temperatures, st.sampled_from(DIVERGENCES), st.integers(1, 7))
def test_divergence_is_never_negative_and_its_gradient_sums_to_zero(
    student, teacher, temperature, named, top_k
):
    arguments = (student, teacher, 0, temperature, 0.0, *named, top_k)
    assert kd_loss(*arguments) >= -1e-9
    assert abs(kd_logit_gradient(*arguments).sum()) < 1e-9 * max(1.0, temperature)


@settings(deadline=None)
@given(logit_rows, logit_rows, st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_nothing(student, teacher, constant):
    before = kd_loss(student, teacher, 1, 2.0, 0.3)
    assert kd_loss(student + constant, teacher, 1, 2.0, 0.3) == pytest.approx(before, abs=1e-9)
    assert kd_loss(student, teacher + constant, 1, 2.0, 0.3) == pytest.approx(before, abs=1e-9)


def test_kd_step_asks_the_teacher_once_and_returns_every_row():
    rows = np.random.default_rng(7).normal(size=(2, 3, 11))
    teacher: Any = CountingTeacher([row.tolist() for row in rows[0]])
    input_ids = [[1, 2], [3], [4, 5, 6]]
    step = kd_step(teacher, input_ids, [0, 5, 10], 2.0, 0.3, rows[1])
    assert teacher.asked == [input_ids]
    for index, label in enumerate([0, 5, 10]):
        pair = (rows[1][index], rows[0][index], label, 2.0, 0.3)
        assert step.losses[index] == kd_loss(*pair)
        np.testing.assert_array_equal(step.gradients[index], kd_logit_gradient(*pair))
    assert step.loss == pytest.approx(step.losses.sum() / 3)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"label": 4}, "label"),
        ({"label": -100}, "label"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"divergence": "kl"}, "divergence"),
        ({"divergence": "jsd"}, "beta"),
        ({"divergence": "jsd", "beta": 1.0}, "beta"),
        ({"divergence": "reverse_kl", "beta": 0.5}, "beta"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 5}, "top_k"),
        ({"draws": []}, "draws"),
        ({"draws": [4]}, "draws"),
        ({"draws": [-1]}, "draws"),
        ({"draws": [0], "top_k": 2}, "draws"),
        ({"draws": [0], "divergence": "reverse_kl"}, "draws"),
        ({"draws": [0], "beta": 0.5}, "beta"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(change, field):
    arguments = {"label": 0, "temperature": 1.0, "alpha": 0.5} | change
    for function in (kd_loss, kd_logit_gradient):
        with pytest.raises(InvalidRequest) as refusal:
            function(np.zeros(4), np.ones(4), **arguments)
        assert refusal.value.field == field


def test_rows_of_different_length_are_refused():
    with pytest.raises(InvalidRequest):
        kd_loss(np.zeros(4), np.zeros(5), 0, 1.0, 0.5)
    teacher: Any = CountingTeacher([[0.0]])
    with pytest.raises(InvalidRequest):
        kd_step(teacher, [[1]], [0, 0], 1.0, 0.5, [[0.0]])
