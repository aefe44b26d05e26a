"""Token shards: the manifest is checked, never trusted."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import CorruptData, NotFound
from lectern_common.tokens.shards import (
    ShardFile,
    corpus_sha256,
    mask_path,
    open_masks,
    open_shards,
    read_chat_numbers,
    read_document_starts,
    read_manifest,
    shard_path,
)
from tests.support.training.shards import write_shards

MANIFEST: dict[str, Any] = {
    "schema": "pretokenize-bin-v1",
    "tokenizer_sha256": "0" * 64,
    "corpus_sha256": "1" * 64,
    "shard_count": 2,
    "total_tokens": 7,
    "vocab_size": 100,
    "eos_policy": "after",
    "eos_token_id": 0,
    "seq_length_hint": None,
    "producer_version": "1",
    "producer_sha256": "2" * 64,
}


def dataset(folder: Path, **changes: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, **changes}))
    np.arange(4, dtype="<u4").tofile(shard_path(folder, 0))
    np.arange(4, 7, dtype="<u4").tofile(shard_path(folder, 1))
    return folder


def test_shards_read_back_in_order(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    shards = open_shards(folder, read_manifest(folder))
    assert np.concatenate([shard[:] for shard in shards]).tolist() == list(range(7))
    assert corpus_sha256(shards) == hashlib.sha256(np.arange(7, dtype="<u4").tobytes()).hexdigest()


def test_a_missing_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="lectern data prepare"):
        read_manifest(tmp_path / "gone")


@pytest.mark.parametrize(
    "changes",
    [{"schema": "other"}, {"extra": 1}, {"total_tokens": 0}, {"tokenizer_sha256": "xyz"}],
)
def test_a_manifest_of_another_shape_is_corrupt(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptData):
        read_manifest(dataset(tmp_path, **changes))


@pytest.mark.parametrize("changes", [{"total_tokens": 8}, {"shard_count": 3}])
def test_shards_that_do_not_match_their_manifest_are_corrupt(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = dataset(tmp_path, **changes)
    with pytest.raises(CorruptData):
        open_shards(folder, read_manifest(folder))


def test_a_shard_with_half_a_token_is_corrupt(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    shard_path(folder, 1).write_bytes(b"\x00" * 11)
    with pytest.raises(CorruptData, match="multiple of 4"):
        open_shards(folder, read_manifest(folder))


def test_a_shard_is_read_in_any_slices(tmp_path: Path) -> None:
    path = tmp_path / "numbers.bin"
    np.arange(10, dtype="<u4").tofile(path)
    file = ShardFile(path, "<u4")
    assert len(file) == 10
    assert [file[2:5].tolist(), file[8:99].tolist(), file[:0].tolist()] == [[2, 3, 4], [8, 9], []]
    with pytest.raises(ValueError, match="step 1"):
        file[::2]


def test_document_starts_read_back_and_old_manifests_have_none(tmp_path: Path) -> None:
    folder = with_documents(tmp_path, [0, 2, 6])
    starts = read_document_starts(folder, read_manifest(folder))
    assert starts is not None and starts.tolist() == [0, 2, 6]
    old = dataset(tmp_path)
    assert read_document_starts(old, read_manifest(old)) is None
    assert open_masks(old, read_manifest(old)) is None


@pytest.mark.parametrize("starts", [[0, 6, 2], [0, 2, 2], [1, 2, 6], [0, 2, 7]])
def test_document_starts_that_do_not_rise_within_the_tokens_are_corrupt(
    tmp_path: Path, starts: list[int]
) -> None:
    folder = with_documents(tmp_path, starts)
    with pytest.raises(CorruptData, match="rising token positions"):
        read_document_starts(folder, read_manifest(folder))


def test_a_count_of_documents_without_their_hash_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="go together"):
        read_manifest(dataset(tmp_path, document_count=3))


@pytest.mark.parametrize("firsts", [[0, 0], [1, 2], [0, 4], [0, 2, 1]])
def test_chats_that_do_not_rise_within_the_documents_are_corrupt(
    tmp_path: Path, firsts: list[int]
) -> None:
    folder = write_shards(tmp_path, range(8), documents=[0, 2, 4, 6], chats=firsts)
    with pytest.raises(CorruptData, match=r"chats.bin does not hold rising document numbers"):
        read_chat_numbers(folder, read_manifest(folder))


def test_each_document_is_of_the_chat_that_began_last(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, range(8), documents=[0, 2, 4, 6], chats=[0, 3])
    manifest = read_manifest(folder)
    numbers = read_chat_numbers(folder, manifest)
    assert numbers is not None and numbers.tolist() == [0, 0, 0, 1]
    assert manifest.chats_sha256 in manifest.hashes
    (folder / "chats.bin").write_bytes(bytes(16))
    with pytest.raises(CorruptData, match="does not match its manifest"):
        read_chat_numbers(folder, manifest)
    (folder / "chats.bin").unlink()
    with pytest.raises(CorruptData, match=r"chats.bin is missing"):
        read_chat_numbers(folder, manifest)


def test_a_record_of_chats_needs_one_of_documents(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match="chats_sha256 needs documents_sha256"):
        read_manifest(write_shards(tmp_path, range(8), chats=[0]))
    with pytest.raises(CorruptData, match="chat_count and chats_sha256 go together"):
        read_manifest(write_shards(tmp_path, range(8), documents=[0], chat_count=1))


def test_a_mask_of_another_length_is_corrupt(tmp_path: Path) -> None:
    folder = dataset(tmp_path, mask_sha256="3" * 64)
    for index, size in enumerate((4, 4)):
        mask_path(folder, index).write_bytes(b"\x01" * size)
    with pytest.raises(CorruptData, match="a mask of 8 tokens, but its manifest says 7"):
        open_masks(folder, read_manifest(folder))


def with_documents(folder: Path, starts: list[int]) -> Path:
    data = np.array(starts, "<u8").tobytes()
    (folder / "documents.bin").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return dataset(folder, document_count=len(starts), documents_sha256=digest)
