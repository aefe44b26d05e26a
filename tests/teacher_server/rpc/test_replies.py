"""Pieces: whole rows, about a mebibyte, every row once, whatever the sequences' sizes."""

import dataclasses
import zlib

import numpy as np
import pytest

from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.wire.formats import PIECE_BYTES
from protos import teacher_pb2
from teacher_server.engine.seam import ComputedRows
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.replies import PieceCutter, head_replies, model, tokenizer_replies
from tests.teacher_server.rpc.test_validation import FACTS


def cut(row_bytes: int, row_counts: list[int]) -> tuple[bytes, list, PieceCutter]:
    generator = np.random.default_rng(0)
    data = [generator.bytes(rows * row_bytes) for rows in row_counts]
    cutter = PieceCutter(row_bytes)
    messages = [message for part in data for message in cutter.add(ComputedRows(memoryview(part)))]
    messages.extend(cutter.rest())
    return b"".join(data), pieces_of(messages), cutter


def pieces_of(messages: list[bytes]) -> list[teacher_pb2.LogitsPiece]:
    """The messages as protobuf parses them."""
    return [teacher_pb2.LogitsForBatchReply.FromString(message).piece for message in messages]


@pytest.mark.parametrize(
    ("row_bytes", "row_counts"),
    [
        (64, [100, 1, 5]),  # far less than a piece
        (8192, [128]),  # exactly a piece
        (8192, [64, 64, 1]),
        (8192, [500, 3, 129, 700]),  # pieces span sequences, sequences span pieces
        (607_744, [3, 1]),  # one row is more than half a piece
        (3 << 20, [2, 1]),  # one row is more than a piece
    ],
)
def test_pieces_hold_whole_rows_once_and_in_order(row_bytes: int, row_counts: list[int]) -> None:
    data, pieces, cutter = cut(row_bytes, row_counts)
    assert b"".join(piece.payload for piece in pieces) == data
    row = 0
    for piece in pieces:
        assert piece.first_row == row and piece.num_rows >= 1
        assert len(piece.payload) == piece.num_rows * row_bytes
        row += piece.num_rows
    assert (cutter.crc32, cutter.total_bytes) == (zlib.crc32(data), len(data))
    full = {len(piece.payload) for piece in pieces[:-1]}
    assert full <= {max(PIECE_BYTES // row_bytes, 1) * row_bytes}


def test_a_full_piece_leaves_before_the_last_sequence_is_done() -> None:
    cutter = PieceCutter(1024)
    assert list(cutter.add(ComputedRows(memoryview(bytes(1024 * 1000))))) == []
    assert len(list(cutter.add(ComputedRows(memoryview(bytes(1024 * 1100)))))) == 2


def test_pieces_carry_the_lengths_of_rows_that_differ() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.integers(1, 50, size=count).astype(np.uint32) for count in (3000, 1, 2500)]
    data = [generator.bytes(8 * int(lengths.sum())) for lengths in parts]
    cutter = PieceCutter(8 * 50)
    messages: list[bytes] = []
    for payload, lengths in zip(data, parts, strict=True):
        messages.extend(cutter.add(ComputedRows(memoryview(payload), lengths)))
    messages.extend(cutter.rest())
    pieces = pieces_of(messages)
    assert len(pieces) == 3 and all(len(piece.payload) <= PIECE_BYTES for piece in pieces)
    assert b"".join(piece.payload for piece in pieces) == b"".join(data)
    lengths = np.concatenate([np.frombuffer(piece.row_lengths, "<u4") for piece in pieces])
    np.testing.assert_array_equal(lengths, np.concatenate(parts))
    row = 0
    for piece in pieces:
        assert (piece.first_row, piece.num_rows) == (row, len(piece.row_lengths) // 4)
        row += piece.num_rows
        assert len(piece.payload) == 8 * np.frombuffer(piece.row_lengths, "<u4").sum()
    assert cutter.crc32 == zlib.crc32(b"".join(data))


def test_the_head_is_sent_in_pieces_with_its_checksum() -> None:
    weight, bias = bytes(range(256)) * 10_000, b"bias"
    parts = list(head_replies(FACTS, 97, [memoryview(weight), memoryview(bias)]))
    header, pieces, trailer = parts[0].header, parts[1:-1], parts[-1].trailer
    assert header.total_bytes == len(weight) + 4
    assert b"".join(part.piece for part in pieces) == weight + bias
    assert all(len(part.piece) <= PIECE_BYTES for part in pieces)
    assert trailer.crc32 == zlib.crc32(weight + bias)


def test_the_tokenizer_is_hashed_once_and_not_at_every_call() -> None:
    class Counted(dict):
        read = 0

        def items(self):
            self.read += 1
            return super().items()

    tokens = Counted(b=1, a=0)
    facts = dataclasses.replace(FACTS, tokens=tokens)
    said = {model(facts, Limits()).tokenizer_sha256 for _ in range(3)}
    assert said == {tokenizer_sha256({"a": 0, "b": 1})}
    assert tokens.read == 1


def test_the_tokenizer_map_is_in_rising_id_order_over_several_messages() -> None:
    tokens = {f"t\u00e9{token_id}": token_id for token_id in reversed(range(10_000))}
    replies = list(tokenizer_replies(dataclasses.replace(FACTS, tokens=tokens)))
    assert len(replies) == 3
    ids = [token_id for reply in replies for token_id in reply.ids]
    names = [name.decode() for reply in replies for name in reply.tokens]
    assert ids == list(range(10_000))
    assert dict(zip(names, ids, strict=True)) == tokens
    assert list(tokenizer_replies(FACTS)) == []
