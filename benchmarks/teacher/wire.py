"""Bytes per token on the wire, and the reply stream's speed against unary gRPC and raw TCP.

The baselines carry the same bytes. The server runs in its own process: the real server around an
engine whose rows are ready, so that only the transport is measured. Shapes are those of a 7B
Qwen2.5 teacher.
"""

import asyncio
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

from benchmarks.pairs import paired
from benchmarks.servers import connected
from lectern_common.files import write_atomic
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import MAX_MESSAGE_BYTES, Representation, top_k_record
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.teacher.remote import RemoteTeacher
from teacher_server.engine.seam import ComputedRows, HeadFacts, ModelFacts, SequenceAsk
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.server import TeacherServer

VOCAB_SIZE, HIDDEN_SIZE, TOP_K = 151_936, 3_584, 64
UNARY = "/benchmark/Unary"
_COUNT = struct.Struct("<Q")
_HIDDEN_GOALS = {"speed_against_raw": ">= 0.6", "speed_against_unary": ">= 5"}
# (representation, sequences, tokens of each): enough bytes to measure.
CASES = (
    (Representation("hidden"), 8, 512),
    (Representation("top_k", TOP_K), 8, 512),
    (Representation("dense"), 1, 128),
)


class ReadyEngine:
    """An engine whose rows are ready before a request; their values mean nothing."""

    facts = ModelFacts(
        model_id="ready",
        revision="",
        weights_sha256="0" * 64,
        fingerprint="1" * 64,
        logit_width=VOCAB_SIZE,
        tokens=None,
        max_positions=None,
        hidden_size=HIDDEN_SIZE,
        hidden_dtype="bfloat16",
        dtype="bfloat16",
        quantization="none",
        device="cpu",
        head=HeadFacts(),
        not_offered={"dense": None, "hidden": None, "top_k": None, "sampled": "not measured"},
        engine="ready",
        mode="independent",
        num_parameters=0,
    )

    def __init__(self) -> None:
        self._bytes = bytes(80_000_000)
        records = np.zeros(8 * 512, top_k_record(TOP_K))
        records["ids"] = np.arange(TOP_K)  # the trainer refuses a row that repeats an id
        self._top_k = memoryview(records.tobytes())

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        return [self._rows(ask) for ask in asks]

    def derived(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        return self._rows(ask)

    def _rows(self, ask: SequenceAsk) -> ComputedRows:
        row_bytes = ask.representation.row_bytes(self.facts.widths(ask.vocab_size))
        is_top_k = ask.representation.kind == "top_k"
        ready = self._top_k if is_top_k else memoryview(self._bytes)
        return ComputedRows(ready[: ask.num_rows * row_bytes])

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        return [memoryview(bytes(2 * HIDDEN_SIZE * vocab_size))]


class ReadyHead(RemoteTeacher):
    """A RemoteTeacher with a dummy output head: replies are only received."""

    def output_head(self) -> OutputHead:
        return OutputHead(torch.zeros(1, HIDDEN_SIZE))


def measure(pairs: int = 7) -> Iterator[dict[str, Any]]:
    """Yields one row per representation."""
    with _server() as (address, plain_port, unary_address), tempfile.TemporaryDirectory() as cache:
        ready = connected(address, VOCAB_SIZE, Path(cache), client=ReadyHead)
        unary = grpc.insecure_channel(unary_address, options=_UNLIMITED)
        plain_socket = socket.create_connection(("127.0.0.1", plain_port))
        with ready as teacher, unary, plain_socket as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for representation, sequences, tokens in CASES:
                yield _measure_one(
                    teacher, unary, plain, (representation, sequences, tokens), pairs
                )


def _measure_one(
    teacher: RemoteTeacher,
    unary: grpc.Channel,
    plain: socket.socket,
    case: tuple[Representation, int, int],
    pairs: int,
) -> dict[str, Any]:
    representation, sequences, tokens = case
    ids = [np.zeros(tokens, np.uint32)] * sequences
    everywhere = [np.ones(tokens, bool)] * sequences
    payload = representation.row_bytes(ReadyEngine.facts.widths(VOCAB_SIZE))
    num_bytes = payload * tokens * sequences
    ask_unary = unary.unary_unary(
        UNARY, request_serializer=bytes, response_deserializer=teacher_pb2.LogitsPiece.FromString
    )
    teacher.take_received()
    teacher.score(ids, everywhere, representation, 2.0)
    received_bytes, positions = teacher.take_received()

    def stream() -> None:
        teacher.score(ids, everywhere, representation, 2.0)

    def raw() -> None:
        plain.sendall(_COUNT.pack(num_bytes))
        _receive(plain, num_bytes)

    def single() -> None:
        reply = ask_unary(_COUNT.pack(num_bytes), timeout=120)
        np.frombuffer(reply.payload, np.uint8)

    against_raw = paired(stream, raw, pairs)
    against_unary = paired(stream, single, pairs)
    return {
        "representation": representation.kind,
        "bytes_per_token": received_bytes / positions,
        "payload_bytes_per_token": payload,
        "gigabytes_per_second": num_bytes / against_raw.ours_seconds / 1e9,
        "raw_gigabytes_per_second": num_bytes / against_raw.baseline_seconds / 1e9,
        "unary_gigabytes_per_second": num_bytes / against_unary.baseline_seconds / 1e9,
        "speed_against_raw": 1 / against_raw.ratio,
        "speed_against_unary": 1 / against_unary.ratio,
        "goals": _HIDDEN_GOALS if representation.kind == "hidden" else {},
    }


def _receive(plain: socket.socket, num_bytes: int) -> None:
    buffer = np.empty(num_bytes, np.uint8).data.cast("B")
    filled = 0
    while filled < num_bytes:
        filled += plain.recv_into(buffer[filled:])


_UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


@contextmanager
def _server() -> Iterator[tuple[str, int, str]]:
    """Runs the server process; yields the service's address, the raw port, the unary address."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.teacher.wire", str(ready)]
        ) as process:
            try:
                while not ready.exists():
                    if process.poll() is not None:
                        raise RuntimeError("the benchmark's server exited")
                    time.sleep(0.05)
                address, plain_port, unary_address = ready.read_text().split()
                yield address, int(plain_port), unary_address
            finally:
                process.terminate()


async def _serve(ready: Path) -> None:
    configure_logs("warning")
    limits = Limits(max_tokens=1 << 20, max_sequence_tokens=1 << 20, max_reply_bytes=1 << 30)
    server = TeacherServer("127.0.0.1:0", None)
    await server.start()
    await server.open(ReadyEngine(), limits)
    zeros = bytes(1 << 28)

    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := await reader.read(_COUNT.size):
            writer.write(memoryview(zeros)[: _COUNT.unpack(count)[0]])
            await writer.drain()

    async def unary(request: bytes, _context: object) -> teacher_pb2.LogitsPiece:
        return teacher_pb2.LogitsPiece(payload=zeros[: _COUNT.unpack(request)[0]])

    plain = await asyncio.start_server(raw, "127.0.0.1", 0)
    single = grpc.aio.server(options=_UNLIMITED)
    handler = grpc.unary_unary_rpc_method_handler(
        unary,
        request_deserializer=bytes,
        response_serializer=teacher_pb2.LogitsPiece.SerializeToString,
    )
    single.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("benchmark", {"Unary": handler}),)
    )
    unary_port = single.add_insecure_port("127.0.0.1:0")
    await single.start()
    plain_port = plain.sockets[0].getsockname()[1]
    addresses = f"{server.address} {plain_port} 127.0.0.1:{unary_port}"
    write_atomic(ready, addresses.encode(), durable=False)
    await asyncio.Event().wait()


if __name__ == "__main__":
    assert MAX_MESSAGE_BYTES < 1 << 28
    asyncio.run(_serve(Path(sys.argv[1])))
