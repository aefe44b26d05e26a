"""Writes token shards, masks, documents.bin, chats.bin, and the manifest's fields about them."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData
from lectern_common.tokens.shards import CHATS_NAME, DOCUMENTS_NAME, mask_path, shard_path


class ShardWriter:
    """Appends ids to shard-00000.bin, shard-00001.bin, ... of exactly `shard_tokens` ids each.

    The last one may be shorter. With a mask, mask-00000.bin, ... hold one byte per id. Use as a
    context manager.

    Attributes:
        total_tokens: ids written.
        shard_count: files started.
    """

    def __init__(
        self, folder: Path, shard_tokens: int, vocab_size: int, *, masked: bool = False
    ) -> None:
        self.total_tokens = 0
        self.shard_count = 0
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._vocab_size = vocab_size
        self._masked = masked
        self._shards_digest, self._mask_digest = hashlib.sha256(), hashlib.sha256()
        self._shard: BinaryIO | None = None
        self._mask: BinaryIO | None = None
        self._starts: list[npt.NDArray[np.uint64]] = []
        self._begins_chat: list[npt.NDArray[np.bool_]] = []

    def append(
        self,
        ids: npt.NDArray[np.uint32],
        mask: npt.NDArray[np.uint8] | None,
        starts: npt.NDArray[np.int64],
        begins_chat: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Appends `ids` [tokens].

        Args:
            ids: of whole documents.
            mask: 1 for tokens to learn, [tokens]; None if and only if the shards have no mask.
            starts: index in `ids` of each document's first token, rising.
            begins_chat: whether each document is its chat's first; None means that all are.

        Raises:
            CorruptData: an id is not below the vocabulary size.
        """
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise CorruptData(
                f"the tokenizer gave id {ids.max()}, outside its vocabulary of {self._vocab_size}"
            )
        if (mask is not None) != self._masked:
            raise ValueError("either all tokens have a mask, or none")
        self._starts.append((starts + self.total_tokens).astype("<u8"))
        begins = np.ones(len(starts), np.bool_) if begins_chat is None else begins_chat
        self._begins_chat.append(begins)
        first = 0
        while first < len(ids):
            room = self._shard_tokens - self.total_tokens % self._shard_tokens
            if room == self._shard_tokens:
                self._begin_shard()
            cut = slice(first, first + room)
            data = ids[cut].astype("<u4").tobytes()
            self._shards_digest.update(data)
            if self._shard is not None:
                self._shard.write(data)
            if mask is not None and self._mask is not None:
                self._mask_digest.update(mask[cut].tobytes())
                self._mask.write(mask[cut].tobytes())
            self.total_tokens += len(data) // 4
            first += room

    def finished(self) -> dict[str, Any]:
        """Writes documents.bin, and chats.bin if a chat has several documents.

        Returns the manifest's fields about all written files.
        """
        starts = np.concatenate(self._starts) if self._starts else np.empty(0, "<u8")
        data = starts.tobytes()
        (self._folder / DOCUMENTS_NAME).write_bytes(data)
        firsts = np.flatnonzero(np.concatenate([np.empty(0, np.bool_), *self._begins_chat]))
        chats: dict[str, Any] = {}
        if len(firsts) < len(starts):
            content = firsts.astype("<u8").tobytes()
            (self._folder / CHATS_NAME).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            chats = {"chat_count": len(firsts), "chats_sha256": digest}
        return {
            **chats,
            "corpus_sha256": self._shards_digest.hexdigest(),
            "shard_count": self.shard_count,
            "total_tokens": self.total_tokens,
            "vocab_size": self._vocab_size,
            "document_count": len(starts),
            "documents_sha256": hashlib.sha256(data).hexdigest(),
            "mask_sha256": self._mask_digest.hexdigest() if self._masked else None,
        }

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _begin_shard(self) -> None:
        self._close()
        self._shard = shard_path(self._folder, self.shard_count).open("xb")
        if self._masked:
            self._mask = mask_path(self._folder, self.shard_count).open("xb")
        self.shard_count += 1

    def _close(self) -> None:
        for file in (self._shard, self._mask):
            if file is not None:
                file.close()
