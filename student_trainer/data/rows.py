"""Rows by index, split, ordered and batched; step s is a pure function of (seed, s).

So a resumed run sets one number and replays nothing, and runs with the same seed, data and sizes
see the same rows in the same order, whatever else differs. That includes the number of ranks, which
share the rows of a step. `dataset.py` makes rows from a dataset folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lectern_common.checks.rules import require_step, rows_held_out
from student_trainer.batch import Batch, Tokens
from student_trainer.data.stream import SYNTHETIC_ROWS, TokenStream, synthetic_row
from student_trainer.seeds import Key, raw_bits
from student_trainer.targets import IGNORE_INDEX


class Rows(Protocol):
    """A fixed number of rows of seq_len + 1 tokens; indices are 0 to len(self) - 1."""

    def __len__(self) -> int: ...

    @property
    def seq_len(self) -> int:
        """Labels per row."""
        ...

    def row(self, index: int) -> Tokens:
        """Returns the tokens of a row, uint32 [seq_len + 1]."""
        ...

    def counted(self, index: int) -> npt.NDArray[np.bool_] | None:
        """Returns which labels of a row count, [seq_len]; None means all. Reads no tokens."""
        ...

    def position_ids(self, index: int) -> npt.NDArray[np.int64] | None:
        """Returns each input's position in its document, [seq_len]; a row also starts at 0.

        None means the row is one sequence, whatever documents it holds.
        """
        ...

    def num_inputs(self, index: int) -> int:
        """Returns how many inputs of a row are tokens; the rest, at its end, is padding."""
        ...


@dataclass(frozen=True)
class StreamRows:
    """Row i begins at token i * seq_len; the last token of a row is the first of the next.

    With `bos_token_id`, a row is that id and then seq_len tokens: the id is its first input, and
    each token of the stream is a label once, the first of a row after `bos_token_id`.

    Attributes:
        learnt: one byte per token; a label counts if its byte is not 0. None means all count.
        document_starts: ascending; given if documents do not attend to each other: positions
            restart in each, and a document's first token is not a label of the one before.
        bos_token_id: begins each row; None if the rows are only the stream. Only for documents that
            attend to each other.
    """

    stream: TokenStream
    seq_len: int
    learnt: TokenStream | None = None
    document_starts: npt.NDArray[np.int64] | None = None
    bos_token_id: int | None = None

    def __len__(self) -> int:
        return max(0, len(self.stream) - self.first_label) // self.seq_len

    @property
    def first_label(self) -> int:
        """The token of the stream that is the first label of row 0."""
        return 1 if self.bos_token_id is None else 0

    def row(self, index: int) -> Tokens:
        if self.bos_token_id is None:
            return self.stream.read(index * self.seq_len, self.seq_len + 1)
        tokens = self.stream.read(index * self.seq_len, self.seq_len)
        return np.concatenate([np.array([self.bos_token_id], np.uint32), tokens])

    def counted(self, index: int) -> npt.NDArray[np.bool_] | None:
        if self.learnt is None and self.document_starts is None:
            return None
        return np.asarray(self.labels_counted(index, 1)[0])

    def labels_counted(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Returns which labels count in rows `first` to `first + count`, [count, seq_len]."""
        start, size = first * self.seq_len + self.first_label, count * self.seq_len
        if self.learnt is None:
            counted = np.ones(size, bool)
        else:
            counted = np.asarray(self.learnt.read(start, size) != 0)
        counted[self._documents_within(start, size)] = False
        return counted.reshape(count, self.seq_len)

    def position_ids(self, index: int) -> npt.NDArray[np.int64] | None:
        if self.document_starts is None:
            return None
        begins_at = np.zeros(self.seq_len, np.int64)
        offsets = self._documents_within(index * self.seq_len, self.seq_len)
        begins_at[offsets] = offsets
        return np.arange(self.seq_len) - np.maximum.accumulate(begins_at)

    def num_inputs(self, index: int) -> int:
        return self.seq_len

    def _documents_within(self, start: int, size: int) -> npt.NDArray[np.int64]:
        """Returns where documents begin, as offsets from token `start`."""
        if self.document_starts is None:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self.document_starts, [start, start + size])
        return self.document_starts[first:last] - start


@dataclass(frozen=True)
class SyntheticRows:
    """Random tokens, drawn without reading any data."""

    seed: int
    seq_len: int
    vocab_size: int

    def __len__(self) -> int:
        return SYNTHETIC_ROWS

    def row(self, index: int) -> Tokens:
        return synthetic_row(self.seed, index, self.seq_len, self.vocab_size)

    def counted(self, index: int) -> npt.NDArray[np.bool_] | None:
        return None

    def position_ids(self, index: int) -> npt.NDArray[np.int64] | None:
        return None

    def num_inputs(self, index: int) -> int:
        return self.seq_len


