"""A client of the wire for these tests: plain stubs, everything checked, nothing of ours reused."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import numpy as np

from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc

# By the contract's own names: REPRESENTATION_TOP_K is "top_k".
KINDS = {
    name.removeprefix("REPRESENTATION_").lower(): cast(pb.RepresentationKind, number)
    for name, number in pb.RepresentationKind.items()
    if number != pb.REPRESENTATION_UNSPECIFIED
}
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]


@dataclass
class Answer:
    header: pb.LogitsHeader
    pieces: list[pb.LogitsPiece]
    trailer: pb.LogitsTrailer

    @property
    def payload(self) -> bytes:
        return b"".join(piece.payload for piece in self.pieces)

    @property
    def rows(self) -> list[bytes]:
        """Each row's bytes, also of sampled rows, whose lengths differ."""
        cut = []
        for piece in self.pieces:
            sizes = [self.header.row_bytes] * piece.num_rows
            if piece.row_lengths:
                sizes = [8 * int(length) for length in np.frombuffer(piece.row_lengths, "<u4")]
            start = 0
            for size in sizes:
                cut.append(piece.payload[start : start + size])
                start += size
        return cut

    @property
    def floats(self) -> np.ndarray:
        """float32 rows."""
        return np.frombuffer(self.payload, "<f4").reshape(self.header.num_rows, -1)

    @property
    def records(self) -> np.ndarray:
        """top_k rows, by the contract's words: k logits, k ids, the rest, the normaliser."""
        k = (self.header.row_bytes - 8) // 8
        fields = [("logits", "<f4", k), ("ids", "<u4", k), ("rest_t", "<f4"), ("norm_t", "<f4")]
        return np.frombuffer(self.payload, np.dtype(fields))


def request(
    sequences: Sequence[Sequence[int]],
    kind: str = "dense",
    *,
    vocab_size: int = 97,
    mask: Sequence[Sequence[int]] | None = None,
    last: bool = False,
    top_k: int = 0,
    num_draws: int = 0,
    seed: int = 0,
    temperature: float = 1.0,
    fingerprint: str = "",
    run_id: str = "run-1",
) -> pb.LogitsForBatchRequest:
    """A right request; positions are all, the last, or those whose mask entry is 1."""
    message = pb.LogitsForBatchRequest(
        protocol_version=1,
        run_id=run_id,
        request_id="r-1",
        expected_fingerprint=fingerprint,
        token_ids=np.concatenate([np.asarray(s, "<u4") for s in sequences]).tobytes(),
        sequence_lengths=[len(s) for s in sequences],
        positions=pb.POSITIONS_LAST if last else pb.POSITIONS_ALL,
        vocab_size=vocab_size,
        representation=pb.Representation(
            kind=KINDS[kind], top_k=top_k, num_draws=num_draws, seed=seed
        ),
        temperature=temperature,
    )
    if mask is not None:
        flat = np.concatenate([np.asarray(m, np.uint8) for m in mask])
        message.positions = pb.POSITIONS_MASK
        message.position_mask = np.packbits(flat, bitorder="little").tobytes()
    return message


def stub(channel: grpc.Channel) -> teacher_pb2_grpc.TeacherStub:
    return teacher_pb2_grpc.TeacherStub(channel)


def connect(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=OPTIONS)


def gathered(stream) -> Answer:
    """Reads a reply stream to its end and checks what the contract promises of every one."""
    parts = list(stream)
    kinds = [part.WhichOneof("part") for part in parts]
    assert kinds == ["header"] + ["piece"] * (len(parts) - 2) + ["trailer"]
    answer = Answer(parts[0].header, [part.piece for part in parts[1:-1]], parts[-1].trailer)
    row = 0
    for piece in answer.pieces:
        assert piece.first_row == row
        if piece.row_lengths:
            records = np.frombuffer(piece.row_lengths, "<u4")
            assert len(records) == piece.num_rows and len(piece.payload) == 8 * records.sum()
        else:
            assert len(piece.payload) == piece.num_rows * answer.header.row_bytes
        row += piece.num_rows
    assert row == answer.header.num_rows
    assert len(answer.payload) == answer.trailer.total_bytes
    is_sampled = answer.header.kind == pb.REPRESENTATION_SAMPLED
    assert answer.header.total_bytes == (0 if is_sampled else len(answer.payload))
    assert zlib.crc32(answer.payload) == answer.trailer.crc32
    return answer


def score(address: str, message: pb.LogitsForBatchRequest, timeout: float = 60.0) -> Answer:
    with connect(address) as channel:
        return gathered(stub(channel).LogitsForBatch(message, timeout=timeout))


def refused(address: str, message: pb.LogitsForBatchRequest) -> tuple[str, str, dict[str, Any]]:
    """Returns (status code, detail, trailing metadata) of a request that must fail."""
    try:
        score(address, message)
    except grpc.RpcError as error:
        trailing = {entry.key: entry.value for entry in error.trailing_metadata() or ()}
        return error.code().name, error.details() or "", trailing
    raise AssertionError("it was answered")
