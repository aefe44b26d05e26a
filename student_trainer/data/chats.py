"""Rows of whole chats: each chat lies in one row, and rows end with padding.

Legend: S seq_len.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lectern_common.tokens.chat_rows import Packing, best_fit
from student_trainer.batch import Tokens
from student_trainer.data.stream import TokenStream

# Any id that every model has: nothing attends to padding, and none of its labels counts.
PAD_ID = 0


@dataclass(frozen=True)
class Chats:
    """Chats of a dataset, by index; a long one may be cut at its end.

    Attributes:
        stream: the tokens of all chats.
        learnt: one byte per token; a label counts if its byte is not 0. None means all count.
        starts: where each chat begins in the stream.
        lengths: tokens of each chat that are used, at least 1.
    """

    stream: TokenStream
    learnt: TokenStream | None
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int) -> Tokens:
        """Returns the tokens of a chat, uint32 [lengths[index]]."""
        return self.stream.read(int(self.starts[index]), int(self.lengths[index]))

    def counted(self, index: int) -> npt.NDArray[np.bool_]:
        """Returns which tokens of a chat are labels that count; its first is a label of nothing."""
        if self.learnt is None:
            counted = np.ones(self.lengths[index], np.bool_)
        else:
            counted = self.learnt.read(int(self.starts[index]), int(self.lengths[index])) != 0
        counted[0] = False
        return counted

    def chosen(self, indices: npt.NDArray[np.int64]) -> "Chats":
        """Returns only these chats, in this order."""
        return replace(self, starts=self.starts[indices], lengths=self.lengths[indices])


@dataclass(frozen=True)
class ChatRows:
    """Rows that hold whole chats, one after the other, and then padding.

    A chat's first token is not a label of the chat before it.

    Attributes:
        chats: of at most seq_len + 1 tokens each.
        seq_len: labels per row.
        packing: which chats each row holds.
        apart: chats do not attend to each other, and positions restart in each.
    """

    chats: Chats
    seq_len: int
    packing: Packing
    apart: bool

    @classmethod
    def of(cls, chats: Chats, seq_len: int, *, apart: bool) -> "ChatRows":
        """Returns the rows that best fit makes of all chats (tokens/chat_rows.py)."""
        return cls(chats, seq_len, best_fit(chats.lengths, seq_len + 1), apart)

    def __len__(self) -> int:
        return len(self.packing)

    def row(self, index: int) -> Tokens:
        tokens = np.full(self.seq_len + 1, PAD_ID, np.uint32)
        chats = [self.chats.row(int(chat)) for chat in self.packing.row(index)]
        tokens[: self._num_tokens(index)] = np.concatenate(chats)
        return tokens

    def counted(self, index: int) -> npt.NDArray[np.bool_] | None:
        counted = np.zeros(self.seq_len + 1, np.bool_)
        chats = [self.chats.counted(int(chat)) for chat in self.packing.row(index)]
        counted[: self._num_tokens(index)] = np.concatenate(chats)
        return counted[1:]

    def position_ids(self, index: int) -> npt.NDArray[np.int64] | None:
        if not self.apart:
            return None
        ends = np.cumsum(self.chats.lengths[self.packing.row(index)])  # the last begins the padding
        begins_at = np.zeros(self.seq_len, np.int64)
        begins = ends[ends < self.seq_len]
        begins_at[begins] = begins
        return np.arange(self.seq_len) - np.maximum.accumulate(begins_at)

    def num_inputs(self, index: int) -> int:
        return min(self._num_tokens(index), self.seq_len)

    @property
    def padding(self) -> float:
        """Share of the rows' inputs that is padding."""
        return self.packing.padding(self.chats.lengths, self.seq_len)

    def _num_tokens(self, index: int) -> int:
        return int(self.chats.lengths[self.packing.row(index)].sum())