@dataclass(frozen=True)
class ChosenRows:
    """A subset of other rows, given by indices."""

    rows: Rows
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def seq_len(self) -> int:
        return self.rows.seq_len

    def row(self, index: int) -> Tokens:
        return self.rows.row(int(self.indices[index]))

    def counted(self, index: int) -> npt.NDArray[np.bool_] | None:
        return self.rows.counted(int(self.indices[index]))

    def position_ids(self, index: int) -> npt.NDArray[np.int64] | None:
        return self.rows.position_ids(int(self.indices[index]))

    def num_inputs(self, index: int) -> int:
        return self.rows.num_inputs(int(self.indices[index]))


def batch_from(rows: Rows, indices: Sequence[int]) -> Batch:
    """Returns the rows at these indices; labels that do not count are IGNORE_INDEX."""
    tokens = np.stack([rows.row(index) for index in indices]).astype(np.int64)
    inputs_BS, labels_BS = tokens[:, :-1], tokens[:, 1:]
    counted = [rows.counted(index) for index in indices]
    if any(counted_S is not None for counted_S in counted):
        labels_BS = labels_BS.copy()  # the inputs share this memory
        for labels_S, counted_S in zip(labels_BS, counted, strict=True):
            if counted_S is not None:
                labels_S[~counted_S] = IGNORE_INDEX
    positions = [rows.position_ids(index) for index in indices]
    known = [positions_S for positions_S in positions if positions_S is not None]
    lengths_B = np.array([rows.num_inputs(index) for index in indices], np.int64)
    return Batch(
        inputs_BS,
        labels_BS,
        np.stack(known) if known else None,
        lengths_B if (lengths_B < rows.seq_len).any() else None,
    )


def held_out(rows: Rows, fraction: float) -> tuple[ChosenRows, ChosenRows]:
    """Returns (training rows, validation rows): the last `fraction`, at least one row, is held out.

    Raises:
        InvalidSpec: either would be empty.
    """
    first = len(rows) - rows_held_out(len(rows), fraction)
    indices = np.arange(len(rows))
    return ChosenRows(rows, indices[:first]), ChosenRows(rows, indices[first:])


def spread(rows: Rows, at_most: int) -> ChosenRows:
    """Returns up to `at_most` evenly spaced rows, always the same ones."""
    count = min(len(rows), at_most)
    return ChosenRows(rows, np.arange(count) * len(rows) // count)


class ShuffledBatches:
    """Training batches by step: each epoch is a permutation of the rows, drawn from (seed, epoch).

    Epochs follow each other without a gap; a batch may span two. Not thread-safe.
    """

    def __init__(
        self, rows: Rows, sequences_per_step: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        """Batches of one rank: `batch_at` returns part `rank` of the `ranks` equal parts of a step.

        The rows of a step do not depend on the number of ranks.

        Raises:
            InvalidSpec: there are fewer rows than one step needs.
            ValueError: the ranks cannot share the rows of a step equally.
        """
        require_step(len(rows), sequences_per_step)
        if sequences_per_step % ranks or not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks} has no share of {sequences_per_step} rows")
        self._rows = rows
        self._sequences_per_step = sequences_per_step
        self._seed = seed
        self._first_of_share = rank * (sequences_per_step // ranks)
        self._share = sequences_per_step // ranks
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def batch_at(self, step: int) -> Batch:
        """Returns this rank's rows of optimizer step `step` (0-based)."""
        drawn = step * self._sequences_per_step + self._first_of_share
        return batch_from(self._rows, [self._index(drawn + i) for i in range(self._share)])

    @property
    def steps_per_epoch(self) -> float:
        """Steps that it takes to see every row once."""
        return len(self._rows) / self._sequences_per_step

    def _index(self, drawn: int) -> int:
        epoch, place = divmod(drawn, len(self._rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self._seed, epoch, len(self._rows))
        return int(self._order[place])


def in_order(rows: Rows, sequences: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """Yields all rows once, in order, `sequences` at a time; the last batch may be smaller.

    With several ranks, each yields every ranks-th batch, and all yield equally many: a rank without
    rows left yields one row whose labels do not count.
    """
    for first in range(0, len(rows), sequences * ranks):
        begin = first + rank * sequences
        if begin < len(rows):
            yield batch_from(rows, range(begin, min(begin + sequences, len(rows))))
        else:
            nothing = batch_from(rows, [0])
            yield replace(nothing, labels_BS=np.full_like(nothing.labels_BS, IGNORE_INDEX))


def permutation(seed: int, epoch: int, count: int, key: Key = Key.ORDER) -> npt.NDArray[np.int64]:
    """Returns 0 .. count - 1 shuffled, the same in every numpy release."""
    keys = raw_bits(key, (seed, epoch), count)
    return np.asarray(np.argsort(keys, kind="stable"), np.int64)
