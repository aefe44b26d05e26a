"""Batches, rows of equal length with their labels, and the interface of their sources.

Legend: B sequences, S tokens of a sequence.
"""

from collections.abc import Sequence
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
    """

    inputs_BS: npt.NDArray[np.int64]
    labels_BS: npt.NDArray[np.int64]
    position_ids_BS: npt.NDArray[np.int64] | None = None

    @property
    def valid_BS(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.labels_BS != IGNORE_INDEX)

    @property
    def num_tokens(self) -> int:
        return self.inputs_BS.size

    @property
    def num_valid(self) -> int:
        return int(np.count_nonzero(self.valid_BS))

    def micro_batches(self, sequences: int) -> "list[Batch]":
        """Returns the batch in pieces of `sequences` rows, in order; the last may be smaller."""
        positions_BS = self.position_ids_BS
        cuts = [
            slice(first, first + sequences) for first in range(0, len(self.inputs_BS), sequences)
        ]
        return [
            Batch(
                self.inputs_BS[cut],
                self.labels_BS[cut],
                None if positions_BS is None else positions_BS[cut],
            )
            for cut in cuts
        ]


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
