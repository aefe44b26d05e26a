"""The random numbers of a run, pinned by value: changing one would change every run."""

import numpy as np
import pytest
import torch

from lectern_common.wire.formats import Representation
from student_trainer.data.dataset import row_hashes
from student_trainer.data.rows import permutation
from student_trainer.data.stream import synthetic_row
from student_trainer.run import loop
from student_trainer.seeds import Key, derived_seed, raw_bits
from student_trainer.targets import of_step

LARGEST = (1 << 63) - 1


def test_the_order_of_rows_is_pinned() -> None:
    assert permutation(7, 0, 8).tolist() == [4, 3, 6, 2, 1, 0, 5, 7]
    assert permutation(LARGEST, 2, 8).tolist() == [0, 1, 7, 4, 3, 5, 2, 6]


def test_synthetic_rows_are_pinned() -> None:
    assert synthetic_row(7, 3, 4, 50257).tolist() == [29231, 16294, 37611, 25982, 34579]
    assert synthetic_row(LARGEST, 65535, 3, 97).tolist() == [54, 28, 57, 6]


def test_the_hash_of_rows_is_pinned() -> None:
    hashes = row_hashes(np.arange(1, 10, dtype=np.uint32), 4)
    assert hashes.tolist() == [13892735119640770824, 1311321736117538756]


@pytest.mark.parametrize(
    ("seed", "step", "drawn"),
    [
        (7, 3, 1601584863417153058),
        (7, 4, 17688752402363582809),
        (LARGEST, 0, 5222541672388840013),
    ],
)
def test_the_seed_of_a_steps_draws_is_pinned(seed: int, step: int, drawn: int) -> None:
    assert of_step(Representation("sampled", num_draws=4), seed, step).seed == drawn


@pytest.mark.parametrize(
    ("step", "rank", "seed", "torch_seed"),
    [
        (3, 0, 7, 8923556163360233800),
        (3, 1, 7, 51658952771781532),
        (0, 0, LARGEST, 16701877725295887617),
    ],
)
def test_the_seed_of_a_steps_dropout_is_pinned(
    step: int, rank: int, seed: int, torch_seed: int
) -> None:
    before = torch.initial_seed()
    with loop._dropout_of(step, rank, seed, torch.device("cpu")):
        assert torch.initial_seed() == torch_seed
    assert torch.initial_seed() == before


def test_no_two_keys_draw_the_same() -> None:
    assert [key.value for key in Key] == list(range(11))
    assert len({derived_seed(key, (7, 3)) for key in Key}) == len(Key)
    assert len({int(raw_bits(key, (7, 3), 1)[0]) for key in Key}) == len(Key)
