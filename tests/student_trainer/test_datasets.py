"""Opening, splitting and ordering of rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from lectern_common.errors import CorruptData, InvalidSpec, NotFound
from student_trainer import datasets
from student_trainer.batch_sources import ShardBatchSource, TokenStream
from student_trainer.datasets import (
    ShuffledBatches,
    StreamRows,
    SyntheticRows,
    held_out,
    in_order,
    open_dataset,
    permutation,
    spread,
)
from tests.student_trainer.shards import write_shards


def rows_of(count: int, seq_len: int = 4) -> StreamRows:
    """`count` rows; row i begins with token i * seq_len."""
    return StreamRows(TokenStream([np.arange(count * seq_len + 1, dtype=np.uint32)]), seq_len)


def test_rows_by_index_are_the_rows_of_the_sequential_source(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 203)
    dataset = open_dataset(write_shards(tmp_path, tokens, shards=3), 10, 50, 0.0)
    assert len(dataset.rows) == 20
    assert dataset.bad_rows == []
    source = ShardBatchSource(TokenStream([tokens.astype(np.uint32)]))
    inputs, labels = source.next_batch(20, 10)
    for index in range(20):
        row = dataset.rows.row(index)
        np.testing.assert_array_equal(row[:-1], inputs[index])
        np.testing.assert_array_equal(row[1:], labels[index])


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="lectern data prepare"):
        open_dataset(tmp_path / "nothing", 4, 10, 0.0)


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.arange(100) % 10)
    path = folder / "shard-00000.bin"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptData, match="corpus_sha256 differs"):
        open_dataset(folder, 4, 10, 0.0)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.arange(100) % 10)
    path = folder / "shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptData, match="holds 99 tokens, its manifest says 100"):
        open_dataset(folder, 4, 10, 0.0)


def test_ids_beyond_the_manifests_own_vocabulary_are_refused(tmp_path: Path) -> None:
    tokens = np.arange(100) % 10
    tokens[37] = 11
    folder = write_shards(tmp_path, tokens, vocab_size=10)
    with pytest.raises(CorruptData, match=r"token 37 of .* is 11"):
        open_dataset(folder, 4, 100, 1.0)


def test_rows_with_ids_that_the_student_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    tokens = np.arange(41) % 8
    tokens[12] = 9  # first input of row 3 and last label of row 2
    tokens[30] = 9  # within row 7
    folder = write_shards(tmp_path, tokens, vocab_size=10)
    with capture_logs() as logs:
        dataset = open_dataset(folder, 4, 9, 0.3)
    assert dataset.bad_rows == [2, 3, 7]
    assert len(dataset.rows) == 7
    assert all(dataset.rows.row(index).max() < 9 for index in range(7))
    (warning,) = (line for line in logs if line["event"] == "rows_left_out")
    assert warning["rows"] == 3
    with pytest.raises(CorruptData, match=r"3 of 10 rows .*30.00%.* rows 2, 3, 7"):
        open_dataset(folder, 4, 9, 0.29)


def test_ids_are_found_wherever_the_scan_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.zeros(41, np.int64)
    tokens[[0, 7, 8, 39, 40]] = 5
    folder = write_shards(tmp_path, tokens, vocab_size=6, shards=2)
    expected = open_dataset(folder, 4, 5, 1.0).bad_rows
    assert expected == [0, 1, 2, 9]
    for size in (1, 3, 8):
        monkeypatch.setattr(datasets, "_SCAN_TOKENS", size)
        assert open_dataset(folder, 4, 5, 1.0).bad_rows == expected


def test_too_few_tokens_for_a_row_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.zeros(8, np.int64))
    with pytest.raises(InvalidSpec, match=r"data.seq_len: .* has 8 tokens; a row needs 8 \+ 1"):
        open_dataset(folder, 8, 10, 0.0)


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


def test_the_manifest_is_returned(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.zeros(9, np.int64))
    assert open_dataset(folder, 4, 10, 0.0).manifest.total_tokens == 9
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "surprise": 1}))
    with pytest.raises(CorruptData, match="surprise"):
        open_dataset(folder, 4, 10, 0.0)
