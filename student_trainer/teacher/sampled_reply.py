"""Gathers the rows of a sampled reply and checks them.

Legend: N asked positions, R records (distinct ids drawn, of all rows).
"""

import numpy as np
import numpy.typing as npt
import torch

from lectern_common.errors import TeacherError
from lectern_common.wire.formats import sampled_record, unpack_sampled
from lectern_common.wire.pieces import ReplyPiece
from student_trainer.targets import SampledTargets

# By how much the probabilities of up to 256 ids may exceed 1: their logs are rounded to float32.
_ROUNDING = 1e-6


class RaggedRows:
    """Gathers the pieces of a reply whose rows differ in length.

    Takes no more memory than the reply may have: `largest_row_bytes` per row.
    """

    def __init__(self, largest_row_bytes: int) -> None:
        self._most_records = largest_row_bytes // sampled_record().itemsize
        self._payloads: list[npt.NDArray[np.uint8]] = []
        self._lengths: list[npt.NDArray[np.uint32]] = []

    def add(self, piece: ReplyPiece) -> None:
        """Adds a piece. Raises TeacherError unless its row lengths fit its payload."""
        if len(piece.row_lengths) != 4 * piece.num_rows:
            raise TeacherError(
                f"{piece.num_rows} rows of the teacher's reply have {len(piece.row_lengths)} bytes "
                f"of row_lengths; expected {4 * piece.num_rows}"
            )
        lengths = np.frombuffer(piece.row_lengths, "<u4")
        if lengths.min() < 1 or lengths.max() > self._most_records:
            raise TeacherError(
                f"a row of the teacher's reply has {lengths.min()} or {lengths.max()} ids; it must "
                f"have 1 to {self._most_records}"
            )
        num_bytes = sampled_record().itemsize * int(lengths.sum(dtype=np.int64))
        if len(piece.payload) != num_bytes:
            raise TeacherError(
                f"{piece.num_rows} rows of the teacher's reply are {len(piece.payload)} bytes, but "
                f"their row_lengths make {num_bytes}"
            )
        self._payloads.append(np.frombuffer(piece.payload, np.uint8))
        self._lengths.append(lengths)

    def joined(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
        """Returns the bytes of all records, and the number of records of each row."""
        if not self._payloads:
            return np.empty(0, np.uint8), np.empty(0, np.uint32)
        return np.concatenate(self._payloads), np.concatenate(self._lengths)


def sampled_targets(
    data: npt.NDArray[np.uint8],
    row_lengths: npt.NDArray[np.uint32],
    *,
    num_draws: int,
    vocab_size: int,
    temperature: float,
) -> SampledTargets:
    """Returns targets on the CPU from what `RaggedRows.joined` returned.

    Raises:
        TeacherError: the counts of a row do not sum to `num_draws`, its ids are not ascending or
            not in the vocabulary, or its probabilities are not finite or sum to more than 1.
    """
    ids_R, counts_R, log_probs_R = unpack_sampled(data.view(sampled_record()))
    row_starts = np.concatenate([[0], np.cumsum(row_lengths, dtype=np.int64)])
    first_N = row_starts[:-1]
    if not (np.add.reduceat(counts_R, first_N) == num_draws).all():
        raise TeacherError(f"a row of the teacher's reply does not have {num_draws} draws")
    if int(ids_R.max()) >= vocab_size:
        raise TeacherError(f"the teacher sent an id beyond the vocabulary of {vocab_size}")
    rises = np.diff(ids_R, prepend=-1) > 0
    rises[first_N] = True
    if not rises.all():
        raise TeacherError("the ids of a row of the teacher's reply are not in ascending order")
    if not np.isfinite(log_probs_R).all():
        raise TeacherError("the teacher's reply has values that are not finite")
    # Clip so that exp cannot overflow; a sum above 1 is rejected below.
    probs_R = np.exp(log_probs_R.clip(max=1).astype(np.float64))
    mass_N = np.add.reduceat(probs_R, first_N)
    if float(mass_N.max()) > 1 + _ROUNDING:
        raise TeacherError("the probabilities of a row of the teacher's reply sum to more than 1")
    return SampledTargets(
        ids_R=torch.from_numpy(ids_R),
        counts_R=torch.from_numpy(counts_R),
        log_probs_R=torch.from_numpy(log_probs_R),
        row_starts=row_starts,
        num_draws=num_draws,
        temperature=temperature,
        vocab_size=vocab_size,
    )
