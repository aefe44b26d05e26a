"""The k largest logits: descending, of equal ones the lower id first; and the rest's mass."""

import math

import pytest
import torch

from lectern_common.errors import InvalidRequest
from lectern_models.logits.top_k import log_normalizers, ordered_top_k


def by_hand(row: list[float], k: int) -> tuple[list[float], list[int]]:
    """Returns the k largest, descending, equal ones by ascending id: Python's sort is stable."""
    ids = sorted(range(len(row)), key=lambda i: -row[i])[:k]
    return [row[i] for i in ids], ids


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_equal_logits_come_in_ascending_id_order(k: int) -> None:
    rows = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [0.0, 2.0, 1.0, 2.0, 1.0, 2.0, 0.0, 1.0],
        [3.0, 1.0, 2.0, 5.0, 4.0, 8.0, 7.0, 6.0],
        [-0.0, 0.0, -0.0, 0.0, -1.0, 0.0, -0.0, 0.0],
    ]
    values, ids = ordered_top_k(torch.tensor(rows), k)
    for index, row in enumerate(rows):
        assert (values[index].tolist(), ids[index].tolist()) == by_hand(row, k)


def test_ties_over_a_wide_row_take_the_lowest_ids() -> None:
    """torch.topk by itself picks others here."""
    logits = torch.randint(0, 4, (20, 5000), generator=torch.Generator().manual_seed(1)).float()
    _, ids = ordered_top_k(logits, 50)
    for row, taken in zip(logits.tolist(), ids.tolist(), strict=True):
        assert taken == by_hand(row, 50)[1]


def by_definition(values: list[float]) -> float:
    """Uses math.fsum, so that a tiny rest keeps its digits; an empty sum has no logarithm."""
    if not values:
        return -math.inf
    return max(values) + math.log(math.fsum(math.exp(value - max(values)) for value in values))


@pytest.mark.parametrize("gap", [0.0, 20.0, 60.0, 600.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_rest_is_accurate_however_small(gap: float, temperature: float) -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(2))
    logits[:, :5] += gap + 10
    _, ids = ordered_top_k(logits, 5)
    kept = logits.clone()
    rest, normalizer = log_normalizers(logits, ids, temperature)
    assert torch.equal(logits, kept)
    for index, row in enumerate(logits.tolist()):
        scaled = [value / temperature for value in row]
        assert rest[index].item() == pytest.approx(by_definition(scaled[5:]), abs=1e-6, rel=2e-7)
        assert normalizer[index].item() == pytest.approx(by_definition(scaled), abs=1e-6, rel=2e-7)


def test_the_rest_of_the_whole_vocabulary_is_minus_infinity() -> None:
    logits = torch.randn(3, 7)
    rest, normalizer = log_normalizers(logits, ordered_top_k(logits, 7)[1], 2.0)
    assert rest.tolist() == [-math.inf] * 3
    assert normalizer.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "temperature"), [([1.0, 2.0], 1e-300), ([0.0, -1e30], 1e-30), ([0.0, 0.0], 1e-300)]
)
def test_quotients_out_of_range_are_blamed_on_the_temperature(
    logits: list[float], temperature: float
) -> None:
    with pytest.raises(InvalidRequest, match="out of float32's range") as refusal:
        log_normalizers(torch.tensor([logits]), torch.tensor([[0]]), temperature)
    assert refusal.value.field == "temperature"
