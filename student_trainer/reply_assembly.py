"""A reply stream of LogitsForBatch turned into targets: nothing of it is believed unchecked.

Legend: N asked positions, V the student's vocabulary, D the teacher's hidden size, K top-k.

Pieces go straight into one buffer, which the tensors then share; there is no second copy.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.errors import TeacherError, WrongModel
from lectern_common.wire import CARRIERS, top_k_record
from lectern_models.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    Representation,
    TeacherTargets,
    TopKTargets,
)

KINDS: dict[str, teacher_pb2.RepresentationKind] = {
    "dense": teacher_pb2.REPRESENTATION_DENSE,
    "hidden": teacher_pb2.REPRESENTATION_HIDDEN,
    "top_k": teacher_pb2.REPRESENTATION_TOP_K,
}
DTYPE_NAMES = {
    teacher_pb2.DTYPE_FLOAT32: "float32",
    teacher_pb2.DTYPE_FLOAT16: "float16",
    teacher_pb2.DTYPE_BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class Expected:
    """What the reply must be, known before it is asked for."""

    fingerprint: str
    representation: Representation
    num_rows: int
    vocab_size: int
    hidden_size: int
    hidden_dtype: "teacher_pb2.DType"

    @property
    def dtype(self) -> "teacher_pb2.DType":
        hidden = self.representation.kind == "hidden"
        return self.hidden_dtype if hidden else teacher_pb2.DTYPE_FLOAT32

    @property
    def row_bytes(self) -> int:
        if self.representation.kind == "dense":
            return 4 * self.vocab_size
        if self.representation.kind == "hidden":
            return self.hidden_size * CARRIERS[DTYPE_NAMES[self.hidden_dtype]].itemsize
        return 8 * (self.representation.top_k or 0) + 8


@dataclass(frozen=True)
class Payload:
    """All rows of one reply. `received_bytes` are those of the messages that brought them."""

    data: npt.NDArray[np.uint8]
    received_bytes: int


def assemble(replies: Iterable[teacher_pb2.LogitsForBatchReply], expected: Expected) -> Payload:
    """Returns the payload of a whole stream, read to its end.

    Raises:
        WrongModel: another model answers.
        TeacherError: header, row coverage, byte count or checksum are not as they must be.
        grpc.RpcError: the stream broke.
    """
    buffer: npt.NDArray[np.uint8] | None = None
    trailer: teacher_pb2.LogitsTrailer | None = None
    next_row = crc = received_bytes = 0
    for reply in replies:
        received_bytes += reply.ByteSize()
        part = reply.WhichOneof("part")
        if part == "header" and buffer is None:
            _require_header(reply.header, expected)
            buffer = np.empty(reply.header.total_bytes, np.uint8)
        elif part == "piece" and buffer is not None and trailer is None:
            piece = reply.piece
            _require_piece(piece, next_row, expected)
            start = next_row * expected.row_bytes
            payload = np.frombuffer(piece.payload, np.uint8)
            buffer[start : start + len(payload)] = payload
            crc = zlib.crc32(payload.data, crc)
            next_row += piece.num_rows
        elif part == "trailer" and buffer is not None and trailer is None:
            trailer = reply.trailer
        else:
            raise TeacherError(f"the teacher's reply has its {part} in the wrong place")
    if buffer is None or trailer is None or next_row != expected.num_rows:
        raise TeacherError(
            f"the teacher's reply ended after {next_row} of {expected.num_rows} rows without an "
            "error; it cannot be used"
        )
    if trailer.total_bytes != len(buffer):
        raise TeacherError(
            f"the teacher's reply is {len(buffer)} bytes, it says it sent {trailer.total_bytes}"
        )
    if trailer.crc32 != crc:
        raise TeacherError("the teacher's reply was damaged on its way: its checksum differs")
    return Payload(buffer, received_bytes)


def to_targets(
    payload: Payload, expected: Expected, temperature: float, head: OutputHead | None
) -> TeacherTargets:
    """Returns the targets that a payload holds; their tensors are views of it, on the CPU.

    Args:
        payload: as `assemble` returned it for `expected`.
        expected: what was asked.
        temperature: what was asked; top_k targets carry it.
        head: the teacher's, for `hidden`.

    Raises:
        TeacherError: a value is not finite, an id is beyond the vocabulary, or there is a rest at
            K = V.
    """
    kind = expected.representation.kind
    if kind == "top_k":
        targets = _top_k_targets(payload, expected, temperature)
        if int(targets.ids_NK.max()) >= expected.vocab_size:
            raise TeacherError(f"the teacher sent an id beyond the {expected.vocab_size} asked for")
        _require_finite(targets.logits_NK, targets.log_normalizer_t_N)
        if targets.ids_NK.shape[1] < expected.vocab_size:
            _require_finite(targets.log_rest_t_N)
        elif not bool(targets.log_rest_t_N.isneginf().all()):
            raise TeacherError("the teacher's reply has a rest, but every token was asked for")
        return targets
    values = tensor_of(payload.data, expected.dtype).view(expected.num_rows, -1)
    _require_finite(values)
    if kind == "dense":
        return DenseTargets(values)
    if head is None:
        raise ValueError("hidden targets need the teacher's output head")
    return HiddenTargets(values, head)


def tensor_of(data: npt.NDArray[np.uint8], dtype: "teacher_pb2.DType") -> Tensor:
    """Returns the numbers that little-endian bytes hold, 1-D, sharing their memory."""
    name = DTYPE_NAMES[dtype]
    carried = torch.from_numpy(data.view(CARRIERS[name]))
    return carried.view(torch.bfloat16) if name == "bfloat16" else carried


def _top_k_targets(payload: Payload, expected: Expected, temperature: float) -> TopKTargets:
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


def _require_header(header: teacher_pb2.LogitsHeader, expected: Expected) -> None:
    require_fingerprint(header.fingerprint, expected.fingerprint)
    total_bytes = expected.num_rows * expected.row_bytes
    for name, theirs, ours in (
        ("kind", header.kind, KINDS[expected.representation.kind]),
        ("dtype", header.dtype, expected.dtype),
        ("num_rows", header.num_rows, expected.num_rows),
        ("row_bytes", header.row_bytes, expected.row_bytes),
        ("total_bytes", header.total_bytes, total_bytes),
        ("vocab_size", header.vocab_size, expected.vocab_size),
    ):
        if theirs != ours:
            raise TeacherError(f"the teacher's reply has {name} {theirs}, asked for was {ours}")


def require_fingerprint(theirs: str, expected: str) -> None:
    """Raises WrongModel where another model answered."""
    if theirs != expected:
        raise WrongModel(
            f"the teacher that answers has fingerprint {theirs[:12]}, the run was started with "
            f"{expected[:12]}; start the same model again, or another run"
        )


def _require_piece(piece: teacher_pb2.LogitsPiece, next_row: int, expected: Expected) -> None:
    if piece.first_row != next_row or piece.num_rows < 1:
        raise TeacherError(
            f"the teacher's reply goes on at row {piece.first_row}, expected was {next_row}"
        )
    if next_row + piece.num_rows > expected.num_rows:
        raise TeacherError(f"the teacher's reply has more than the {expected.num_rows} rows asked")
    if len(piece.payload) != piece.num_rows * expected.row_bytes:
        raise TeacherError(
            f"{piece.num_rows} rows of the teacher's reply are {len(piece.payload)} bytes, not "
            f"{piece.num_rows * expected.row_bytes}"
        )


def _require_finite(*parts: Tensor) -> None:
    for part in parts:
        lowest, highest = torch.aminmax(part)  # both are nan where one value is
        if not (lowest.isfinite() and highest.isfinite()):
            raise TeacherError("the teacher's reply has values that are not finite")
