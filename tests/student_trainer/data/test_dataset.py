"""Opening a dataset folder: what is refused, what is left out, and duplicate rows."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from lectern_common.errors import CorruptData, DataUnavailable, Incompatible, InvalidSpec, NotFound
from student_trainer.data import dataset
from student_trainer.data.dataset import in_both, open_dataset, row_hashes
from student_trainer.data.rows import StreamRows
from student_trainer.data.sources import ShardBatchSource
from student_trainer.data.stream import TokenStream
from tests.support.training.shards import write_shards


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
    with pytest.raises(CorruptData, match="holds 99 tokens, but its manifest says 100"):
        open_dataset(folder, 4, 10, 0.0)


def test_ids_beyond_the_manifests_own_vocabulary_are_refused(tmp_path: Path) -> None:
    tokens = np.arange(100) % 10
    tokens[37] = 11
    folder = write_shards(tmp_path, tokens, vocab_size=10)
    with pytest.raises(CorruptData, match=r"token 37 of .* has id 11"):
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
    with pytest.raises(Incompatible, match=r"3 of 10 rows .*30.00%.* rows 2, 3, 7"):
        open_dataset(folder, 4, 9, 0.29)


def test_bad_ids_are_found_whatever_the_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.zeros(41, np.int64)
    tokens[[0, 7, 8, 39, 40]] = 5
    folder = write_shards(tmp_path, tokens, vocab_size=6, shards=2)
    expected = open_dataset(folder, 4, 5, 1.0).bad_rows
    assert expected == [0, 1, 2, 9]
    for size in (1, 3, 8):
        monkeypatch.setattr(dataset, "_SCAN_TOKENS", size)
        assert open_dataset(folder, 4, 5, 1.0).bad_rows == expected


def test_too_few_tokens_for_a_row_are_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.zeros(8, np.int64))
    with pytest.raises(InvalidSpec, match=r"data.seq_len: .* has 8 tokens, but a row needs 8 \+ 1"):
        open_dataset(folder, 8, 10, 0.0)


def test_the_manifest_is_returned(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.zeros(9, np.int64))
    assert open_dataset(folder, 4, 10, 0.0).manifest.total_tokens == 9
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "surprise": 1}))
    with pytest.raises(CorruptData, match="surprise"):
        open_dataset(folder, 4, 10, 0.0)


def test_rows_without_a_label_that_counts_are_left_out(tmp_path: Path) -> None:
    mask = np.zeros(41)
    mask[[5, 13, 14, 40]] = 1  # labels of rows 1, 3, 3 and 9
    folder = write_shards(tmp_path, np.arange(41) % 8, mask=mask, shards=2)
    opened = open_dataset(folder, 4, 8, 0.0)
    assert opened.rows.indices.tolist() == [1, 3, 9]
    assert opened.unlabelled == 7
    counted = [opened.rows.counted(index) for index in range(3)]
    assert [row.tolist() for row in counted if row is not None] == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("scan", [1, 9, 1 << 20])
def test_hashes_and_labels_do_not_depend_on_the_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    draw = np.random.default_rng(0)
    tokens, mask = draw.integers(0, 9, 83), draw.random(83) < 0.2
    folder = write_shards(tmp_path, tokens, mask=mask, documents=[0, 7, 8, 50], shards=3)
    whole = open_dataset(folder, 5, 9, 0.0, attention_across_documents=False)
    monkeypatch.setattr(dataset, "_SCAN_TOKENS", scan)
    cut = open_dataset(folder, 5, 9, 0.0, attention_across_documents=False)
    assert cut.hashes.tolist() == whole.hashes.tolist()
    assert cut.rows.indices.tolist() == whole.rows.indices.tolist() != list(range(16))


@pytest.mark.parametrize("name", ["mask-00001.bin", "documents.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_changed_mask_or_boundary_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    folder = write_shards(
        tmp_path, np.arange(40) % 8, mask=np.ones(40), documents=[0, 9, 30], shards=2
    )
    open_dataset(folder, 4, 8, 0.0)
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[9] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-8])
    else:
        path.unlink()
    with pytest.raises(CorruptData, match=name[:4]):
        open_dataset(folder, 4, 8, 0.0)


def test_documents_can_be_kept_apart_only_if_their_starts_are_known(tmp_path: Path) -> None:
    old = write_shards(tmp_path / "old", np.arange(40) % 8)
    assert len(open_dataset(old, 4, 8, 0.0).rows) == 9
    with pytest.raises(InvalidSpec, match=r"data.attention_across_documents: .*prepare it again"):
        open_dataset(old, 4, 8, 0.0, attention_across_documents=False)


def test_documents_attend_to_each_other_by_default(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.arange(40) % 8, documents=[0, 6])
    rows = open_dataset(folder, 4, 8, 0.0).rows
    assert rows.position_ids(1) is None and rows.counted(1) is None
    apart = open_dataset(folder, 4, 8, 0.0, attention_across_documents=False).rows
    positions, counted = apart.position_ids(1), apart.counted(1)
    assert positions is not None and positions.tolist() == [0, 1, 0, 1]
    assert counted is not None and counted.tolist() == [True, False, True, True]


@pytest.mark.parametrize("damage", ["cut", "replace", "touch", "remove"])
def test_a_shard_that_changes_during_a_run_ends_it_resumable(tmp_path: Path, damage: str) -> None:
    """S13: no SIGBUS, and no silently changed text."""
    folder = write_shards(tmp_path, np.arange(400) % 8, shards=2)
    rows = open_dataset(folder, 4, 8, 0.0).rows
    rows.row(80)
    path = folder / "shard-00001.bin"
    data = path.read_bytes()
    if damage == "cut":
        with path.open("r+b") as file:
            file.truncate(100)
    elif damage == "replace":
        (folder / "new").write_bytes(data)
        (folder / "new").rename(path)
    elif damage == "touch":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(DataUnavailable, match=r"shard-00001\.bin.*resume") as caught:
        rows.row(80)
    assert caught.value.retryable
    rows.row(0)


S = 4


def rows_and_hashes(*rows: list[int]) -> tuple[StreamRows, npt.NDArray[np.uint64]]:
    """Rows of S + 1 tokens, each starting with the last token of the row before."""
    tokens = np.array([rows[0][0], *(token for row in rows for token in row[1:])], np.uint32)
    return StreamRows(TokenStream([tokens]), S), row_hashes(tokens, S)


def test_equal_rows_have_equal_hashes_and_one_token_changes_the_hash() -> None:
    tokens = np.random.default_rng(0).integers(0, 1 << 32, 10 * S + 1, dtype=np.uint32)
    hashes = row_hashes(tokens, S)
    assert len(set(hashes.tolist())) == 10
    np.testing.assert_array_equal(row_hashes(tokens[: 3 * S + 1], S), hashes[:3])
    for place in range(S + 1):
        changed = tokens[: S + 1].copy()
        changed[place] ^= 1 << 31
        assert row_hashes(changed, S)[0] != hashes[0]


def test_the_hash_depends_on_the_order_of_tokens() -> None:
    one, other = (np.array(row, np.uint32) for row in ([1, 2, 3, 4, 5], [1, 3, 2, 4, 5]))
    assert row_hashes(one, S)[0] != row_hashes(other, S)[0]


def test_a_row_is_a_duplicate_if_every_token_is_equal() -> None:
    rows, hashes = rows_and_hashes([0, 1, 2, 3, 4], [4, 9, 9, 9, 5], [5, 6, 7, 8, 9])
    others, other_hashes = rows_and_hashes(
        [5, 6, 7, 8, 9], [9, 1, 2, 3, 4], [4, 9, 9, 9, 5], [5, 6, 7, 8, 9]
    )
    assert in_both(rows, hashes, others, other_hashes).tolist() == [False, True, True]


def test_an_equal_hash_does_not_make_a_duplicate() -> None:
    rows, _ = rows_and_hashes([0, 1, 2, 3, 4], [4, 5, 6, 7, 8])
    others, _ = rows_and_hashes([9, 9, 9, 9, 4], [4, 5, 6, 7, 8])
    same = np.array([7, 7], np.uint64)
    assert in_both(rows, same, others, same).tolist() == [False, True]


ROW: dict[str, Any] = {"bos_policy": "row", "bos_token_id": 7}


@pytest.mark.parametrize("scan", [1, 9, 1 << 20])
def test_rows_that_begin_with_a_token_of_their_own_are_hashed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    tokens = np.random.default_rng(0).integers(0, 7, 42)
    folder = write_shards(tmp_path, tokens, vocab_size=8, shards=3, **ROW)
    monkeypatch.setattr(dataset, "_SCAN_TOKENS", scan)
    found = open_dataset(folder, 4, 8, 0.0)
    assert len(found.rows) == 10 and found.bad_rows == []
    for index in range(10):
        row = found.rows.row(index)
        assert row.tolist() == [7, *tokens[4 * index : 4 * index + 4]]
        assert found.hashes[index] == row_hashes(row, 4)[0]


def test_ids_beyond_the_student_are_found_in_rows_with_their_own_first_token(
    tmp_path: Path,
) -> None:
    tokens = np.zeros(41, np.int64)
    tokens[[3, 4, 40]] = 6  # of rows 0 and 1, and behind the last row
    folder = write_shards(tmp_path, tokens, vocab_size=8, **ROW)
    manifest = folder / "manifest.json"
    assert open_dataset(folder, 4, 8, 0.0).bad_rows == []
    with pytest.raises(Incompatible, match="10 of 10 rows"):  # the first token is among them
        open_dataset(folder, 4, 7, 0.0)
    manifest.write_text(manifest.read_text().replace('"bos_token_id": 7', '"bos_token_id": 5'))
    assert open_dataset(folder, 4, 6, 1.0).bad_rows == [0, 1]


def test_a_stream_of_just_seq_len_tokens_is_a_row_behind_its_own_first_token(
    tmp_path: Path,
) -> None:
    folder = write_shards(tmp_path, np.arange(4), vocab_size=8, **ROW)
    assert len(open_dataset(folder, 4, 8, 0.0).rows) == 1
    with pytest.raises(InvalidSpec, match=r"data\.seq_len"):
        open_dataset(folder, 5, 8, 0.0)


def test_documents_that_begin_within_a_row_would_lack_their_first_token(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, np.arange(40) % 7, vocab_size=8, documents=[0, 9], **ROW)
    with pytest.raises(InvalidSpec, match=r"attention_across_documents: .*--bos-policy document"):
        open_dataset(folder, 4, 8, 0.0, attention_across_documents=False)


def test_a_first_token_that_is_no_id_is_refused(tmp_path: Path) -> None:
    for changed in ({"bos_token_id": None}, {"bos_token_id": 8}):
        folder = write_shards(tmp_path, np.arange(40) % 7, vocab_size=8, **{**ROW, **changed})
        with pytest.raises(CorruptData, match="bos_policy row needs a bos_token_id"):
            open_dataset(folder, 4, 8, 0.0)


def test_rows_with_another_first_token_are_other_data(tmp_path: Path) -> None:
    tokens = np.arange(40) % 7
    plain = open_dataset(write_shards(tmp_path / "plain", tokens, vocab_size=8), 4, 8, 0.0)
    row = open_dataset(write_shards(tmp_path / "row", tokens, vocab_size=8, **ROW), 4, 8, 0.0)
    assert plain.manifest.hashes == [plain.manifest.corpus_sha256]
    assert row.manifest.hashes[:1] == plain.manifest.hashes != row.manifest.hashes
