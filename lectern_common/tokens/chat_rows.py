"""Packs whole chats into rows of equal length, and counts what that costs. No torch.

A row has seq_len inputs and as many labels, so it holds chats of seq_len + 1 tokens together. Chats
are packed by best fit, longest first: each goes into the fullest row that has room for it. The rows
depend only on the chats and on seq_len.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lectern_common.tokens.shards import blocks_of

LongChats = Literal["cut", "drop", "error"]
LONG_CHATS: LongChats = "cut"
"""What a run does with chats longer than a row unless its spec says otherwise."""

_Ints = npt.NDArray[np.int64]
# Mask bytes counted at a time; each takes some 40 bytes.
_COUNTED_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Packing:
    """Which chats each row holds: row i has `chats[offsets[i] : offsets[i + 1]]`, ascending.

    Rows are in the order of their first chats.
    """

    offsets: _Ints
    chats: _Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> _Ints:
        """Returns the chats of a row."""
        return self.chats[self.offsets[index] : self.offsets[index + 1]]

    def row_tokens(self, lengths: _Ints) -> _Ints:
        """Returns the tokens of each row, [len(self)]; `lengths` are the chats'."""
        return np.diff(np.concatenate([[0], np.cumsum(lengths[self.chats])])[self.offsets])

    def padding(self, lengths: _Ints, seq_len: int) -> float:
        """Returns the share of the rows' inputs, seq_len each, that holds no token of a chat."""
        used = int(np.minimum(self.row_tokens(lengths), seq_len).sum())
        return 1 - used / max(1, len(self) * seq_len)


