"""Encodes and decodes the pieces of a reply stream without protobuf's copies of their payload.

Protobuf copies a payload twice to send it and twice to read it. Here a piece is joined once, and
its payload is a view of the received message. The bytes are those of protos/teacher.proto:

    LogitsForBatchReply  0x12 length LogitsPiece
    LogitsPiece          0x08 first_row  0x10 num_rows  0x1a length payload  0x22 length row_lengths

with each field left out if it is 0 or empty. Protobuf reads messages with any other layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from protos import teacher_pb2

_REPLY_PIECE = 0x12
_FIRST_ROW, _NUM_ROWS, _PAYLOAD, _ROW_LENGTHS = 0x08, 0x10, 0x1A, 0x22
_LARGEST_UINT32 = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """A LogitsPiece; `payload` and `row_lengths` are views of the received message."""

    first_row: int
    num_rows: int
    payload: memoryview
    row_lengths: memoryview


@dataclass(frozen=True, slots=True)
class Reply:
    """A LogitsForBatchReply: one of the three parts, or none. `num_bytes` is its message's size."""

    num_bytes: int
    header: teacher_pb2.LogitsHeader | None = None
    piece: ReplyPiece | None = None
    trailer: teacher_pb2.LogitsTrailer | None = None

    @property
    def part(self) -> str | None:
        """The name of the part, as in LogitsForBatchReply."""
        names = ("header", "piece", "trailer")
        return next((name for name in names if getattr(self, name) is not None), None)


def piece_message(
    first_row: int, num_rows: int, payload: Sequence[memoryview], row_lengths: bytes = b""
) -> bytes:
    """Returns the LogitsForBatchReply of a piece; its payload is these parts in order."""
    payload_bytes = sum(part.nbytes for part in payload)
    before = b"".join(
        (
            _number_field(_FIRST_ROW, first_row),
            _number_field(_NUM_ROWS, num_rows),
            bytes((_PAYLOAD,)) + _varint(payload_bytes) if payload_bytes else b"",
        )
    )
    after = bytes((_ROW_LENGTHS,)) + _varint(len(row_lengths)) if row_lengths else b""
    piece_bytes = len(before) + payload_bytes + len(after) + len(row_lengths)
    head = bytes((_REPLY_PIECE,)) + _varint(piece_bytes) + before
    return b"".join((head, *payload, after, row_lengths))


def serialized(reply: "teacher_pb2.LogitsForBatchReply | bytes") -> bytes:
    """Returns a reply as bytes; bytes stay as they are."""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def received(message: bytes) -> Reply:
    """Returns the reply in a message.

    Raises:
        google.protobuf.message.DecodeError: the message is not a reply.
    """
    try:
        piece = _piece(message)
    except IndexError:  # it ends within a number
        piece = None
    if piece is not None:
        return Reply(len(message), piece=piece)
    reply = teacher_pb2.LogitsForBatchReply.FromString(message)
    part = reply.WhichOneof("part")
    if part == "piece":
        theirs = reply.piece
        payload, row_lengths = memoryview(theirs.payload), memoryview(theirs.row_lengths)
        found = ReplyPiece(theirs.first_row, theirs.num_rows, payload, row_lengths)
        return Reply(len(message), piece=found)
    return Reply(
        len(message),
        header=reply.header if part == "header" else None,
        trailer=reply.trailer if part == "trailer" else None,
    )


def _piece(message: bytes) -> ReplyPiece | None:
    """Returns the piece in a message with this module's layout, else None."""
    if message[0] != _REPLY_PIECE:
        return None
    length, at = _read_varint(message, 1)
    end = len(message)
    if at + length != end:
        return None
    first_row, at = _read_number(message, at, _FIRST_ROW)
    num_rows, at = _read_number(message, at, _NUM_ROWS)
    payload, at = _read_bytes(message, at, _PAYLOAD)
    row_lengths, at = _read_bytes(message, at, _ROW_LENGTHS)
    if at != end or max(first_row, num_rows) > _LARGEST_UINT32:
        return None
    return ReplyPiece(first_row, num_rows, payload, row_lengths)


def _read_number(message: bytes, at: int, field: int) -> tuple[int, int]:
    """Returns (value, end) of a field at `at`; (0, at) if another field is there."""
    if at >= len(message) or message[at] != field:
        return 0, at
    return _read_varint(message, at + 1)


def _read_bytes(message: bytes, at: int, field: int) -> tuple[memoryview, int]:
    """Like _read_number; a value that ends beyond the message is cut, but its end is not."""
    if at >= len(message) or message[at] != field:
        return memoryview(message)[:0], at
    length, start = _read_varint(message, at + 1)
    return memoryview(message)[start : start + length], start + length


def _number_field(field: int, value: int) -> bytes:
    return bytes((field,)) + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    """Returns the number in seven bits per byte, lowest first, top bit set on all but the last."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns (value, end). Raises IndexError if the message ends first."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
