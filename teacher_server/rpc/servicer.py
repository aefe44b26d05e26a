"""The gRPC service `lectern.v1.Teacher`: translates calls for the queue and the engine.

A call's life: `_answering` opens it and turns errors into status codes; validation.py makes plain
data of it; the batcher runs it; replies.py cuts the rows into messages.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from lectern_common.errors import InvalidRequest, LecternError, Overloaded
from lectern_common.teacher.channel import FIELD_KEY, PUSHBACK_KEY, REASON_KEY
from protos import teacher_pb2, teacher_pb2_grpc
from teacher_server.rpc import replies, validation
from teacher_server.rpc.gate import Gate, Serving

# Trailing metadata is capped at 8 KiB by most peers.
_MAX_DETAIL_CHARACTERS = 1500

Context = Any  # grpc.aio.ServicerContext; its generic parameters say nothing here


@dataclass(frozen=True)
class Garbled:
    """Stands for a request whose bytes are not the message `name`.

    It is refused like any other, so that it is counted, logged and told apart from a broken
    connection: gRPC itself answers UNKNOWN.
    """

    name: str


class TeacherServicer(teacher_pb2_grpc.TeacherServicer):
    """Answers calls while its gate is open; at any other time they get UNAVAILABLE."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def stats(self) -> teacher_pb2.Stats | None:
        """Returns the counters, or None while it takes no calls."""
        serving = self._gate.serving
        return None if serving is None else _stats(serving)

    async def GetModel(
        self, request: teacher_pb2.GetModelRequest, context: Context
    ) -> teacher_pb2.Model:
        async with self._answering(request, context, "GetModel") as serving:
            validation.require_protocol(request.protocol_version)
            return replies.model(serving.engine.facts, serving.limits)

    async def LogitsForBatch(
        self, request: teacher_pb2.LogitsForBatchRequest, context: Context
    ) -> None:
        async with self._answering(request, context, "LogitsForBatch") as serving:
            facts = serving.engine.facts
            scoring = validation.scoring_request(request, facts, serving.limits)
            with serving.batcher.admitted(scoring, context.time_remaining()) as ticket:
                await context.write(replies.logits_header(request, scoring, facts))
                cutter = replies.PieceCutter(scoring.row_bytes)
                async for rows in serving.batcher.answers(ticket):
                    for piece in cutter.add(rows):
                        await context.write(piece)
                for piece in cutter.rest():
                    await context.write(piece)
                await context.write(replies.logits_trailer(cutter, ticket))
            serving.account(scoring, cutter.total_bytes, ticket.queue_seconds)

    async def GetOutputHead(
        self, request: teacher_pb2.GetOutputHeadRequest, context: Context
    ) -> None:
        async with self._answering(request, context, "GetOutputHead") as serving:
            facts = serving.engine.facts
            validation.require_protocol(request.protocol_version)
            validation.require_model(request.expected_fingerprint, facts)
            validation.require_vocab_size(request.vocab_size, facts)
            validation.require_offered("hidden", facts)
            parts = serving.engine.head_bytes(request.vocab_size)
            for reply in replies.head_replies(facts, request.vocab_size, parts):
                await context.write(reply)

    async def GetTokenizerMap(
        self, request: teacher_pb2.GetTokenizerMapRequest, context: Context
    ) -> None:
        async with self._answering(request, context, "GetTokenizerMap") as serving:
            validation.require_protocol(request.protocol_version)
            for reply in replies.tokenizer_replies(serving.engine.facts):
                await context.write(reply)

    async def GetStats(
        self, request: teacher_pb2.GetStatsRequest, context: Context
    ) -> teacher_pb2.Stats:
        async with self._answering(request, context, "GetStats") as serving:
            validation.require_protocol(request.protocol_version)
            return _stats(serving)

    @contextlib.asynccontextmanager
    async def _answering(
        self, request: object, context: Context, call: str
    ) -> AsyncIterator[Serving]:
        """Yields what to answer from; the only place where errors become status codes."""
        with self._gate.in_flight():
            try:
                with self._gate.answering(call, context.done) as serving:
                    if isinstance(request, Garbled):
                        raise InvalidRequest(f"the request is not a {request.name} message")
                    yield serving
            except LecternError as error:
                await _abort(context, error)
            except Exception:
                if context.done():  # there is nobody to tell
                    raise
                await context.abort(
                    grpc.StatusCode.INTERNAL,
                    "the teacher failed on this request; its log says why",
                    ((REASON_KEY, LecternError.reason),),
                )


def _stats(serving: Serving) -> teacher_pb2.Stats:
    return replies.stats(
        serving.engine.facts, serving.batcher, serving.accounting, serving.utilization()
    )


async def _abort(context: Context, error: LecternError) -> None:
    trailing = [(REASON_KEY, error.reason)]
    if isinstance(error, InvalidRequest) and error.field is not None:
        trailing.append((FIELD_KEY, error.field))
    if isinstance(error, Overloaded):
        trailing.append((PUSHBACK_KEY, str(round(1000 * error.retry_after_seconds))))
    code = grpc.StatusCode[error.grpc_code]
    await context.abort(code, str(error)[:_MAX_DETAIL_CHARACTERS], tuple(trailing))
