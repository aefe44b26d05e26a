"""Tokens by index: those of a dataset, read from its shards, and random ones."""

from collections.abc import Sequence

import numpy as np

from lectern_common.tokens.shards import ShardFile
from student_trainer.batch import Tokens
from student_trainer.seeds import Key, raw_bits

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
