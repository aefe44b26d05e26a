"""Sources of token rows: token shards or random numbers, by index or batch after batch.

Legend: B sequences, S tokens of a sequence.

A row is seq_len + 1 consecutive tokens: the first S are the inputs, the last S the labels, so
labels[i] is the token after inputs[i], and nothing is shifted later. Training addresses rows by
index (`rows.py`); a `BatchSource` (batch.py) returns the same rows one batch after another.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from lectern_common.errors import CorruptData, InvalidRequest
from lectern_common.tokens.shards import (
    ShardFile,
    ShardManifest,
    corpus_sha256,
    open_shards,
    read_manifest,
)
from student_trainer.batch import Tokens, batch_of
from student_trainer.seeds import Key, raw_bits

_log = structlog.get_logger()

# Synthetic data is finite, so that a share of it can be held out.
SYNTHETIC_ROWS = 1 << 16


class TokenStream:
    """All tokens of a dataset as one sequence, across its shards. Read-only.

    Also used for values beside the tokens, one per token (shards.py); read() has their dtype.
    """

    def __init__(self, shards: Sequence[Tokens | ShardFile]) -> None:
        self._shards = list(shards)
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> Tokens:
        """Returns tokens start .. start + count - 1, uint32.

        Raises:
            IndexError: the range goes beyond the stream.
            DataUnavailable: a file has changed, or cannot be read.
        """
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        parts: list[Tokens] = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0:
            offset = start - (int(self._ends[shard]) - len(self._shards[shard]))
            part = self._shards[shard][offset : offset + count]
            parts.append(part)
            start, count, shard = start + len(part), count - len(part), shard + 1
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def synthetic_row(seed: int, index: int, seq_len: int, vocab_size: int) -> Tokens:
    """Returns seq_len + 1 uniform random ids, a pure function of the arguments on every machine."""
    bits = raw_bits(Key.SYNTHETIC, (seed, index), seq_len + 1)
    return np.asarray(bits % np.uint64(vocab_size), np.uint32)


def open_stream(folder: Path) -> tuple[TokenStream, ShardManifest]:
    """Returns all tokens of a dataset folder, every byte checked against its manifest.

    Raises:
        NotFound: there is no dataset.
        CorruptData: sizes or hash do not match the manifest.
    """
    manifest = read_manifest(folder)
    shards = open_shards(folder, manifest)
    _log.info("checking_data", folder=str(folder), tokens=manifest.total_tokens)
    if corpus_sha256(shards) != manifest.corpus_sha256:
        raise CorruptData(
            f"the shards in {folder} do not match its manifest (corpus_sha256 differs); prepare "
            "the data again"
        )
    return TokenStream(shards), manifest


class ShardBatchSource:
    """Rows of a token stream in order; starts over when no whole row is left."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._position = 0

    @classmethod
    def open(cls, folder: Path) -> "ShardBatchSource":
        """Opens a dataset folder. Raises as `open_stream` says."""
        return cls(open_stream(folder)[0])

    def next_batch(
        self, batch_size: int, seq_len: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See BatchSource. The next row begins where the last one's inputs ended."""
        _require_sizes(batch_size, seq_len)
        if len(self._stream) < seq_len + 1:
            raise InvalidRequest(
                f"expected at least {seq_len + 1} tokens for one row, got {len(self._stream)}",
                "seq_len",
            )
        batch = batch_of([self._next_row(seq_len) for _ in range(batch_size)])
        return batch.inputs_BS, batch.labels_BS

    def reset(self) -> None:
        self._position = 0

    def _next_row(self, seq_len: int) -> Tokens:
        if self._position + seq_len + 1 > len(self._stream):
            self._position = 0
        row = self._stream.read(self._position, seq_len + 1)
        self._position += seq_len
        return row


class SyntheticBatchSource:
    """Batches of random tokens; equal seeds give equal batches."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        if vocab_size < 1:
            raise InvalidRequest(f"vocab_size is {vocab_size}; it must be >= 1", "vocab_size")
        self._vocab_size = vocab_size
        self._seed = seed
        self._next_row = 0

    def next_batch(
        self, batch_size: int, seq_len: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See BatchSource."""
        _require_sizes(batch_size, seq_len)
        first, self._next_row = self._next_row, self._next_row + batch_size
        batch = batch_of(
            [
                synthetic_row(self._seed, index, seq_len, self._vocab_size)
                for index in range(first, self._next_row)
            ]
        )
        return batch.inputs_BS, batch.labels_BS

    def reset(self) -> None:
        self._next_row = 0


def _require_sizes(batch_size: int, seq_len: int) -> None:
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len)):
        if value < 1:
            raise InvalidRequest(f"{name} is {value}; it must be >= 1", name)
