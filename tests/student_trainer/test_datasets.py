"""Splitting, ordering and sharing of rows."""

import numpy as np
import pytest

from lectern_common.errors import InvalidSpec
from student_trainer.batch_sources import TokenStream
from student_trainer.datasets import (
    ShuffledBatches,
    StreamRows,
    SyntheticRows,
    held_out,
    in_order,
    permutation,
    spread,
)


def rows_of(count: int, seq_len: int = 4) -> StreamRows:
    """`count` rows; row i begins with token i * seq_len."""
    return StreamRows(TokenStream([np.arange(count * seq_len + 1, dtype=np.uint32)]), seq_len)


def test_validation_rows_come_from_the_end_and_overlap_nothing() -> None:
    training, validation = held_out(rows_of(50), 0.1)
    assert [int(training.row(i)[0]) // 4 for i in range(len(training))] == list(range(45))
    assert [int(validation.row(i)[0]) // 4 for i in range(len(validation))] == list(range(45, 50))


def test_at_least_one_row_is_held_out_and_one_is_left() -> None:
    assert [len(part) for part in held_out(rows_of(2), 0.001)] == [1, 1]
    with pytest.raises(InvalidSpec, match="validation_fraction"):
        held_out(rows_of(1), 0.001)


def test_evaluated_rows_are_evenly_spaced_and_at_most_so_many() -> None:
    rows = rows_of(10)
    assert [int(row) for row in spread(rows, 5).indices] == [0, 2, 4, 6, 8]
    assert [int(row) for row in spread(rows, 99).indices] == list(range(10))


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    batches = ShuffledBatches(rows_of(12), sequences_per_step=4, seed=5)
    epochs = [
        np.concatenate([batches.batch_at(step).inputs_BS[:, 0] // 4 for step in range(e, e + 3)])
        for e in (0, 3)
    ]
    for order in epochs:
        assert sorted(order) == list(range(12))
    assert (epochs[0] != epochs[1]).any()


def test_rows_of_a_step_do_not_depend_on_what_was_read_before() -> None:
    straight = ShuffledBatches(rows_of(10), sequences_per_step=4, seed=1)
    seen = [straight.batch_at(step).inputs_BS for step in range(9)]
    for step in (8, 2, 5, 0):  # steps 2, 5 and 7 span two epochs
        fresh = ShuffledBatches(rows_of(10), sequences_per_step=4, seed=1)
        np.testing.assert_array_equal(fresh.batch_at(step).inputs_BS, seen[step])
        np.testing.assert_array_equal(straight.batch_at(step).inputs_BS, seen[step])


def test_another_seed_gives_another_order() -> None:
    one, other = (ShuffledBatches(rows_of(20), 20, seed).batch_at(0).inputs_BS for seed in (0, 1))
    assert (one != other).any()


def test_the_order_is_the_same_in_every_numpy() -> None:
    assert permutation(0, 0, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert permutation(5, 1, 10).tolist() == [2, 9, 0, 6, 1, 5, 8, 7, 4, 3]


def test_data_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="a step takes 8 rows, the training data has 7"):
        ShuffledBatches(rows_of(7), 8, 0)


def test_synthetic_rows_can_be_split_like_any_other() -> None:
    training, validation = held_out(SyntheticRows(0, 6, 30), 0.25)
    assert len(training) + len(validation) == len(SyntheticRows(0, 6, 30))
    assert validation.row(0).shape == (7,)
    assert (validation.row(0) != training.row(0)).any()


def test_in_order_yields_every_row_once() -> None:
    batches = list(in_order(rows_of(5), 2))
    assert [len(batch.inputs_BS) for batch in batches] == [2, 2, 1]
    firsts = np.concatenate([batch.inputs_BS[:, 0] for batch in batches]) // 4
    assert firsts.tolist() == [0, 1, 2, 3, 4]
