"""A reply stream of GetOutputHead turned into the head: nothing of it is believed unchecked."""

import zlib
from collections.abc import Iterable

import numpy as np
import structlog

from lectern_common.errors import TeacherError
from lectern_common.wire.formats import Widths
from lectern_models.output_head import HeadTransform, OutputHead
from protos import teacher_pb2
from student_trainer.reply_assembly import DamagedReply, require_fingerprint, tensor_of

_log = structlog.get_logger()


def assemble_head(
    replies: Iterable[teacher_pb2.OutputHeadReply], model: teacher_pb2.Model, vocab_size: int
) -> OutputHead:
    """Returns the head [vocab_size, hidden size] of `model`, the stream read to its end.

    Raises:
        WrongModel: another model answers.
        DamagedReply: the checksum differs.
        TeacherError: header, order or byte count are not as they must be.
        grpc.RpcError: the stream broke.
    """
    header: teacher_pb2.OutputHeadHeader | None = None
    trailer: teacher_pb2.OutputHeadTrailer | None = None
    buffer = np.empty(0, np.uint8)
    filled = crc = 0
    for reply in replies:
        part = reply.WhichOneof("part")
        if part == "header" and header is None:
            header = reply.header
            buffer = np.empty(_bytes_to_come(header, model, vocab_size), np.uint8)
        elif part == "piece" and filled + len(reply.piece) <= len(buffer):
            piece = np.frombuffer(reply.piece, np.uint8)
            buffer[filled : filled + len(piece)] = piece
            filled, crc = filled + len(piece), zlib.crc32(piece.data, crc)
        elif part == "trailer" and trailer is None:
            trailer = reply.trailer
        else:
            raise TeacherError(f"the teacher's output head has its {part} misplaced")
    if header is None or trailer is None or filled != len(buffer):
        raise TeacherError(f"the teacher's output head ended after {filled} bytes")
    if trailer.crc32 != crc:
        raise DamagedReply("the teacher's output head was damaged on its way: checksum differs")
    _log.info("output_head_received", bytes=filled)
    values = tensor_of(buffer, header.dtype)
    num_weights = vocab_size * model.hidden_size
    theirs = header.transform
    return OutputHead(
        values[:num_weights].view(vocab_size, model.hidden_size),
        values[num_weights:] if theirs.has_bias else None,
        HeadTransform(theirs.scale, theirs.divisor, theirs.soft_cap or None),
    )


def _bytes_to_come(
    header: teacher_pb2.OutputHeadHeader, model: teacher_pb2.Model, vocab_size: int
) -> int:
    """Returns what follows the header. Raises WrongModel or TeacherError."""
    require_fingerprint(header.fingerprint, model.fingerprint)
    widths = Widths.of_model(model, vocab_size)
    num_bytes = widths.head_bytes(has_bias=header.transform.has_bias)
    theirs = (header.dtype, header.vocab_size, header.hidden_size, header.total_bytes)
    ours = (model.hidden_dtype, vocab_size, model.hidden_size, num_bytes)
    if theirs != ours:
        raise TeacherError(f"the teacher's output head is {theirs}, asked for was {ours}")
    return num_bytes
