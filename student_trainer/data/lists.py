"""Adapts the original specification's lists of token ids and logits to `TargetsProvider`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest, TeacherError
from lectern_common.wire.formats import Representation
from student_trainer.targets import DenseTargets, TargetsProvider

_MAX_ID = (1 << 32) - 1


def token_arrays(
    input_ids: Sequence[Sequence[int]], vocab_size: int | None = None
) -> list[npt.NDArray[np.uint32]]:
    """Returns one array per sequence.

    Raises:
        InvalidRequest: a sequence is empty, or an id is negative or not below vocab_size.
    """
    limit = _MAX_ID if vocab_size is None else vocab_size - 1
    arrays = []
    for sequence in input_ids:
        array = np.asarray(sequence, np.int64)
        if array.ndim != 1 or not len(array):
            raise InvalidRequest("a sequence is empty or not a list of token ids", "input_ids")
        if array.min() < 0 or array.max() > limit:
            raise InvalidRequest(f"token ids must be from 0 to {limit}", "input_ids")
        arrays.append(array.astype(np.uint32))
    return arrays


def last_position_logits(
    teacher: TargetsProvider, input_ids: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Returns the teacher's logits [V] at the last position of each sequence; [] if there is none.

    Raises:
        LecternError: as `token_arrays` and `TargetsProvider.score` say.
    """
    sequences = token_arrays(input_ids)
    last = [np.arange(len(ids_S)) == len(ids_S) - 1 for ids_S in sequences]
    rows: list[list[float]] = _dense_rows(teacher, sequences, last).tolist()
    return rows


def every_position_logits(
    teacher: TargetsProvider, input_ids: Sequence[Sequence[int]]
) -> list[npt.NDArray[np.float32]]:
    """Returns the teacher's logits [S, V] of each sequence; otherwise as `last_position_logits`."""
    sequences = token_arrays(input_ids)
    if not sequences:
        return []
    rows_NV = _dense_rows(teacher, sequences, [np.ones(len(ids_S), bool) for ids_S in sequences])
    ends = np.cumsum([len(ids_S) for ids_S in sequences])
    return np.split(rows_NV, ends[:-1])


def _dense_rows(
    teacher: TargetsProvider,
    sequences: list[npt.NDArray[np.uint32]],
    positions: list[npt.NDArray[np.bool_]],
) -> npt.NDArray[np.float32]:
    if not sequences:
        return np.empty((0, 0), np.float32)
    targets = teacher.score(sequences, positions, Representation("dense"), temperature=1.0)
    if not isinstance(targets, DenseTargets):
        raise TeacherError(f"the teacher sent {type(targets).__name__}; expected DenseTargets")
    rows_NV: npt.NDArray[np.float32] = targets.logits_NV.cpu().numpy()
    return rows_NV
