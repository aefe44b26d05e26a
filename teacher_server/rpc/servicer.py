"""The gRPC service `lectern.v1.Teacher`: translates calls for the queue and the engine.

A call's life: `_answering` opens it and turns errors into status codes; validation.py makes plain
data of it; the batcher runs it; replies.py cuts the rows into messages.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from lectern_common.errors import (
    InvalidRequest,
    LecternError,
    Overloaded,
    TeacherError,
    TeacherUnavailable,
)
from lectern_common.logs import get_logger
from lectern_common.teacher.channel import FIELD_KEY, PUSHBACK_KEY, REASON_KEY
from protos import teacher_pb2, teacher_pb2_grpc
from teacher_server.engine.seam import Engine, ScoringRequest
from teacher_server.rpc import replies, validation
from teacher_server.rpc.limits import Limits
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.batcher import Batcher

log = get_logger()

# Trailing metadata is capped at 8 KiB by most peers.
_MAX_DETAIL_CHARACTERS = 1500

Context = Any  # grpc.aio.ServicerContext; its generic parameters say nothing here


@dataclass(frozen=True)
class Serving:
    """What a loaded server answers from. `utilization` is the device's: see GpuUtilization."""

    engine: Engine
    batcher: Batcher
    accounting: Accounting
    limits: Limits
    utilization: Callable[[], float | None] = lambda: None


class TeacherServicer(teacher_pb2_grpc.TeacherServicer):
    """Answers calls between `open` and `close`; at any other time they get UNAVAILABLE."""

    def __init__(self) -> None:
        self._serving: Serving | None = None
        self._closed_because = "the model is still loading"
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, serving: Serving) -> None:
        """Takes calls from now on."""
        self._serving = serving

    def close(self, because: str) -> None:
        """Takes no new calls; calls in flight continue."""
        self._serving = None
        self._closed_because = because

    def stats(self) -> teacher_pb2.Stats | None:
        """Returns the counters, or None while it is closed."""
        return None if self._serving is None else _stats(self._serving)

    @property
    def is_idle(self) -> bool:
        """Whether no call is in flight."""
        return self._idle.is_set()

    async def wait_until_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()

    async def GetModel(
        self, request: teacher_pb2.GetModelRequest, context: Context
    ) -> teacher_pb2.Model:
        async with self._answering(context, "GetModel") as serving:
            validation.require_protocol(request.protocol_version)
            return replies.model(serving.engine.facts, serving.limits)

    async def LogitsForBatch(
        self, request: teacher_pb2.LogitsForBatchRequest, context: Context
    ) -> None:
        async with self._answering(context, "LogitsForBatch") as serving:
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
            self._account(serving, scoring, cutter.total_bytes, ticket.queue_seconds)

    async def GetOutputHead(
        self, request: teacher_pb2.GetOutputHeadRequest, context: Context
    ) -> None:
        async with self._answering(context, "GetOutputHead") as serving:
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
        async with self._answering(context, "GetTokenizerMap") as serving:
            validation.require_protocol(request.protocol_version)
            for reply in replies.tokenizer_replies(serving.engine.facts):
                await context.write(reply)

    async def GetStats(
        self, request: teacher_pb2.GetStatsRequest, context: Context
    ) -> teacher_pb2.Stats:
        async with self._answering(context, "GetStats") as serving:
            validation.require_protocol(request.protocol_version)
            return _stats(serving)

    def _account(
        self, serving: Serving, scoring: ScoringRequest, sent_bytes: int, queue_seconds: float
    ) -> None:
        serving.accounting.answered(scoring.run_id, sent_bytes, queue_seconds)
        log.debug(
            "answered",
            run_id=scoring.run_id,
            request_id=scoring.request_id,
            tokens=scoring.num_tokens,
            sent_bytes=sent_bytes,
            queue_seconds=round(queue_seconds, 4),
        )

    @contextlib.asynccontextmanager
    async def _answering(self, context: Context, call: str) -> AsyncIterator[Serving]:
        """Yields what to answer from; the only place where errors become status codes."""
        serving = self._serving
        self._calls += 1
        self._idle.clear()
        try:
            if serving is None:
                raise TeacherUnavailable(self._closed_because)
            yield serving
        except LecternError as error:
            if serving is not None:
                broke = isinstance(error, TeacherError)
                serving.accounting.failed() if broke else serving.accounting.refused()
            # A full queue refuses thousands of calls.
            say = log.debug if error.retryable else log.warning
            say("refused", call=call, reason=error.reason, detail=str(error))
            await _abort(context, error)
        except Exception:
            if context.done():  # the client went away in the middle of a message
                log.info("client gone", call=call)
                raise
            if serving is not None:
                serving.accounting.failed()
            log.exception("failed", call=call)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                "the teacher failed on this request; its log says why",
                ((REASON_KEY, LecternError.reason),),
            )
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()


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
