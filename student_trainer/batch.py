"""Batches, rows of equal length with their labels, and the interface of their sources.

Legend: B sequences, S tokens of a sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from student_trainer.targets import IGNORE_INDEX

Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Batch:
    """Sequences of equal length; labels_BS may hold IGNORE_INDEX, the only mask. All int64.

    `position_ids_BS` is given if documents in a row do not attend to each other: it restarts at 0
    with each document, and nowhere else. None means each row is one sequence.

    `lengths_B` is given if rows may end with padding: how many inputs of each are tokens. No label
    of padding counts. With `position_ids_BS`, padding is a document by itself. A row of 0 is only
    there to have as many rows as another rank.

    `sources_B` says which source each row is of, if the run mixes several.
    """

    inputs_BS: npt.NDArray[np.int64]
    labels_BS: npt.NDArray[np.int64]
    position_ids_BS: npt.NDArray[np.int64] | None = None
    lengths_B: npt.NDArray[np.int64] | None = None
    sources_B: npt.NDArray[np.int64] | None = None

    @property
    def valid_BS(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.labels_BS != IGNORE_INDEX)

    @property
    def num_tokens(self) -> int:
        """Inputs that are tokens, not padding."""
        return self.inputs_BS.size if self.lengths_B is None else int(self.lengths_B.sum())

    @property
    def num_valid(self) -> int:
        return int(np.count_nonzero(self.valid_BS))

    def micro_batches(self, sequences: int) -> "list[Batch]":
        """Returns the batch in pieces of `sequences` rows, in order; the last may be smaller."""
        firsts = range(0, len(self.inputs_BS), sequences)
        return [self.rows(slice(first, first + sequences)) for first in firsts]

    def rows(self, chosen: "slice | npt.NDArray[np.int64]") -> "Batch":
        """Returns some of the rows, by a slice or by their indices."""
        positions_BS, lengths_B, sources_B = self.position_ids_BS, self.lengths_B, self.sources_B
        return Batch(
            self.inputs_BS[chosen],
            self.labels_BS[chosen],
            None if positions_BS is None else positions_BS[chosen],
            None if lengths_B is None else lengths_B[chosen],
            None if sources_B is None else sources_B[chosen],
        )

    def sequences(self) -> Iterator[tuple[Tokens, npt.NDArray[np.bool_]]]:
        """Yields (ids, valid) of everything to ask a teacher about, in the order of the positions.

        Documents that do not attend to each other are a sequence each. Left out are sequences
        without a valid position, and padding.
        """
        lengths_B = [None] * len(self.inputs_BS) if self.lengths_B is None else self.lengths_B
        valid_BS = self.valid_BS
        for row, length in enumerate(lengths_B):
            ids_S = self.inputs_BS[row, :length].astype(np.uint32)
            valid_S, starts = valid_BS[row, :length], self._later_documents(row, length)
            for ids, valid in zip(np.split(ids_S, starts), np.split(valid_S, starts), strict=True):
                if valid.any():
                    yield ids, valid

    def _later_documents(self, row: int, length: int | None) -> npt.NDArray[np.int64]:
        """Returns where documents begin within a row's tokens, except at its start."""
        if self.position_ids_BS is None:
            return np.empty(0, np.int64)
        starts: npt.NDArray[np.int64] = np.flatnonzero(self.position_ids_BS[row, :length] == 0)
        return starts[starts > 0]


def batch_of(rows: Sequence[Tokens]) -> Batch:
    """Returns the batch of rows of seq_len + 1 tokens each."""
    stacked = np.stack(rows).astype(np.int64)
    return Batch(stacked[:, :-1], stacked[:, 1:])


class BatchSource(Protocol):
    """An endless sequence of batches."""

    def next_batch(
        self, batch_size: int, seq_len: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns (inputs, labels), each [batch_size, seq_len]; labels[i] follows inputs[i].

        Raises:
            InvalidRequest: a size is below 1, or the source is shorter than one row.
        """
        ...

    def reset(self) -> None:
        """Goes back to the first batch."""
        ...
