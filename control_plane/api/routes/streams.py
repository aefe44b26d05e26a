"""Routes that read what a run's trainer writes, and stream changes as they happen."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from control_plane.api.problems import NOT_FOUND, PROBLEM, problem
from control_plane.api.requests import Plane, RunId
from control_plane.reading.feed import Feed
from control_plane.reading.logs.pieces import position_before
from control_plane.reading.logs.stream import log_events
from control_plane.reading.logs.tail import tail
from control_plane.reading.logs.whole import Unsatisfiable, WholeLog, range_of
from control_plane.reading.metrics import is_long, read_many, read_thinned
from control_plane.reading.samples import newest_rollouts, newest_samples
from control_plane.reading.streams import RunPosition, list_events, run_events
from control_plane.views.readings import MetricsView, RolloutsView, SamplesView
from lectern_common.json_lines import Position, position_of

MAX_RECORDS = 5000
_EVENT = {
    "type": "object",
    "description": "One server-sent event; `data` is a JSON object as text.",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": _EVENT}},
        "description": "Server-sent events",
    }
}

_TEXT = {"schema": {"type": "string"}}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_LOG_HEADERS = {"ETag": _TEXT, "Accept-Ranges": _TEXT}

router = APIRouter()


@router.get("/runs/{run_id}/metrics", response_model=MetricsView, responses=NOT_FOUND)
def get_metrics(
    plane: Plane,
    run_id: RunId,
    after_step: Annotated[int | None, Query(ge=-1, le=10**12)] = None,
    max_points: Annotated[int | None, Query(ge=16, le=MAX_RECORDS)] = None,
    cursor: Annotated[str | None, Query(max_length=40, description="`cursor` of an answer")] = None,
    keys: Annotated[str | None, Query(max_length=1000, description="Comma-separated")] = None,
) -> Response:
    """Returns metric records in the order of their steps, from the start, a step or a cursor on.

    With `max_points`, about that many at most, spread over all of them and keeping lows and highs;
    otherwise the next few thousand.
    """
    folder = plane.folder(plane.runs.get(run_id))
    path = folder.metrics_path
    wanted = frozenset(keys.split(",")) if keys else frozenset()
    first_step = 0 if after_step is None else after_step + 1
    start = position_of(path, first_step) if cursor is None else Position.parse(cursor)
    if cursor is None and max_points is not None and is_long(path, start):
        answer = read_thinned(
            plane.indexes.of(folder),
            path,
            first_step=first_step,
            keys=wanted,
            max_points=max_points,
        )
    else:
        answer = read_many(
            path,
            start,
            first_step=first_step,
            keys=wanted,
            max_records=MAX_RECORDS,
            max_points=max_points,
        )
    body = {
        "run_id": run_id,
        "metrics": answer.records,
        "cursor": str(answer.end),
        "rewound": answer.rewound,
        "more": answer.more,
    }
    # The model only documents: records are sent as the trainer wrote them, escapes included.
    return Response(json.dumps(body), media_type="application/json")


@router.get("/runs/{run_id}/samples", response_model=SamplesView, responses=NOT_FOUND)
def get_samples(
    plane: Plane, run_id: RunId, limit: Annotated[int, Query(ge=1, le=1000)] = 64
) -> SamplesView:
    """Returns what student and teacher generated for the run's prompts at the last evaluations."""
    path = plane.folder(plane.runs.get(run_id)).samples_path
    return SamplesView(run_id=run_id, samples=newest_samples(path, limit))


@router.get("/runs/{run_id}/rollouts", response_model=RolloutsView, responses=NOT_FOUND)
def get_rollouts(
    plane: Plane,
    run_id: RunId,
    limit: Annotated[int, Query(ge=1, le=1000)] = 16,
    before_step: Annotated[
        int | None, Query(ge=0, le=10**12, description="Only those of earlier steps")
    ] = None,
) -> RolloutsView:
    """Returns some of what the student wrote to learn from, with the teacher's judgement of it."""
    path = plane.folder(plane.runs.get(run_id)).rollouts_path
    rollouts, more = newest_rollouts(path, limit, before_step)
    return RolloutsView(run_id=run_id, rollouts=rollouts, more=more)


