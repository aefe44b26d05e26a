"""Splitting, ordering and sharing rows."""

import numpy as np
import pytest

from lectern_common.errors import InvalidSpec
from student_trainer.data.rows import (
    ShuffledBatches,
    StreamRows,
    SyntheticRows,
    held_out,
    in_order,
    permutation,
    spread,
)
from student_trainer.data.stream import TokenStream
from student_trainer.targets import IGNORE_INDEX


def rows_of(count: int, seq_len: int = 4) -> StreamRows:
    """`count` rows; row i starts with token i * seq_len."""
    return StreamRows(TokenStream([np.arange(count * seq_len + 1, dtype=np.uint32)]), seq_len)


def test_validation_rows_come_from_the_end_and_do_not_overlap() -> None:
    training, validation = held_out(rows_of(50), 0.1)
    assert [int(training.row(i)[0]) // 4 for i in range(len(training))] == list(range(45))
    assert [int(validation.row(i)[0]) // 4 for i in range(len(validation))] == list(range(45, 50))


def test_at_least_one_row_is_held_out_and_one_is_left() -> None:
    assert [len(part) for part in held_out(rows_of(2), 0.001)] == [1, 1]
    with pytest.raises(InvalidSpec, match="validation_fraction"):
        held_out(rows_of(1), 0.001)


def test_evaluated_rows_are_evenly_spaced_and_limited() -> None:
    rows = rows_of(10)
    assert [int(row) for row in spread(rows, 5).indices] == [0, 2, 4, 6, 8]
    assert [int(row) for row in spread(rows, 99).indices] == list(range(10))


def test_every_epoch_visits_every_row_once_in_its_own_order() -> None:
    batches = ShuffledBatches(rows_of(12), sequences_per_step=4, seed=5)
    epochs = [
        np.concatenate([batches.batch_at(step).inputs_BS[:, 0] // 4 for step in range(e, e + 3)])
        for e in (0, 3)
    ]
    for order in epochs:
        assert sorted(order) == list(range(12))
    assert (epochs[0] != epochs[1]).any()


def test_rows_of_a_step_do_not_depend_on_earlier_reads() -> None:
    straight = ShuffledBatches(rows_of(10), sequences_per_step=4, seed=1)
    seen = [straight.batch_at(step).inputs_BS for step in range(9)]
    for step in (8, 2, 5, 0):  # steps 2, 5 and 7 span two epochs
        fresh = ShuffledBatches(rows_of(10), sequences_per_step=4, seed=1)
        np.testing.assert_array_equal(fresh.batch_at(step).inputs_BS, seen[step])
        np.testing.assert_array_equal(straight.batch_at(step).inputs_BS, seen[step])


def test_another_seed_gives_another_order() -> None:
    one, other = (ShuffledBatches(rows_of(20), 20, seed).batch_at(0).inputs_BS for seed in (0, 1))
    assert (one != other).any()


def test_the_order_is_the_same_in_every_numpy_release() -> None:
    assert permutation(0, 0, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert permutation(5, 1, 10).tolist() == [2, 9, 0, 6, 1, 5, 8, 7, 4, 3]


def test_data_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="a step needs 8 rows, but the training data has only 7"):
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


def masked_rows(count: int = 5, seq_len: int = 6) -> StreamRows:
    """The label of every third token counts, and documents of 4 tokens are kept apart."""
    total = count * seq_len + 1
    tokens = np.arange(total, dtype=np.uint32)
    learnt = TokenStream([(np.arange(total) % 3 == 0).astype(np.uint8)])
    return StreamRows(TokenStream([tokens]), seq_len, learnt, np.arange(0, total, 4))


def test_a_label_counts_unless_masked_or_first_of_a_document() -> None:
    rows = masked_rows()
    for index in range(len(rows)):
        labels = rows.row(index)[1:]
        expected = [token % 3 == 0 and token % 4 != 0 for token in labels.tolist()]
        counted = rows.counted(index)
        assert counted is not None and counted.tolist() == expected
    batch = next(in_order(rows, 5))
    flat = batch.labels_BS.ravel()
    assert flat[flat != IGNORE_INDEX].tolist() == [3, 6, 9, 15, 18, 21, 27, 30]
    assert (batch.inputs_BS.ravel() == np.arange(30)).all()


def test_positions_restart_with_each_document_and_each_row() -> None:
    rows = masked_rows()
    positions = [rows.position_ids(index) for index in range(2)]
    assert [list(row) for row in positions if row is not None] == [
        [0, 1, 2, 3, 0, 1],
        [0, 1, 0, 1, 2, 3],
    ]
    batch = next(in_order(rows, 2))
    assert batch.position_ids_BS is not None
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 3]]
    assert [part.position_ids_BS.tolist() for part in batch.micro_batches(1)] == [  # type: ignore[union-attr]
        [[0, 1, 2, 3, 0, 1]],
        [[0, 1, 0, 1, 2, 3]],
    ]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_shares_of_all_ranks_make_up_the_step_in_order(ranks: int) -> None:
    rows = masked_rows(10)
    whole = ShuffledBatches(rows, 4, seed=3)
    shares = [ShuffledBatches(rows, 4, 3, rank, ranks) for rank in range(ranks)]
    for step in (0, 2, 7):  # steps 2 and 7 span two epochs
        parts = [share.batch_at(step) for share in shares]
        expected = whole.batch_at(step)
        np.testing.assert_array_equal(
            np.concatenate([part.inputs_BS for part in parts]), expected.inputs_BS
        )
        np.testing.assert_array_equal(
            np.concatenate([part.labels_BS for part in parts]), expected.labels_BS
        )


def test_ranks_that_cannot_share_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="no share of 4 rows"):
        ShuffledBatches(rows_of(9), 4, 0, 0, 3)


def test_epochs_are_counted_in_rows_seen() -> None:
    assert ShuffledBatches(rows_of(10), 4, 0).steps_per_epoch == 2.5


def test_ranks_share_the_validation_batches() -> None:
    rows = rows_of(5)
    parts = [list(in_order(rows, 1, rank, 2)) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    seen = [batch for part in parts for batch in part if batch.num_valid]
    firsts = sorted(int(batch.inputs_BS[0, 0]) // 4 for batch in seen)
    assert firsts == [0, 1, 2, 3, 4]
    assert parts[1][2].num_valid == 0


def rows_with_bos(seq_len: int = 4) -> StreamRows:
    """Tokens 10 to 22 in rows that begin with id 1; every third token is not learnt."""
    tokens = np.arange(10, 23, dtype=np.uint32)
    learnt = TokenStream([(np.arange(13) % 3 != 2).astype(np.uint8)])
    return StreamRows(TokenStream([tokens]), seq_len, learnt, bos_token_id=1)


def test_a_row_may_begin_with_a_token_of_its_own() -> None:
    rows = rows_with_bos()
    assert [rows.row(index).tolist() for index in range(len(rows))] == [
        [1, 10, 11, 12, 13],
        [1, 14, 15, 16, 17],
        [1, 18, 19, 20, 21],
    ]


def test_behind_its_first_token_each_token_of_the_stream_is_a_label_once() -> None:
    batch = next(in_order(rows_with_bos(), 3))
    assert batch.inputs_BS[:, 0].tolist() == [1, 1, 1]
    assert batch.labels_BS.tolist() == [
        [10, 11, IGNORE_INDEX, 13],
        [14, IGNORE_INDEX, 16, 17],
        [IGNORE_INDEX, 19, 20, IGNORE_INDEX],
    ]
    assert batch.position_ids_BS is None and batch.num_tokens == 12


def test_a_row_that_begins_with_a_token_of_its_own_needs_seq_len_tokens() -> None:
    stream = TokenStream([np.arange(12, dtype=np.uint32)])
    assert len(StreamRows(stream, 12, bos_token_id=1)) == 1
    assert len(StreamRows(stream, 12)) == 0
    assert len(StreamRows(stream, 13, bos_token_id=1)) == 0
