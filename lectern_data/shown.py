"""What a dataset or prompt set holds, for people: counts, tokenizer, and how documents begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest
from lectern_common.teacher.record.manifest import is_record
from lectern_common.tokens.shards import (
    TOKENIZER_NAME,
    ShardFile,
    ShardManifest,
    open_shards,
    read_any_manifest,
    read_chat_numbers,
    read_document_starts,
)
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files
from lectern_common.words import inert_name

# Tokens of a document that are decoded, from its end if it is a prompt.
_SHOWN_TOKENS = 64


@dataclass(frozen=True)
class ShownDataset:
    """What is known of a folder without reading all of it.

    Attributes:
        path: the folder.
        holds: what its documents are.
        documents: texts, prompts, or sequences of chats; None if unknown.
        chats: of a dataset of chats; None for others, and if unknown.
        tokens, shards: in all.
        longest: tokens of the longest document; None if unknown.
        vocab_size, tokenizer_sha256: of the tokenizer that made the ids.
        bos_policy, bos_token_id, eos_policy, eos_token_id: as in the manifest.
        texts: the first documents: of a prompt its last tokens, of others their first; None if
            there is no tokenizer beside the shards, or document starts are unknown.
    """

    path: Path
    holds: Literal["text", "chats", "prompts"]
    documents: int | None
    chats: int | None
    tokens: int
    shards: int
    longest: int | None
    vocab_size: int
    tokenizer_sha256: str
    bos_policy: str
    bos_token_id: int | None
    eos_policy: str
    eos_token_id: int | None
    texts: list[str] | None


def shown_dataset(folder: Path, num_texts: int) -> ShownDataset:
    """Returns what a dataset or prompt set holds, with its first `num_texts` documents as text.

    Raises:
        NotFound: there is no dataset.
        InvalidRequest: the folder is a record of a teacher.
        CorruptData: its files do not match its manifest.
    """
    if is_record(folder):
        raise InvalidRequest(f"{inert_name(folder)} is a record of a teacher, not a dataset")
    manifest = read_any_manifest(folder)
    starts = read_document_starts(folder, manifest)
    bounds = np.append(0 if starts is None else starts, manifest.total_tokens)
    longest = None if starts is None else int(np.diff(bounds).max())
    chats = None
    if manifest.is_chats and starts is not None:
        numbers = read_chat_numbers(folder, manifest)
        chats = len(starts) if numbers is None else int(numbers[-1]) + 1
    return ShownDataset(
        path=folder,
        holds=manifest.holds,
        documents=manifest.document_count,
        chats=chats,
        tokens=manifest.total_tokens,
        shards=manifest.shard_count,
        longest=longest,
        vocab_size=manifest.vocab_size,
        tokenizer_sha256=manifest.tokenizer_sha256,
        bos_policy=manifest.bos_policy,
        bos_token_id=manifest.bos_token_id,
        eos_policy=manifest.eos_policy,
        eos_token_id=manifest.eos_token_id,
        texts=None if starts is None else _texts(folder, manifest, bounds[: num_texts + 1]),
    )


def _texts(
    folder: Path, manifest: ShardManifest, bounds: npt.NDArray[np.int64]
) -> list[str] | None:
    """Returns the text between each two bounds, cut to _SHOWN_TOKENS; None without a tokenizer."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        return None
    tokenizer, _ = complete_tokenizer(read_tokenizer_files(path), str(path))
    shards, texts = open_shards(folder, manifest), []
    for start, end in pairwise(bounds.tolist()):
        size = min(end - start, _SHOWN_TOKENS)
        first = end - size if manifest.is_prompts else start
        text = tokenizer.decode(_read(shards, first, size).tolist(), skip_special_tokens=False)
        is_cut = size < end - start
        before, after = is_cut and manifest.is_prompts, is_cut and not manifest.is_prompts
        texts.append("... " * before + text + " ..." * after)
    return texts


def _read(shards: Sequence[ShardFile], start: int, count: int) -> npt.NDArray[np.uint32]:
    """Returns `count` tokens from token `start`, across shards."""
    parts, before = [np.empty(0, np.uint32)], 0
    for shard in shards:
        low, high = max(start - before, 0), min(start + count - before, len(shard))
        if low < high:
            parts.append(shard[low:high])
        before += len(shard)
    return np.concatenate(parts)
