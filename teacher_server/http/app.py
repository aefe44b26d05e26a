"""The FastAPI application: its routes, and how a scoring request goes through the queue.

A request's life: guard.py lets it in; `_answer` reads its body; vllm.py or sglang.py makes a
question of it; question.py makes the asks for the queue, the same one as gRPC's; the answers become
JSON off the event loop, and nothing is sent before the last of them is there.
"""

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lectern_common.errors import InvalidRequest, LecternError, TeacherUnavailable
from teacher_server.engine.seam import ModelFacts, ScoringRequest
from teacher_server.http import sglang, vllm
from teacher_server.http.body import Bodies
from teacher_server.http.errors import plain_refusal, refusal
from teacher_server.http.fields import Fields, body_fields
from teacher_server.http.guard import CALLER, RUN_HEADER
from teacher_server.http.question import Question, Scored, scored
from teacher_server.http.sending import Replies, Reply, until_gone
from teacher_server.rpc.gate import Gate, Serving
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.validation import RUN_ID

# Who asks, if neither header, user name nor body says so.
ANONYMOUS = "http"

_Asked = Callable[[Fields, ModelFacts, Limits], Question]
_Told = Callable[[Question, Sequence[Scored | None], ModelFacts, int], Iterator[str]]


@dataclass(frozen=True)
class Route:
    """A scoring route: its path, what its body asks, and how its answers are told."""

    path: str
    asked: _Asked
    told: _Told


ROUTES = (
    Route("/v1/completions", vllm.completion, vllm.completion_reply),
    Route("/inference/v1/generate", vllm.generate, vllm.generate_reply),
    Route("/generate", sglang.generate, sglang.generate_reply),
)


def create_app(gate: Gate) -> FastAPI:
    """Returns the application around a server's gate."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    bodies, replies = Bodies(), Replies()
    created = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        if gate.serving is None:
            return refusal(TeacherUnavailable("the teacher takes no calls now"))
        return Response()

    @app.get("/v1/models")
    async def models() -> Response:
        with gate.answering("/v1/models", _never) as serving:
            return JSONResponse(vllm.model_list(serving.engine.facts, serving.limits, created))

    def add(route: Route) -> None:
        async def score(request: Request) -> Response:
            try:
                return await _answer(request, gate, (bodies, replies), route)
            except LecternError:
                raise
            except Exception:  # logged by the gate
                return plain_refusal(
                    500, "the teacher failed on this request; its log says why", LecternError.reason
                )

        app.add_api_route(route.path, score, methods=["POST"], response_model=None)

    for route in ROUTES:
        add(route)

    @app.exception_handler(LecternError)
    async def refused(_request: Request, error: LecternError) -> Response:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def unknown(_request: Request, error: HTTPException) -> Response:
        return plain_refusal(error.status_code, str(error.detail), headers=error.headers)

    return app


def _never() -> bool:
    return False


async def _answer(
    request: Request, gate: Gate, held: tuple[Bodies, Replies], route: Route
) -> Response:
    """Returns the whole answer to a scoring request.

    Raises:
        LecternError: it is refused, or the teacher failed on it.
    """
    bodies, replies = held
    with contextlib.ExitStack() as ended, gate.answering(route.path, _never) as serving:
        facts, limits = serving.engine.facts, serving.limits
        try:
            async with bodies.read(request.stream()) as body:
                question = await asyncio.to_thread(_question, route, body, facts, limits)
            del body
            run_id = _run_id(request, question)
            question.require_reply_fits(limits)
            ended.callback(replies.take(question.reply_bytes))
            scoring = await asyncio.to_thread(question.scoring, run_id, facts)
            work = asyncio.create_task(_scored(serving, question, scoring))
            answers, queue_seconds = await _while_wanted(request, work)
        except ClientDisconnect:  # there is nobody to tell, and its place in the queue is free
            return Response(status_code=499)
        pieces = route.told(question, answers, facts, int(time.time()))
        content = await asyncio.to_thread(lambda: "".join(pieces).encode("ascii"))
        num_bytes = len(content)
        return Reply(
            content,
            sent=lambda: serving.account(scoring, num_bytes, queue_seconds),
            ended=ended.pop_all().close,
        )


def _question(route: Route, body: bytes, facts: ModelFacts, limits: Limits) -> Question:
    """Returns what a body asks, with a request id of its own if it gives none."""
    question = route.asked(body_fields(body), facts, limits)
    if question.request_id:
        return question
    return dataclasses.replace(question, request_id=uuid.uuid4().hex)


async def _scored(
    serving: Serving, question: Question, scoring: ScoringRequest
) -> tuple[list[Scored | None], float]:
    """Returns an answer for each sequence, None where no row is asked, and the time in the queue.

    Raises:
        Overloaded: the queue is full, or a quota is used up.
    """
    asks = iter(scoring.asks)
    with serving.batcher.admitted(scoring, None) as ticket:
        found = [rows async for rows in serving.batcher.answers(ticket)]
        queue_seconds = ticket.queue_seconds
    answered = iter(
        await asyncio.to_thread(
            lambda: [
                scored(question, ask, rows.payload) for ask, rows in zip(asks, found, strict=True)
            ]
        )
    )
    return [
        next(answered) if question.num_rows(ids_S) else None for ids_S in question.sequences
    ], queue_seconds


async def _while_wanted(
    request: Request, work: asyncio.Task[tuple[list[Scored | None], float]]
) -> tuple[list[Scored | None], float]:
    """Returns what the work returns; if the client goes away first, the work is cancelled.

    Raises:
        ClientDisconnect: the client went away.
    """
    gone = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


def _run_id(request: Request, question: Question) -> str:
    """Returns the run that the work is charged to: header, user name, or `user` of the body.

    Raises:
        InvalidRequest: it is not a run id.
    """
    places = (
        (RUN_HEADER, request.headers.get(RUN_HEADER)),
        ("the user name", request.scope.get(CALLER)),
        ("user", question.user),
    )
    for place, name in places:
        if name:
            if not RUN_ID.fullmatch(name):
                raise InvalidRequest(
                    f"{place} names the run that the work is charged to, so it must match "
                    f"{RUN_ID.pattern}",
                    field=place,
                )
            return name
    return ANONYMOUS