@router.get(
    "/runs/{run_id}/logs",
    response_class=PlainTextResponse,
    responses={**NOT_FOUND, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_logs(
    plane: Plane,
    run_id: RunId,
    tail_lines: Annotated[int, Query(alias="tail", ge=1, le=5000)] = 200,
) -> PlainTextResponse:
    """Returns the last lines of the trainer's log, without escapes, with over-long lines cut."""
    lines = tail(plane.folder(plane.runs.get(run_id)).log_path, tail_lines)
    return PlainTextResponse("".join(f"{line}\n" for line in lines))


@router.get(
    "/runs/{run_id}/log",
    response_class=Response,
    responses={
        **NOT_FOUND,
        200: {"content": {"text/plain": _BYTES}, "headers": _LOG_HEADERS},
        206: {
            "description": "The bytes of the Range",
            "content": {"text/plain": _BYTES},
            "headers": {**_LOG_HEADERS, "Content-Range": _TEXT},
        },
        416: {
            **PROBLEM,
            "description": "The range begins behind the log's end",
            "headers": {"Content-Range": _TEXT},
        },
    },
)
def get_log(
    plane: Plane,
    run_id: RunId,
    range_header: Annotated[
        str | None, Header(alias="Range", max_length=200, description="Such as `bytes=1000-`")
    ] = None,
    if_range: Annotated[
        str | None, Header(max_length=200, description="An ETag: of another log, all is sent")
    ] = None,
) -> Response:
    """Returns the trainer's log as it lies on the disk, byte for byte, or one range of it.

    A log that is cut while it is sent ends the connection before its Content-Length.
    """
    log = WholeLog.of(plane.folder(plane.runs.get(run_id)).log_path)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": log.tag,
        "Content-Disposition": f'attachment; filename="{run_id}.log"',
    }
    part = None
    if range_header is not None and if_range in (None, log.tag):
        try:
            part = range_of(range_header, log.size)
        except Unsatisfiable:
            why = f"the log has {log.size} bytes, none of them in this range"
            return problem(416, why, headers={"Content-Range": f"bytes */{log.size}"})
    begin, end = part or (0, log.size)
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{log.size}"
    headers["Content-Length"] = str(end - begin)
    status = 200 if part is None else 206
    return StreamingResponse(log.blocks(begin, end), status, headers, media_type="text/plain")


@router.get("/runs/{run_id}/log/stream", responses={**NOT_FOUND, **_STREAM})
async def stream_log(
    plane: Plane,
    run_id: RunId,
    after: Annotated[
        int | None, Query(ge=0, le=2**62, description="An event's id; 0 is the log's start")
    ] = None,
    tail_lines: Annotated[
        int, Query(alias="tail", ge=0, le=5000, description="Lines to begin with, without an id")
    ] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**62)] = None,
) -> StreamingResponse:
    """Streams the lines that are appended to the trainer's log, without escapes, as `log` events.

    A line comes once it has ended. `cut` and `rewind` say that text is missing, or is another
    log's; `rests` that the run has come to rest and all was sent. The id of each event can be given
    as `after`, or as the Last-Event-ID header.
    """
    folder = plane.folder(await asyncio.to_thread(plane.runs.get, run_id))
    position = last_event_id if last_event_id is not None else after
    if position is None:
        position = await plane.feed.read(position_before, folder.log_path, tail_lines)
    return _EventStream(plane.feed, log_events(plane.feed, folder, position))


@router.get("/runs/{run_id}/events", responses={**NOT_FOUND, **_STREAM})
async def stream_run(
    plane: Plane,
    run_id: RunId,
    after: Annotated[str | None, Query(max_length=80, description="An event's id")] = None,
    last_event_id: Annotated[str | None, Header(max_length=80)] = None,
) -> StreamingResponse:
    """Streams a run's `state`, `metrics`, `rewind` and `deleted` events, from the start or an id.

    The id of each event can be given as `after`, or as the Last-Event-ID header.
    """
    given = last_event_id or after
    position = RunPosition.parse(given) if given else RunPosition()
    run = await asyncio.to_thread(plane.runs.get, run_id)
    metrics_path = plane.folder(run).metrics_path
    return _EventStream(plane.feed, run_events(plane.feed, run_id, metrics_path, position))


@router.get("/events", responses=_STREAM)
async def stream_list(
    plane: Plane,
    after: Annotated[int | None, Query(ge=0, le=2**62, description="`revision`")] = None,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**62)] = None,
) -> StreamingResponse:
    """Streams a `run` event for each change of a run, with its revision as id, and `deleted`.

    And an `alert` event for each new alert, as `GET /alerts` has it, with such an id, too.
    """
    given = last_event_id if last_event_id is not None else after
    newest = await asyncio.to_thread(plane.runs.newest_revision)
    return _EventStream(plane.feed, list_events(plane.feed, newest, given))


class _EventStream(StreamingResponse):
    """A stream that is counted, and refused as long as no byte of it has been sent."""

    def __init__(self, feed: Feed, events: AsyncGenerator[bytes, None]) -> None:
        headers = {"X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._feed = feed
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until the client goes. Raises Overloaded if there is no room."""
        try:
            with self._feed.opened():
                await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
