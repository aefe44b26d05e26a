"""Token shards on disk: what `lectern data prepare` writes and every process reads. No torch.

DATASET/shard-00000.bin ...   flat uint32 little-endian token ids, no header
DATASET/manifest.json         ShardManifest (schema pretokenize-bin-v1)
DATASET/tokenizer.json        the tokenizer the ids are of
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lectern_common.errors import CorruptData, NotFound

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardManifest(BaseModel):
    """manifest.json; checked when a dataset is opened, not trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    schema_version: Annotated[Literal["pretokenize-bin-v1"], Field(alias="schema")]
    tokenizer_sha256: Sha256
    """Over the token-to-id map, as in tokenizer_map.py."""
    corpus_sha256: Sha256
    """Over all shard bytes in shard order."""
    shard_count: Annotated[int, Field(ge=1)]
    total_tokens: Annotated[int, Field(ge=1)]
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    """Every id is below it."""
    eos_policy: Literal["none", "between", "after"]
    """Where eos_token_id stands: nowhere, between documents, after each document."""
    eos_token_id: int | None
    seq_length_hint: Annotated[int, Field(ge=1)] | None
    producer_version: str
    producer_sha256: str
    """Over the producer's settings and source files."""


def shard_path(dataset: Path, index: int) -> Path:
    return dataset / f"shard-{index:05d}.bin"


def read_manifest(dataset: Path) -> ShardManifest:
    """Returns the manifest of a dataset folder.

    Raises:
        NotFound: no such folder, or no manifest in it.
        CorruptData: the manifest does not follow the schema.
    """
    try:
        return ShardManifest.model_validate_json((dataset / MANIFEST_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"no dataset at {dataset} ({MANIFEST_NAME} is missing); "
            "make one with `lectern data prepare`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CorruptData(f"{dataset / MANIFEST_NAME}: {field}: {first['msg']}") from None


def open_shards(dataset: Path, manifest: ShardManifest) -> list[np.ndarray]:
    """Returns one read-only memory map a shard, sizes checked against the manifest.

    Raises:
        CorruptData: a shard is missing or not a multiple of 4 bytes, or the token count is off.
    """
    shards: list[np.ndarray] = []
    for index in range(manifest.shard_count):
        path = shard_path(dataset, index)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise CorruptData(
                f"{path} is missing; the manifest counts {manifest.shard_count}"
            ) from None
        if size == 0 or size % 4:
            raise CorruptData(f"{path} has {size} bytes, not a positive multiple of 4")
        shards.append(np.memmap(path, "<u4", mode="r"))
    total = sum(len(shard) for shard in shards)
    if total != manifest.total_tokens:
        raise CorruptData(
            f"{dataset} holds {total} tokens, its manifest says {manifest.total_tokens}"
        )
    return shards


def corpus_sha256(shards: list[np.ndarray]) -> str:
    """Returns the hex SHA-256 over all shard bytes in order."""
    digest = hashlib.sha256()
    for shard in shards:
        for first in range(0, len(shard), 1 << 22):
            digest.update(shard[first : first + (1 << 22)].tobytes())
    return digest.hexdigest()
