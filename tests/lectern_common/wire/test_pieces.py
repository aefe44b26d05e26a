"""The hand-written encoding of pieces equals protobuf's, byte for byte and field for field."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from lectern_common.wire.pieces import Reply, piece_message, received, serialized
from protos import teacher_pb2 as pb

NUMBERS = st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2**31, 2**32 - 1]) | st.integers(
    0, 2**32 - 1
)
BYTES = st.binary(max_size=300)


def proto(first_row: int, num_rows: int, payload: bytes, row_lengths: bytes) -> bytes:
    reply = pb.LogitsForBatchReply()
    reply.piece.SetInParent()
    reply.piece.first_row, reply.piece.num_rows = first_row, num_rows
    reply.piece.payload, reply.piece.row_lengths = payload, row_lengths
    return bytes(reply.SerializeToString())


def fields(reply: Reply) -> tuple[int, int, bytes, bytes]:
    assert reply.piece is not None
    piece = reply.piece
    return piece.first_row, piece.num_rows, bytes(piece.payload), bytes(piece.row_lengths)


@given(NUMBERS, NUMBERS, st.lists(BYTES, max_size=3), BYTES)
def test_a_piece_is_written_as_protobuf_writes_it_and_read_back(
    first_row: int, num_rows: int, parts: list[bytes], row_lengths: bytes
) -> None:
    payload = b"".join(parts)
    message = piece_message(first_row, num_rows, [memoryview(part) for part in parts], row_lengths)
    assert message == proto(first_row, num_rows, payload, row_lengths)
    reply = received(message)
    assert fields(reply) == (first_row, num_rows, payload, row_lengths)
    assert (reply.part, reply.num_bytes) == ("piece", len(message))


def test_a_payload_is_a_view_of_its_message() -> None:
    message = piece_message(3, 2, [memoryview(b"x" * 1000)])
    piece = received(message).piece
    assert piece is not None and piece.payload.obj is message


def test_parts_of_other_items_than_bytes_are_sent_whole() -> None:
    import numpy as np

    rows = np.arange(6, dtype="<u4").data
    assert fields(received(piece_message(0, 3, [rows, rows[:2]]))) == (
        0,
        3,
        rows.tobytes() + rows[:2].tobytes(),
        b"",
    )


def test_header_and_trailer_are_read_by_protobuf() -> None:
    header = pb.LogitsHeader(fingerprint="me", num_rows=3)
    reply = received(pb.LogitsForBatchReply(header=header).SerializeToString())
    assert (reply.part, reply.header, reply.piece) == ("header", header, None)
    trailer = pb.LogitsTrailer(crc32=5)
    reply = received(pb.LogitsForBatchReply(trailer=trailer).SerializeToString())
    assert (reply.part, reply.trailer) == ("trailer", trailer)
    assert received(b"") == Reply(0)
    assert received(b"").part is None


@pytest.mark.parametrize(
    "message",
    [
        bytes.fromhex("1204 1002 1a00".replace(" ", "")),  # an empty payload that is written out
        bytes.fromhex("1205 1a0178 1002".replace(" ", "")),  # payload before num_rows
        bytes.fromhex("1204 1002 1003".replace(" ", "")),  # a field twice: the last one counts
        bytes.fromhex("1204 1002 2801".replace(" ", "")),  # a field that nobody knows yet
        bytes.fromhex("1207 1082808080 8010".replace(" ", "")),  # more than 32 bits
        bytes.fromhex("1202 1002 1202 0803".replace(" ", "")),  # two parts that are merged
        bytes.fromhex("1282 0010 02".replace(" ", "")),  # a length with a zero more than it needs
    ],
)
def test_any_other_layout_is_read_like_protobuf(message: bytes) -> None:
    theirs = pb.LogitsForBatchReply.FromString(message).piece
    assert fields(received(message)) == (
        theirs.first_row,
        theirs.num_rows,
        theirs.payload,
        theirs.row_lengths,
    )


@settings(max_examples=500)
@given(
    st.binary(max_size=40).map(lambda rest: b"\x12" + rest)
    | st.tuples(
        st.builds(proto, NUMBERS, NUMBERS, BYTES, BYTES), st.integers(0, 400), st.integers(0, 255)
    ).map(lambda made: made[0][: made[1]] + bytes([made[2]]) + made[0][made[1] + 1 :])
    | st.tuples(st.builds(proto, NUMBERS, NUMBERS, BYTES, BYTES), st.integers(0, 400)).map(
        lambda made: made[0][: made[1]]
    )
)
def test_any_bytes_are_read_like_protobuf(message: bytes) -> None:
    try:
        theirs = pb.LogitsForBatchReply.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            received(message)
        return
    reply = received(message)
    assert reply.part == theirs.WhichOneof("part")
    if reply.piece is not None:
        piece = theirs.piece
        assert fields(reply) == (
            piece.first_row,
            piece.num_rows,
            piece.payload,
            piece.row_lengths,
        )


def test_bytes_are_sent_as_they_are_and_messages_as_protobuf_writes_them() -> None:
    header = pb.LogitsForBatchReply(header=pb.LogitsHeader(fingerprint="me"))
    assert serialized(header) == header.SerializeToString()
    message = piece_message(0, 1, [memoryview(b"x")])
    assert serialized(message) is message
