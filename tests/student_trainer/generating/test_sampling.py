"""The next token: chosen by a number, with the frequencies of the softmax."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lectern_common.errors import InvalidRequest
from student_trainer.generating.sampling import Sampling, chosen_ids, drawn_ids

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 2.0, -torch.inf, 1.1, 0.9])


def drawn(logits_V, u, sampling):
    numbers = torch.tensor([u], dtype=torch.float64)
    return int(drawn_ids(logits_V[None], numbers, sampling)[0])


def reachable(logits_V, sampling, numbers=4_000):
    """Returns every id that some number chooses."""
    u = torch.arange(numbers, dtype=torch.float64) / numbers
    return set(drawn_ids(logits_V.expand(numbers, -1), u, sampling).tolist())


@pytest.mark.parametrize(
    ("u", "top_p", "expected"),
    [
        (0.0, 1.0, 0),
        (0.0999, 1.0, 0),
        (0.1001, 1.0, 1),
        (0.5999, 1.0, 1),
        (0.6001, 1.0, 3),
        (0.9999999999, 1.0, 3),
        (0.0, 0.49, 1),  # of the set {1} alone
        (0.999, 0.49, 1),
        (0.5, 0.6, 1),  # of the set {1, 3}: 0.5 / 0.9 and 0.4 / 0.9
        (0.56, 0.6, 3),
    ],
)
def test_a_number_chooses_the_id_up_to_which_the_probability_is_larger(u, top_p, expected):
    logits_V = torch.tensor([0.1, 0.5, 0.0, 0.4]).log()
    assert drawn(logits_V, u, Sampling(1.0, top_p)) == expected


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (1, 1.0, {2}),  # of equal ones the smallest id
        (2, 1.0, {2, 4}),
        (3, 1.0, {2, 4, 6}),
        (100, 1.0, {0, 1, 2, 3, 4, 6, 7}),  # never the one that is ruled out
        (0, 0.2, {2}),
        (0, 0.3, {2}),  # the probabilities are 0.32, 0.32, 0.13, 0.11, 0.06, ...
        (0, 0.34, {2, 4}),
        (0, 0.7, {2, 4, 6}),
        (2, 0.4, {2}),  # after top_k each of two has 0.5
        (2, 0.6, {2, 4}),
        (0, 1e-9, {2}),
    ],
)
def test_top_k_and_top_p_leave_the_likeliest(top_k, top_p, expected):
    assert reachable(LOGITS, Sampling(1.0, top_p, top_k)) == expected


def test_top_p_is_the_same_whether_few_or_all_ids_are_sorted():
    """2,000 equal ids: half of the probability are the first 1,000, more than are sorted first."""
    flat_V = torch.zeros(2_000)
    found = reachable(flat_V, Sampling(1.0, 0.5), numbers=4_000)
    assert found == set(range(1_000))
    both_BV = torch.stack([flat_V, torch.cat([torch.tensor([50.0]), flat_V[1:]])])
    last = torch.tensor([1 - 2**-53] * 2, dtype=torch.float64)
    assert drawn_ids(both_BV, last, Sampling(1.0, 0.5)).tolist() == [999, 0]


def test_the_largest_number_never_chooses_an_impossible_id():
    last = 1 - 2**-53
    assert drawn(LOGITS, last, Sampling(1.0)) == 7
    assert drawn(torch.tensor([0.0, -torch.inf]), last, Sampling(1.0)) == 0
    assert drawn(torch.tensor([3e38, -3.4e38, 3e38, -1e31]), last, Sampling(1.0)) == 2
    tiny_V = torch.full((50_000,), -16.0)
    assert drawn(tiny_V, last, Sampling(1.0)) == 49_999


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.7, 1.0, 1.7, 1e6])
def test_any_temperature_gives_a_distribution(temperature):
    found = reachable(LOGITS * 20, Sampling(temperature), numbers=200) - {0}  # of number 0
    assert found == {2, 4} if temperature < 2 else found == {1, 2, 3, 4, 6, 7}


def chi_square_limit(degrees):
    """Returns what chi-square exceeds once in 10,000 (Wilson and Hilferty, 1931)."""
    share = 2 / (9 * degrees)
    return degrees * (1 - share + 3.719 * math.sqrt(share)) ** 3


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.9, 1.0, 0), (1.0, 0.8, 0), (1.0, 1.0, 5), (0.8, 0.9, 12)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_frequencies_pass_a_chi_square_test_against_the_softmax(temperature, top_p, top_k, dtype):
    count, vocab_size = 40_000, 24
    logits_V = torch.randn(vocab_size, generator=torch.Generator().manual_seed(4)).to(dtype)
    numbers = torch.from_numpy(np.random.default_rng(7).random(count))
    sampling = Sampling(temperature, top_p, top_k)
    found = Counter(drawn_ids(logits_V.expand(count, -1), numbers, sampling).tolist())

    p_V = (logits_V.double() / temperature).softmax(-1).numpy()
    kept = sorted(range(vocab_size), key=lambda one: -p_V[one])[: top_k or vocab_size]
    whole, before, allowed = p_V[kept].sum(), 0.0, []
    for one in kept:
        if before < top_p * whole:
            allowed.append(one)
        before += p_V[one]
    expected = {one: count * p_V[one] / p_V[allowed].sum() for one in allowed}
    assert found.keys() <= expected.keys()
    chi_square = sum((found[one] - n) ** 2 / n for one, n in expected.items())
    assert chi_square < chi_square_limit(len(expected) - 1)


def test_more_rows_than_are_drawn_at_a_time_are_drawn_each_by_its_own():
    logits_BV = torch.randn(150, 30, generator=torch.Generator().manual_seed(1))
    numbers = torch.from_numpy(np.random.default_rng(2).random(150))
    sampling = Sampling(0.8, 0.9, 20)
    together = drawn_ids(logits_BV, numbers, sampling).tolist()
    assert together == [
        drawn(logits_V, float(u), sampling) for logits_V, u in zip(logits_BV, numbers, strict=True)
    ]


def test_without_a_temperature_the_likeliest_is_chosen_and_the_smallest_of_equals():
    logits_BV = torch.stack([LOGITS, -LOGITS.nan_to_num(neginf=0.0)])
    assert chosen_ids(logits_BV, None, Sampling()) == [2, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution_are_told_apart_from_masks(temperature):
    bad = [torch.nan, torch.inf]
    rows = [LOGITS.index_fill(0, torch.tensor([3]), value) for value in bad]
    rows += [torch.full_like(LOGITS, -torch.inf), LOGITS]
    numbers = torch.full((4,), 0.5, dtype=torch.float64)
    found = chosen_ids(torch.stack(rows), numbers, Sampling(temperature))
    assert found[:3] == [-1, -1, -1]
    assert found[3] >= 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("max_new_tokens", 0),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest, match="must be") as raised:
        Sampling(**{field: value})
    assert raised.value.field == field


def test_a_draw_without_a_number_is_refused():
    with pytest.raises(ValueError, match="uniform"):
        chosen_ids(LOGITS[None], None, Sampling(1.0))
