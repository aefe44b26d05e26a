"""Turns a LogitsForBatch reply stream into targets, with every part checked.

Legend: N asked positions, V the student's vocabulary, D the teacher's hidden size, K top-k.

Pieces with rows of equal size go straight into one buffer, which the tensors then share; there is
no second copy. Rows of draws differ in size: see sampled_reply.py.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.errors import TeacherError, WrongModel
from lectern_common.wire.formats import (
    CARRIERS,
    DTYPE_NAMES,
    DTYPES,
    Representation,
    Widths,
    top_k_record,
)
from lectern_common.wire.pieces import Reply, ReplyPiece
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TeacherTargets,
    TopKTargets,
)
from student_trainer.teacher.sampled_reply import RaggedRows, sampled_targets


@dataclass(frozen=True)
class Expected:
    """What the reply must be; known before the request."""

    fingerprint: str
    representation: Representation
    num_rows: int
    widths: Widths

    @property
    def vocab_size(self) -> int:
        return self.widths.vocab_size

    @property
    def dtype(self) -> "teacher_pb2.DType":
        return DTYPES[self.representation.dtype(self.widths)]

    @property
    def row_bytes(self) -> int:
        """Bytes of each row; 0 if rows differ in size."""
        return self.representation.header_row_bytes(self.widths)


@dataclass(frozen=True)
class Payload:
    """All rows of one reply. `received_bytes` is the size of the messages that carried them.

    `row_lengths` is the number of records of each row; only for "sampled".
    """

    data: npt.NDArray[np.uint8]
    received_bytes: int
    row_lengths: npt.NDArray[np.uint32] | None = None


class DamagedReply(TeacherError):
    """The bytes that arrived are not those that were sent; a retry may help."""


def assemble(replies: Iterable[Reply], expected: Expected) -> Payload:
    """Reads the stream to its end; returns its payload.

    Raises:
        WrongModel: another model answers.
        DamagedReply: the checksum differs.
        TeacherError: header, row coverage, row lengths or byte count are wrong.
        grpc.RpcError: the stream broke.
    """
    rows: _EqualRows | RaggedRows | None = None
    trailer: teacher_pb2.LogitsTrailer | None = None
    next_row = crc = payload_bytes = received_bytes = 0
    for reply in replies:
        received_bytes += reply.num_bytes
        if reply.header is not None and rows is None:
            _require_header(reply.header, expected)
            rows = _rows_to_come(expected)
        elif reply.piece is not None and rows is not None and trailer is None:
            piece = reply.piece
            _require_place(piece, next_row, expected)
            rows.add(piece)
            crc = zlib.crc32(piece.payload, crc)
            payload_bytes += len(piece.payload)
            next_row += piece.num_rows
        elif reply.trailer is not None and rows is not None and trailer is None:
            trailer = reply.trailer
        else:
            raise TeacherError(f"the teacher's reply has its {reply.part} in the wrong place")
    if rows is None or trailer is None or next_row != expected.num_rows:
        raise TeacherError(
            f"the teacher's reply ended after {next_row} of {expected.num_rows} rows without an "
            "error; it cannot be used"
        )
    if trailer.total_bytes != payload_bytes:
        raise TeacherError(
            f"the teacher's reply is {payload_bytes} bytes, but its trailer says "
            f"{trailer.total_bytes}"
        )
    if trailer.crc32 != crc:
        raise DamagedReply("the teacher's reply was damaged in transit: its checksum differs")
    if isinstance(rows, RaggedRows):
        data, row_lengths = rows.joined()
        return Payload(data, received_bytes, row_lengths)
    return Payload(rows.buffer, received_bytes)


class _EqualRows:
    """Gathers the pieces of a reply with rows of `row_bytes` each in one buffer."""

    def __init__(self, num_rows: int, row_bytes: int) -> None:
        self.buffer = np.empty(num_rows * row_bytes, np.uint8)
        self._row_bytes = row_bytes

    def add(self, piece: ReplyPiece) -> None:
        """Adds a piece. Raises TeacherError unless its size is that of its rows."""
        if piece.row_lengths:
            raise TeacherError(
                "the teacher's reply has row_lengths, but its rows are of equal length"
            )
        if len(piece.payload) != piece.num_rows * self._row_bytes:
            raise TeacherError(
                f"{piece.num_rows} rows of the teacher's reply are {len(piece.payload)} bytes; "
                f"expected {piece.num_rows * self._row_bytes}"
            )
        start = piece.first_row * self._row_bytes
        payload = np.frombuffer(piece.payload, np.uint8)
        self.buffer[start : start + len(payload)] = payload


def _rows_to_come(expected: Expected) -> _EqualRows | RaggedRows:
    if expected.representation.format.rows_differ:
        return RaggedRows(expected.representation.row_bytes(expected.widths))
    return _EqualRows(expected.num_rows, expected.row_bytes)


def to_targets(
    payload: Payload, expected: Expected, temperature: float, head: OutputHead | None
) -> TeacherTargets:
    """Returns the targets in a payload; their tensors are views of it, on the CPU.

    Args:
        payload: as `assemble` returned it for `expected`.
        expected: what was requested.
        temperature: the requested one; top_k and sampled targets carry it.
        head: the teacher's, for `hidden`.

    Raises:
        TeacherError: a value is not finite (a logit of -inf, a masked id, is allowed unless all of
            a row are), an id is outside the vocabulary, a row's ids are not distinct or not in the
            order of their logits, there is a rest at K = V, or draws are invalid (see
            sampled_reply.py).
    """
    return _TARGETS[expected.representation.kind](payload, expected, temperature, head)


def tensor_of(data: npt.NDArray[np.uint8], dtype: "teacher_pb2.DType") -> Tensor:
    """Returns little-endian bytes as a 1-D tensor of `dtype` that shares their memory."""
    name = DTYPE_NAMES[dtype]
    carried = torch.from_numpy(data.view(CARRIERS[name]))
    return carried.view(torch.bfloat16) if name == "bfloat16" else carried


def _rows(payload: Payload, expected: Expected) -> Tensor:
    return tensor_of(payload.data, expected.dtype).view(expected.num_rows, -1)


def _dense_targets(
    payload: Payload, expected: Expected, _temperature: float, _head: OutputHead | None
) -> DenseTargets:
    logits_NV = _rows(payload, expected)
    _require_finite(logits_NV.amax(-1))  # nan if any logit is; -inf only if all are
    return DenseTargets(logits_NV)


def _hidden_targets(
    payload: Payload, expected: Expected, _temperature: float, head: OutputHead | None
) -> HiddenTargets:
    values = _rows(payload, expected)
    _require_finite(values)
    if head is None:
        raise ValueError("hidden targets need the teacher's output head")
    return HiddenTargets(values, head)


def _sampled_targets(
    payload: Payload, expected: Expected, temperature: float, _head: OutputHead | None
) -> SampledTargets:
    if payload.row_lengths is None:
        raise ValueError("sampled targets need row lengths")
    return sampled_targets(
        payload.data,
        payload.row_lengths,
        num_draws=expected.representation.num_draws or 0,
        vocab_size=expected.vocab_size,
        temperature=temperature,
    )


def _top_k_targets(
    payload: Payload, expected: Expected, temperature: float, _head: OutputHead | None
) -> TopKTargets:
    targets = _top_k_of(payload, expected, temperature)
    if int(targets.ids_NK.max()) >= expected.vocab_size:
        raise TeacherError(f"the teacher sent an id beyond the vocabulary of {expected.vocab_size}")
    # The largest logit; nan if any is. Only the others may be -inf, and the rest if all of its are.
    _require_finite(targets.logits_NK.amax(-1), targets.log_normalizer_t_N)
    _require_order(targets)
    if targets.ids_NK.shape[1] < expected.vocab_size:
        _require_finite(targets.log_rest_t_N.masked_fill(targets.log_rest_t_N.isneginf(), 0))
    elif not bool(targets.log_rest_t_N.isneginf().all()):
        raise TeacherError("the teacher's reply has a rest, but its top_k covers every token")
    return targets


# How each representation is read, from (payload, expected, temperature, head).
_TARGETS: dict[str, Callable[[Payload, Expected, float, OutputHead | None], TeacherTargets]] = {
    "dense": _dense_targets,
    "hidden": _hidden_targets,
    "top_k": _top_k_targets,
    "sampled": _sampled_targets,
}


def _top_k_of(payload: Payload, expected: Expected, temperature: float) -> TopKTargets:
    records = payload.data.view(top_k_record(expected.representation.top_k or 0))

    def tensor(field: str, dtype: "np.dtype[np.float32] | type[np.int64]") -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(records[field], dtype))

    return TopKTargets(
        logits_NK=tensor("logits", np.dtype(np.float32)),
        ids_NK=tensor("ids", np.int64),
        log_rest_t_N=tensor("log_rest_t", np.dtype(np.float32)),
        log_normalizer_t_N=tensor("log_normalizer_t", np.dtype(np.float32)),
        temperature=temperature,
        vocab_size=expected.vocab_size,
    )


def _require_order(targets: TopKTargets) -> None:
    """Raises TeacherError unless each row's logits are descending and its ids distinct.

    Of equal logits the lower id comes first. A repeated id would count its mass twice.
    """
    logits_NK, ids_NK = targets.logits_NK.numpy(), targets.ids_NK.numpy()
    falls = logits_NK[:, :-1] > logits_NK[:, 1:]
    ties = (logits_NK[:, :-1] == logits_NK[:, 1:]) & (ids_NK[:, :-1] < ids_NK[:, 1:])
    if not (falls | ties).all():
        raise TeacherError("the logits of a row of the teacher's reply are not in descending order")
    rising_NK = np.sort(ids_NK.astype(np.uint32), axis=1)
    if (rising_NK[:, :-1] == rising_NK[:, 1:]).any():
        raise TeacherError("a row of the teacher's reply has the same id twice")


def _require_header(header: teacher_pb2.LogitsHeader, expected: Expected) -> None:
    require_fingerprint(header.fingerprint, expected.fingerprint)
    total_bytes = expected.num_rows * expected.row_bytes
    for name, theirs, ours in (
        ("kind", header.kind, expected.representation.format.enum),
        ("dtype", header.dtype, expected.dtype),
        ("num_rows", header.num_rows, expected.num_rows),
        ("row_bytes", header.row_bytes, expected.row_bytes),
        ("total_bytes", header.total_bytes, total_bytes),
        ("vocab_size", header.vocab_size, expected.vocab_size),
    ):
        if theirs != ours:
            raise TeacherError(f"the teacher's reply has {name} {theirs}; expected {ours}")


def require_fingerprint(theirs: str, expected: str) -> None:
    """Raises WrongModel unless the expected model answered."""
    if theirs != expected:
        raise WrongModel(f"its reply has fingerprint {theirs[:12]}, expected {expected[:12]}")


def _require_place(piece: ReplyPiece, next_row: int, expected: Expected) -> None:
    if piece.first_row != next_row or piece.num_rows < 1:
        raise TeacherError(
            f"the teacher's reply continues at row {piece.first_row}; expected row {next_row}"
        )
    if next_row + piece.num_rows > expected.num_rows:
        raise TeacherError(f"the teacher's reply has more than {expected.num_rows} rows")


def _require_finite(*parts: Tensor) -> None:
    for part in parts:
        lowest, highest = torch.aminmax(part)  # both are nan if any value is
        if not (lowest.isfinite() and highest.isfinite()):
            raise TeacherError("the teacher's reply has values that are not finite")
