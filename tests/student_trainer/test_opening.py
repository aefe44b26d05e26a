"""What is checked of a dataset folder before a run reads it, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from lectern_common.errors import CorruptData, InvalidSpec, NotFound
from student_trainer import opening
from student_trainer.batch_sources import ShardBatchSource, TokenStream
from student_trainer.opening import open_dataset
from tests.student_trainer.shards import write_shards


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
        monkeypatch.setattr(opening, "_SCAN_TOKENS", size)
        assert open_dataset(folder, 4, 5, 1.0).bad_rows == expected


def test_too_few_tokens_for_a_row_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.zeros(8, np.int64))
    with pytest.raises(InvalidSpec, match=r"data.seq_len: .* has 8 tokens; a row needs 8 \+ 1"):
        open_dataset(folder, 8, 10, 0.0)


def test_the_manifest_is_returned(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.zeros(9, np.int64))
    assert open_dataset(folder, 4, 10, 0.0).manifest.total_tokens == 9
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "surprise": 1}))
    with pytest.raises(CorruptData, match="surprise"):
        open_dataset(folder, 4, 10, 0.0)
