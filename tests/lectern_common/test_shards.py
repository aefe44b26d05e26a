"""Token shards: the manifest is checked, not trusted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import CorruptData, NotFound
from lectern_common.shards import corpus_sha256, open_shards, read_manifest, shard_path

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
    import hashlib

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
