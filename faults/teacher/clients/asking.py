"""Sends requests over plain stubs, and checks that replies are complete."""

import contextlib
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lectern_common.wire.formats import Representation, sampled_record
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # its own connection
]
PATIENCE_SECONDS = 60.0


def request(
    sequences: Sequence[npt.ArrayLike],
    kind: str = "dense",
    *,
    vocab_size: int = 97,
    top_k: int | None = None,
    num_draws: int | None = None,
    run_id: str = "run-1",
    request_id: str = "",
    last: bool = False,
    mask: npt.NDArray[np.bool_] | None = None,
) -> pb.LogitsForBatchRequest:
    """Returns a valid request for all positions of each sequence, the last, or those of a mask.

    Args:
        mask: one value per token of all sequences; at least one is set.
    """
    selection = pb.POSITIONS_LAST if last else pb.POSITIONS_ALL
    return pb.LogitsForBatchRequest(
        protocol_version=1,
        run_id=run_id,
        request_id=request_id,
        token_ids=np.concatenate([np.asarray(ids, "<u4") for ids in sequences]).tobytes(),
        sequence_lengths=[len(np.asarray(ids)) for ids in sequences],
        positions=selection if mask is None else pb.POSITIONS_MASK,
        position_mask=b"" if mask is None else np.packbits(mask, bitorder="little").tobytes(),
        vocab_size=vocab_size,
        representation=Representation(kind, top_k, num_draws).message(),
        temperature=1.0,
    )


@dataclass(frozen=True)
class Refusal:
    """A call that was not answered."""

    code: str
    detail: str
    trailing: dict[str, str]
    seconds: float

    @classmethod
    def of(cls, error: grpc.RpcError, seconds: float = 0.0) -> "Refusal":
        trailing = {entry.key: str(entry.value) for entry in error.trailing_metadata() or ()}
        return cls(error.code().name, error.details() or "", trailing, seconds)


def shown(answer: list[bytes] | Refusal) -> str:
    """Returns an answer in a few words."""
    if isinstance(answer, Refusal):
        return f"{answer.code}: {answer.detail[:150]}"
    return f"an answer of {len(answer)} rows"


def connect(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=OPTIONS)


def stub(channel: grpc.Channel) -> Any:
    return teacher_pb2_grpc.TeacherStub(channel)  # type: ignore[no-untyped-call]


def gathered(stream: Any) -> list[bytes]:
    """Returns the bytes of each row of a complete reply.

    Raises:
        RuntimeError: the reply ended without an error but is incomplete.
        grpc.RpcError: the call failed.
    """
    rows: list[bytes] = []
    crc32 = total = 0
    trailer = None
    row_bytes = 0
    for reply in stream:
        part = reply.WhichOneof("part")
        if part == "header":
            row_bytes = reply.header.row_bytes
        elif part == "piece":
            payload = reply.piece.payload
            crc32, total = zlib.crc32(payload, crc32), total + len(payload)
            rows += _rows_of(reply.piece, row_bytes)
        else:
            trailer = reply.trailer
    if trailer is None or (trailer.crc32, trailer.total_bytes) != (crc32, total):
        raise RuntimeError("a reply ended without an error but is incomplete")
    return rows


def score(address: str, message: Any, timeout: float = PATIENCE_SECONDS) -> list[bytes] | Refusal:
    """Returns the rows of an answer, or the refusal; uses its own connection."""
    with connect(address) as channel:
        return ask(channel, message, timeout)


def ask(
    channel: grpc.Channel, message: Any, timeout: float = PATIENCE_SECONDS
) -> list[bytes] | Refusal:
    """Returns the rows of an answer, or the refusal."""
    begun = time.perf_counter()
    try:
        return gathered(stub(channel).LogitsForBatch(message, timeout=timeout))
    except grpc.RpcError as error:
        return Refusal.of(error, time.perf_counter() - begun)


def stats(address: str) -> pb.Stats:
    """Returns the server's counters."""
    with connect(address) as channel:
        reply: pb.Stats = stub(channel).GetStats(
            pb.GetStatsRequest(protocol_version=1), timeout=PATIENCE_SECONDS
        )
        return reply


def health(channel: grpc.Channel, timeout: float = PATIENCE_SECONDS) -> str:
    """Returns SERVING, NOT_SERVING, or the status code of the refusal."""
    health_stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        reply = health_stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    except grpc.RpcError as error:
        return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


@contextlib.contextmanager
def held(channel: grpc.Channel, message: Any, timeout: float | None) -> Iterator[Any]:
    """Yields an admitted call (its header has arrived), and cancels it afterwards."""
    call = stub(channel).LogitsForBatch(message, timeout=timeout)
    try:
        next(call)
        yield call
    finally:
        call.cancel()


def _rows_of(piece: Any, row_bytes: int) -> list[bytes]:
    sizes = [row_bytes] * piece.num_rows
    if piece.row_lengths:
        sizes = [
            sampled_record().itemsize * int(length)
            for length in np.frombuffer(piece.row_lengths, "<u4")
        ]
    payload: bytes = piece.payload  # each access copies it
    ends = np.cumsum([0, *sizes]).tolist()
    return [payload[start:end] for start, end in pairwise(ends)]