def best_fit(lengths: _Ints, capacity: int) -> Packing:
    """Returns the packing of chats into rows of `capacity` tokens, by best fit, longest first.

    Chats of equal length are placed together, so it takes O(n log n), most of it in numpy.

    Args:
        lengths: tokens of each chat, from 1 to capacity.
        capacity: tokens that a row has room for.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, firsts = np.unique(-lengths[order], return_index=True)
    row_of = np.empty(len(lengths), np.int64)
    rooms, num_rows = _Rooms(), 0
    groups = np.split(order, firsts[1:]) if len(order) else []
    for size, chats in zip((-sizes).tolist(), groups, strict=True):
        while len(chats) and (room := rooms.smallest_of(size)) is not None:
            each = room // size
            rows = rooms.take(room, -(-len(chats) // each))
            here, chats = chats[: each * len(rows)], chats[each * len(rows) :]
            row_of[here] = _filled(rooms, rows, room, size, len(here))
        if len(chats):
            each = capacity // size
            rows = np.arange(num_rows, num_rows - (-len(chats) // each))
            num_rows += len(rows)
            row_of[chats] = _filled(rooms, rows, capacity, size, len(chats))
    return _by_first_chat(row_of, num_rows)


class _Rooms:
    """The rows that are not full, by the tokens that they have room for."""

    def __init__(self) -> None:
        self._rows: dict[int, deque[_Ints]] = {}
        self._sizes: list[int] = []

    def smallest_of(self, size: int) -> int | None:
        """Returns the least room that is at least `size`; None if no row has that much."""
        place = bisect_left(self._sizes, size)
        return self._sizes[place] if place < len(self._sizes) else None

    def put(self, room: int, rows: _Ints) -> None:
        if room and len(rows):
            if room not in self._rows:
                insort(self._sizes, room)
                self._rows[room] = deque()
            self._rows[room].append(rows)

    def take(self, room: int, at_most: int) -> _Ints:
        """Removes and returns rows with exactly this room, those put first."""
        waiting, taken, count = self._rows[room], [], 0
        while waiting and count < at_most:
            rows = waiting.popleft()
            if len(rows) > at_most - count:
                waiting.appendleft(rows[at_most - count :])
                rows = rows[: at_most - count]
            taken.append(rows)
            count += len(rows)
        if not waiting:
            del self._rows[room]
            del self._sizes[bisect_left(self._sizes, room)]
        return np.concatenate(taken)


def _filled(rooms: _Rooms, rows: _Ints, room: int, size: int, count: int) -> _Ints:
    """Fills rows of equal room with `count` chats of one size, one row after the other.

    Returns the row of each chat, and puts the rows back with the room that is left. Only the last
    row may have room for another chat.
    """
    each = room // size
    rooms.put(room - each * size, rows[:-1])
    rooms.put(room - (count - each * (len(rows) - 1)) * size, rows[-1:])
    return np.repeat(rows, each)[:count]


def _by_first_chat(row_of: _Ints, num_rows: int) -> Packing:
    indices = np.arange(len(row_of))
    first = np.empty(num_rows, np.int64)
    first[row_of[::-1]] = indices[::-1]  # of several values for one row the last one stays
    number = np.empty(num_rows, np.int64)
    number[np.argsort(first)] = np.arange(num_rows)
    row_of = number[row_of]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
    return Packing(offsets.astype(np.int64), np.argsort(row_of, kind="stable"))


@dataclass(frozen=True)
class FittedChats:
    """The chats that go into rows, and what becomes of the others.

    Attributes:
        chosen: indices of the chats that go into rows, ascending.
        lengths: tokens of each that are used, [len(chosen)].
        longer: chats of more than seq_len + 1 tokens.
        cut: those of them that are cut.
        dropped: those of them that are left out.
        unlabelled: chats without a label that is learnt, of those that are not dropped. A chat that
            is cut may have had its only answer behind the cut.
    """

    chosen: _Ints
    lengths: _Ints
    longer: int
    cut: int
    dropped: int
    unlabelled: int


def chat_lengths(starts: _Ints, total_tokens: int) -> _Ints:
    """Returns the tokens of each chat; `starts` are as in documents.bin."""
    return np.diff(np.concatenate([starts, [total_tokens]]))


def fit(
    lengths: _Ints,
    seq_len: int,
    rule: LongChats,
    is_labelled: npt.NDArray[np.bool_] | None = None,
) -> FittedChats:
    """Returns the chats that go into rows of seq_len.

    Args:
        lengths: tokens of each chat.
        seq_len: labels per row.
        rule: cut keeps the first seq_len + 1 tokens of a longer chat, so that nothing is learnt
            without what came before it; drop leaves it out. (error is for the caller to raise.)
        is_labelled: whether a chat's first seq_len + 1 tokens have a label that is learnt; None if
            that is not known, which counts as true.
    """
    is_longer = lengths > seq_len + 1
    fits = ~is_longer if rule == "drop" else np.ones(len(lengths), np.bool_)
    teaches = fits if is_labelled is None else fits & is_labelled
    chosen = np.flatnonzero(teaches)
    longer = int(np.count_nonzero(is_longer))
    return FittedChats(
        chosen=chosen,
        lengths=np.minimum(lengths[chosen], seq_len + 1),
        longer=longer,
        cut=int(np.count_nonzero(is_longer & teaches)),
        dropped=longer if rule == "drop" else 0,
        unlabelled=int(np.count_nonzero(fits & ~teaches)),
    )


def segments(starts: _Ints, first: int, count: int) -> tuple[int, _Ints, _Ints]:
    """Returns how chats lie in the `count` tokens from token `first`; count is at least 1.

    Returns:
        The first chat's index; where each chat begins within these tokens, [chats]; and each
        token's offset within its whole chat, [count].
    """
    chat, end = np.searchsorted(starts, [first, first + count - 1], side="right") - [1, 0]
    begins = np.maximum(starts[chat:end] - first, 0)
    sizes = np.diff(np.concatenate([begins, [count]]))
    offsets = np.arange(first, first + count) - np.repeat(starts[chat:end], sizes)
    return int(chat), begins, offsets


def learnt_labels(masks: Sequence[Any], starts: _Ints, limits: Sequence[int]) -> _Ints:
    """Returns the learnt labels in the first `limit` tokens of each chat, [len(limits), chats].

    A chat's first token is a label of nothing. Reads the masks once.

    Args:
        masks: as open_masks returns them.
        starts: as read_document_starts returns them.
        limits: numbers of tokens.
    """
    counts = np.zeros((len(limits), len(starts)), np.int64)
    for first, block in blocks_of(masks, _COUNTED_AT_A_TIME):
        is_learnt = block != 0
        chat, begins, offsets = segments(starts, first, len(is_learnt))
        is_learnt &= offsets > 0
        before = np.concatenate([[0], np.cumsum(is_learnt)])
        ends = np.concatenate([begins[1:], [len(is_learnt)]])
        for row, limit in zip(counts, limits, strict=True):
            last = np.clip(begins + limit - offsets[begins], begins, ends)
            row[chat : chat + len(begins)] += before[last] - before[begins]
    return counts


@dataclass(frozen=True)
class ChatShares:
    """What rows of one seq_len make of a dataset's chats.

    Attributes:
        seq_len: labels per row.
        rule: for longer chats.
        chats: in the dataset; `longer` of them have more than seq_len + 1 tokens. `cut`, `dropped`
            and `unlabelled` are as in FittedChats.
        rows: that hold all chosen chats.
        padding: share of the rows' positions that hold no token.
        labels: labels that the rows teach, once.
        labels_of_positions: their share of the rows' positions.
        labels_lost: share of the dataset's learnt labels that is in no row.
    """

    seq_len: int
    rule: LongChats
    chats: int
    longer: int
    cut: int
    dropped: int
    unlabelled: int
    rows: int
    padding: float
    labels: int
    labels_of_positions: float
    labels_lost: float


def chat_shares(
    lengths: _Ints, labels: _Ints, all_labels: _Ints, seq_len: int, rule: LongChats
) -> ChatShares:
    """Returns what rows of seq_len make of chats.

    Args:
        lengths: tokens of each chat.
        labels: learnt labels in each chat's first seq_len + 1 tokens.
        all_labels: learnt labels in each whole chat.
        seq_len: labels per row.
        rule: for longer chats.
    """
    fitted = fit(lengths, seq_len, rule, labels > 0)
    packing = best_fit(fitted.lengths, seq_len + 1)
    taught, total = int(labels[fitted.chosen].sum()), max(1, int(all_labels.sum()))
    return ChatShares(
        seq_len=seq_len,
        rule=rule,
        chats=len(lengths),
        longer=fitted.longer,
        cut=fitted.cut,
        dropped=fitted.dropped,
        unlabelled=fitted.unlabelled,
        rows=len(packing),
        padding=packing.padding(fitted.lengths, seq_len),
        labels=taught,
        labels_of_positions=taught / max(1, len(packing) * seq_len),
        labels_lost=1 - taught / total,
    )
