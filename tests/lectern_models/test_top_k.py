"""Order of the k largest: falling, and among equal logits the lower id first."""

import pytest
import torch

from lectern_models.top_k import ordered_top_k


def by_hand(row: list[float], k: int) -> tuple[list[float], list[int]]:
    """The k largest, falling, equal ones by rising id: Python's sort is stable."""
    ids = sorted(range(len(row)), key=lambda i: -row[i])[:k]
    return [row[i] for i in ids], ids


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_equal_logits_come_in_rising_id_order(k: int) -> None:
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
    """torch.topk alone picks others here."""
    logits = torch.randint(0, 4, (20, 5000), generator=torch.Generator().manual_seed(1)).float()
    _, ids = ordered_top_k(logits, 50)
    for row, taken in zip(logits.tolist(), ids.tolist(), strict=True):
        assert taken == by_hand(row, 50)[1]
