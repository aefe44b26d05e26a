"""Writes token ids as shard files and the manifest that describes them."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData, InvalidRequest
from lectern_common.shards import shard_path


class ShardWriter:
    """Appends ids to shard-00000.bin, shard-00001.bin, ... of exactly `shard_tokens` ids each; the
    last one may be shorter. Use as a context manager.

    Attributes:
        total_tokens: ids written.
        shard_count: files begun.
    """

    def __init__(self, folder: Path, shard_tokens: int, vocab_size: int) -> None:
        if shard_tokens < 1:
            raise InvalidRequest("a shard holds at least one token", field="shard_tokens")
        self.total_tokens = 0
        self.shard_count = 0
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._vocab_size = vocab_size
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def append(self, ids: npt.NDArray[np.uint32]) -> None:
        """Writes `ids` [tokens] behind what is written.

        Raises:
            CorruptData: an id is not below the vocabulary's size.
        """
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise CorruptData(
                f"the tokenizer gave id {ids.max()}, beyond its vocabulary of {self._vocab_size}"
            )
        while len(ids):
            room = self._shard_tokens - self.total_tokens % self._shard_tokens
            if room == self._shard_tokens:
                self._begin_shard()
            data = ids[:room].astype("<u4").tobytes()
            self._digest.update(data)
            if self._file is not None:
                self._file.write(data)
            self.total_tokens += min(room, len(ids))
            ids = ids[room:]

    def corpus_sha256(self) -> str:
        """Returns the hex SHA-256 over all shard bytes in order."""
        return self._digest.hexdigest()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _begin_shard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = shard_path(self._folder, self.shard_count).open("xb")
        self.shard_count += 1
