"""A fake teacher server of only numpy and gRPC, with faults on request; not Lectern's own server.

Legend: N tokens, V vocabulary, D hidden size.
"""

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from lectern_common.wire.formats import unpack_mask
from lectern_common.wire.pieces import Reply, received
from protos import teacher_pb2 as pb
from protos import teacher_pb2_grpc

Fault = Callable[[Any, Any], Iterator[Any]]


# Requests of a new run before its first step, at its own temperature (teacher/probe.py).
PROBES = 3


def of_training(request: pb.LogitsForBatchRequest) -> bool:
    """Returns True for requests of training and the probe; evaluations use temperature 1."""
    return request.temperature != 1


class WireTeacher(teacher_pb2_grpc.TeacherServicer):
    """Hidden state i is a fixed function of tokens i and i - 1; the head is a fixed matrix.

    Each LogitsForBatch call for which `takes_fault` returns True consumes one of `faults`: None
    answers properly, a Fault answers in its own way. `piece_rows` is the number of rows per piece.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 40,
        hidden_size: int = 16,
        seed: int = 0,
        bias: bool = False,
        dtype: str = "float32",
        sharpness: float = 1.0,
        piece_rows: int = 3,
        tokens: dict[str, int] | None = None,
        tokenizer_sha256: str = "",
        weights_sha256: str = "a" * 64,
    ) -> None:
        draw = np.random.default_rng(seed)
        self.vocab_size, self.hidden_size, self.dtype = vocab_size, hidden_size, dtype
        self.embedding_VD = draw.standard_normal((vocab_size, hidden_size), np.float32)
        self.head_VD = sharpness * draw.standard_normal((vocab_size, hidden_size), np.float32)
        self.bias_V = draw.standard_normal(vocab_size, np.float32) if bias else None
        self.piece_rows = piece_rows
        self.tokens = tokens or {}
        self.model = pb.Model(
            protocol_version=1,
            model_id="wire",
            weights_sha256=weights_sha256,
            fingerprint=hashlib.sha256(self.head_VD.tobytes()).hexdigest(),
            logit_width=vocab_size,
            num_tokens=vocab_size,
            tokenizer_sha256=tokenizer_sha256,
            max_positions=4096,
            hidden_size=hidden_size,
            hidden_dtype=self._dtype,
            dtype=dtype,
            device="cpu",
            head_transform=pb.HeadTransform(scale=1, divisor=1, soft_cap=0, has_bias=bias),
            representations=[
                pb.RepresentationOffer(kind=kind, offered=True)
                for kind in (
                    pb.REPRESENTATION_DENSE,
                    pb.REPRESENTATION_HIDDEN,
                    pb.REPRESENTATION_TOP_K,
                    pb.REPRESENTATION_SAMPLED,
                )
            ],
            limits=pb.Limits(
                max_sequences=64,
                max_tokens=1 << 16,
                max_sequence_tokens=4096,
                max_top_k=vocab_size,
                max_draws=256,
                max_reply_bytes=1 << 26,
                max_request_bytes=1 << 24,
                max_queued_requests=64,
            ),
            engine="fixture",
            mode="independent",
            num_parameters=self.embedding_VD.size + self.head_VD.size,
        )
        self.faults: list[Fault | None] = []
        self.takes_fault: Callable[[pb.LogitsForBatchRequest], bool] = lambda request: True
        self.requests: list[pb.LogitsForBatchRequest] = []
        self.head_requests = 0
        self.metadata: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def asked_in_training(self) -> list[pb.LogitsForBatchRequest]:
        """Returns the requests of a new run's steps, without those of the probe and evaluations."""
        return [request for request in self.requests if of_training(request)][PROBES:]

    # ---- the mathematics, also for tests to compare with ----

    def hidden(self, tokens: Sequence[int] | npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
        """Returns the states [N, D] of one sequence, in float32 values of the dtype."""
        ids = np.asarray(tokens, np.int64)
        before = np.concatenate([ids[:1], ids[:-1]])
        states = np.tanh(self.embedding_VD[ids] + np.float32(0.5) * self.embedding_VD[before])
        if self.dtype == "bfloat16":
            states = (states.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return np.asarray(states, np.float32)

    def logits(self, states_ND: npt.NDArray[np.float32], vocab_size: int) -> Any:
        """Returns float32 logits [N, vocab_size]; a row's bytes do not depend on the others.

        Those of a matrix product would: on some processors few rows take another kernel than many.
        """
        head_VD = self.stored_head()[:vocab_size]
        rows = [(state_D * head_VD).sum(axis=1) for state_D in states_ND]
        logits = np.array(rows, np.float32).reshape(len(states_ND), len(head_VD))
        return logits if self.bias_V is None else logits + self.bias_V[:vocab_size]

    def stored_head(self) -> npt.NDArray[np.float32]:
        if self.dtype == "bfloat16":
            return (self.head_VD.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        return self.head_VD

    # ---- the service ----

    def GetModel(self, request: Any, context: Any) -> pb.Model:
        self._see(context)
        return self.model

    def GetTokenizerMap(self, request: Any, context: Any) -> Iterator[pb.TokenizerMapReply]:
        names = sorted(self.tokens, key=lambda name: self.tokens[name])
        yield pb.TokenizerMapReply(
            tokens=[name.encode() for name in names], ids=[self.tokens[name] for name in names]
        )

    def GetOutputHead(self, request: Any, context: Any) -> Iterator[pb.OutputHeadReply]:
        with self._lock:
            self.head_requests += 1
        payload = self._bytes(self.head_VD[: request.vocab_size])
        if self.bias_V is not None:
            payload += self._bytes(self.bias_V[: request.vocab_size])
        yield pb.OutputHeadReply(
            header=pb.OutputHeadHeader(
                fingerprint=self.model.fingerprint,
                dtype=self._dtype,
                vocab_size=request.vocab_size,
                hidden_size=self.hidden_size,
                transform=self.model.head_transform,
                total_bytes=len(payload),
            )
        )
        for start in range(0, len(payload), 100):
            yield pb.OutputHeadReply(piece=payload[start : start + 100])
        yield pb.OutputHeadReply(trailer=pb.OutputHeadTrailer(crc32=zlib.crc32(payload)))

    def LogitsForBatch(self, request: Any, context: Any) -> Iterator[pb.LogitsForBatchReply]:
        self._see(context)
        with self._lock:
            self.requests.append(request)
            fault = self.faults.pop(0) if self.faults and self.takes_fault(request) else None
        yield from self.answer(request) if fault is None else fault(request, context)

    def answer(self, request: Any) -> list[pb.LogitsForBatchReply]:
        """Returns the complete, correct reply stream."""
        ids = np.frombuffer(request.token_ids, "<u4")
        ends = np.cumsum(request.sequence_lengths)
        sequences = np.split(ids, ends[:-1])
        states = np.concatenate([self.hidden(part) for part in sequences])
        prefixes = [part[: end + 1] for part in sequences for end in range(len(part))]
        asked = np.arange(len(ids))
        if request.positions == pb.POSITIONS_MASK:
            asked = np.flatnonzero(unpack_mask(request.position_mask, len(ids)))
        elif request.positions == pb.POSITIONS_LAST:
            asked = ends - 1
        rows, dtype = self._rows(states[asked], [prefixes[index] for index in asked], request)
        return reply_stream(
            rows,
            fingerprint=self.model.fingerprint,
            kind=request.representation.kind,
            dtype=dtype,
            vocab_size=request.vocab_size,
            piece_rows=self.piece_rows,
        )

    def _rows(
        self,
        states: npt.NDArray[np.float32],
        prefixes: list[npt.NDArray[np.uint32]],
        request: Any,
    ) -> tuple[list[bytes], pb.DType]:
        asked = request.representation
        if asked.kind == pb.REPRESENTATION_HIDDEN:
            return [self._bytes(row) for row in states], self._dtype
        logits = self.logits(states, request.vocab_size)
        if asked.kind == pb.REPRESENTATION_DENSE:
            return [row.astype("<f4").tobytes() for row in logits], pb.DTYPE_FLOAT32
        if asked.kind == pb.REPRESENTATION_SAMPLED:
            pairs = zip(prefixes, logits, strict=True)
            rows = [sampled_row(prefix, row, asked, request.temperature) for prefix, row in pairs]
            return rows, pb.DTYPE_FLOAT32
        rows = []
        for row in logits:
            top = np.argsort(-row, kind="stable")[: asked.top_k]
            scaled = row.astype(np.float64) / request.temperature
            # The rest, then all; an empty sum is -inf.
            sums = [np.logaddexp.reduce(part) for part in (np.delete(scaled, top), scaled)]
            rows.append(
                row[top].astype("<f4").tobytes()
                + top.astype("<u4").tobytes()
                + np.array(sums, "<f4").tobytes()
            )
        return rows, pb.DTYPE_FLOAT32

    def _see(self, context: Any) -> None:
        entries = {key: str(value) for key, value in context.invocation_metadata()}
        with self._lock:
            self.metadata.append(entries)

    @property
    def _dtype(self) -> pb.DType:
        return {"float32": pb.DTYPE_FLOAT32, "bfloat16": pb.DTYPE_BFLOAT16}[self.dtype]

    def _bytes(self, values: npt.NDArray[np.float32]) -> bytes:
        if self.dtype == "bfloat16":
            return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
        return values.astype("<f4").tobytes()


def sampled_row(
    prefix: npt.NDArray[np.uint32], logits: npt.NDArray[Any], asked: Any, temperature: float
) -> bytes:
    """Returns the records of a row, following teacher.proto and the docstring of sampled.py."""
    hashed = b"lectern draws 1\n" + asked.seed.to_bytes(8, "little") + prefix.tobytes()
    words = np.frombuffer(hashlib.shake_256(hashed).digest(8 * asked.num_draws), "<u8")
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    cumulative = np.cumsum(weights)
    targets = (words >> np.uint64(11)) / 2.0**53 * cumulative[-1]
    ids, counts = np.unique(np.searchsorted(cumulative, targets, "right"), return_counts=True)
    return b"".join(
        (int(number) | int(count - 1) << 24).to_bytes(4, "little")
        + np.float32(np.log(weights[number] / cumulative[-1])).tobytes()
        for number, count in zip(ids, counts, strict=True)
    )


def reply_stream(
    rows: list[bytes],
    *,
    fingerprint: str,
    kind: pb.RepresentationKind,
    dtype: pb.DType,
    vocab_size: int,
    piece_rows: int = 3,
) -> list[pb.LogitsForBatchReply]:
    """Returns header, pieces and trailer of rows, which have equal sizes except for "sampled"."""
    payload = b"".join(rows)
    is_sampled = kind == pb.REPRESENTATION_SAMPLED
    header = pb.LogitsHeader(
        fingerprint=fingerprint,
        kind=kind,
        dtype=dtype,
        num_rows=len(rows),
        row_bytes=0 if is_sampled else len(rows[0]),
        total_bytes=0 if is_sampled else len(payload),
        vocab_size=vocab_size,
    )
    pieces = [
        pb.LogitsPiece(
            first_row=first,
            num_rows=len(rows[first : first + piece_rows]),
            payload=b"".join(rows[first : first + piece_rows]),
            row_lengths=b"".join(
                (len(row) // 8).to_bytes(4, "little")
                for row in rows[first : first + piece_rows]
                if is_sampled
            ),
        )
        for first in range(0, len(rows), piece_rows)
    ]
    trailer = pb.LogitsTrailer(crc32=zlib.crc32(payload), total_bytes=len(payload))
    return [
        pb.LogitsForBatchReply(header=header),
        *(pb.LogitsForBatchReply(piece=piece) for piece in pieces),
        pb.LogitsForBatchReply(trailer=trailer),
    ]


def arriving(replies: Iterable[pb.LogitsForBatchReply]) -> list[Reply]:
    """Returns replies as a channel returns them."""
    return [received(reply.SerializeToString()) for reply in replies]


class Serving:
    """A WireTeacher behind a port. `down()` and `up()` take it away and bring it back.

    With credentials it speaks TLS.
    """

    def __init__(
        self, teacher: WireTeacher, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self.teacher = teacher
        self._credentials = credentials
        self.port = 0
        self._server: grpc.Server | None = None
        self.up()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def up(self) -> None:
        server = grpc.server(
            ThreadPoolExecutor(8),
            options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)],
        )
        teacher_pb2_grpc.add_TeacherServicer_to_server(self.teacher, server)
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, self._credentials)
        server.start()
        self._server = server

    def down(self) -> None:
        """Breaks all connections at once, like a killed process."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None


def broken_after(num_messages: int, teacher: WireTeacher) -> Fault:
    """Returns a fault: the stream breaks after `num_messages` messages."""

    def fault(request: Any, context: Any) -> Iterator[Any]:
        yield from teacher.answer(request)[:num_messages]
        context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    return fault


def refused(code: grpc.StatusCode, details: str, **trailing: str) -> Fault:
    """Returns a fault: a status instead of an answer; _ in trailing keys becomes -."""

    def fault(request: Any, context: Any) -> Iterator[Any]:
        context.set_trailing_metadata(
            tuple((key.replace("_", "-"), value) for key, value in trailing.items())
        )
        context.abort(code, details)
        yield

    return fault


def changed(teacher: WireTeacher, change: Callable[[list[pb.LogitsForBatchReply]], Any]) -> Fault:
    """Returns a fault: a correct reply, changed in place by `change`, or what `change` returns."""

    def fault(request: Any, context: Any) -> Iterator[Any]:
        replies = teacher.answer(request)
        yield from change(replies) or replies

    return fault
