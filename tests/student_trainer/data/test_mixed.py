"""Of which source each row of a step is, and which row of it."""

import numpy as np
import pytest

from student_trainer.batch import Batch
from student_trainer.data.mixed import JoinedRows, MixedBatches, SourceMix, source_order
from student_trainer.data.rows import StreamRows, SyntheticRows
from student_trainer.data.stream import TokenStream

WEIGHTS = [5, 2, 1]


class Numbered(SyntheticRows):
    """Row i of source k holds only the number 1000 * k + i."""

    def __init__(self, source: int, count: int, apart: bool = False) -> None:
        super().__init__(source, 4, 1 << 20)
        self.__dict__.update(count=count, apart=apart)

    def __len__(self) -> int:
        return int(self.__dict__["count"])

    def row(self, index: int):
        return np.full(5, 1000 * self.seed + index, np.uint32)

    def position_ids(self, index: int):
        return np.array([0, 1, 0, 1]) if self.__dict__["apart"] else None


def mixed(seed: int = 3, rank: int = 0, ranks: int = 1, rows: int = 6) -> MixedBatches:
    joined = JoinedRows([Numbered(0, 11), Numbered(1, 7), Numbered(2, 3)])
    return MixedBatches(joined, SourceMix(WEIGHTS, rows, seed), seed, rank, ranks)


def numbers(batch: Batch) -> list[int]:
    return [int(row[0]) for row in batch.inputs_BS]


def test_rows_are_of_a_source_in_proportion_to_its_weight() -> None:
    mix, steps = SourceMix(WEIGHTS, 16, 1), 4000
    counts = mix.rows_before(steps)
    expected = np.array(WEIGHTS) / sum(WEIGHTS) * steps * 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 13.8  # 2 degrees of freedom, p = 0.001
    assert counts.sum() == steps * 16


@pytest.mark.parametrize("rows", [1, 3, 5000])
def test_a_step_is_a_function_of_seed_and_step_alone(rows: int) -> None:
    forward, fresh = SourceMix(WEIGHTS, rows, 7), SourceMix([10, 4, 2], rows, 7)
    steps = [0, 1, 2, 9, 40] if rows > 100 else [0, 1, 5000, 2, 4095, 4096]
    drawn = {step: forward.sources_of(step).tolist() for step in steps}
    for step in reversed(steps):
        assert fresh.sources_of(step).tolist() == drawn[step]
    assert SourceMix(WEIGHTS, rows, 8).sources_of(1).tolist() != drawn[1] or rows == 1


def test_rows_before_a_step_are_those_of_all_earlier_steps() -> None:
    mix, counted = SourceMix(WEIGHTS, 300, 2), np.zeros(3, int)
    for step in range(40):
        assert SourceMix(WEIGHTS, 300, 2).rows_before(step).tolist() == counted.tolist()
        counted += np.bincount(mix.sources_of(step), minlength=3)


def test_each_source_has_epochs_of_its_own_in_its_own_order() -> None:
    batches = mixed()
    seen: list[list[int]] = [[], [], []]
    for step in range(60):
        batch = batches.batch_at(step)
        assert batch.sources_B is not None
        for number, source in zip(numbers(batch), batch.sources_B, strict=True):
            assert number // 1000 == source
            seen[source].append(number % 1000)
    for source, count in enumerate((11, 7, 3)):
        expected = [
            int(row)
            for epoch in range(len(seen[source]) // count + 1)
            for row in source_order(3, source, epoch, count)
        ]
        assert seen[source] == expected[: len(seen[source])]
        assert sorted(seen[source][:count]) == list(range(count))
    assert batches.epoch_of(2, 60) == len(seen[2]) // 3


def test_a_step_taken_out_of_order_has_the_same_rows() -> None:
    whole = {step: numbers(mixed().batch_at(step)) for step in (30, 2, 31)}
    batches = mixed()
    assert {step: numbers(batches.batch_at(step)) for step in (2, 30, 31)} == whole


def test_ranks_share_the_rows_of_a_step() -> None:
    for step in (0, 17):
        parts = [mixed(rank=rank, ranks=3).batch_at(step) for rank in range(3)]
        assert [row for part in parts for row in numbers(part)] == numbers(mixed().batch_at(step))


def test_a_row_beside_documents_kept_apart_is_one_document() -> None:
    joined = JoinedRows([Numbered(0, 2), Numbered(1, 2, apart=True)])
    found = [joined.position_ids(row) for row in (0, 3)]
    assert [None if ids is None else ids.tolist() for ids in found] == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert JoinedRows([Numbered(0, 2), Numbered(1, 2)]).position_ids(3) is None


def test_joined_rows_are_those_of_each_part_in_turn() -> None:
    stream = StreamRows(TokenStream([np.arange(9, dtype=np.uint32)]), 4)
    joined = JoinedRows([stream, Numbered(5, 3)])
    assert len(joined) == 5 and joined.firsts.tolist() == [0, 2]
    assert [row.tolist() for row in map(joined.row, range(3))] == [
        [0, 1, 2, 3, 4],
        [4, 5, 6, 7, 8],
        [5000] * 5,
    ]
    with pytest.raises(IndexError):
        joined.row(5)
