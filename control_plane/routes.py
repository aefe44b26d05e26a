"""The REST interface. Each function checks its input, asks one part of the plane, and answers.

Handlers that only read are plain functions: FastAPI runs them in threads, off the event loop.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from control_plane import catalog, views
from control_plane.bodies import json_object, optional_json_object, with_changes
from control_plane.deletion import delete_run
from control_plane.events import RunPosition, list_events, run_events
from control_plane.metrics_file import read_many
from control_plane.plane import ControlPlane
from control_plane.problems import MEDIA_TYPE
from control_plane.run_history import run_history
from control_plane.run_record import Run
from control_plane.runs import require_goes_on
from control_plane.samples import newest_samples
from control_plane.trainer_text import tail
from lectern_common.errors import Conflict, InvalidRequest, Overloaded
from lectern_common.json_lines import Position
from lectern_common.run_folder import RunFolder, RunState
from lectern_common.run_spec import NAME_PATTERN, RunSpec
from lectern_common.spec_file import dump_spec, parse_spec

MAX_RECORDS = 5000
_KEY = re.compile(r"^[\x21-\x7e]{1,200}$")


def _plane(request: Request) -> ControlPlane:
    plane: ControlPlane = request.app.state.plane
    return plane


Plane = Annotated[ControlPlane, Depends(_plane)]
RunId = Annotated[str, Path(pattern=NAME_PATTERN, description="As given by POST /runs.")]

_PROBLEM = {"model": views.Problem, "content": {MEDIA_TYPE: {}}}
router = APIRouter(
    responses={
        status: {**_PROBLEM, "description": text}
        for status, text in {
            400: "The request is malformed, or its Host is not known",
            401: "The bearer token is missing or wrong",
            422: "A field is not valid; `errors` names each",
            503: "Try again later",
        }.items()
    }
)
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {**_PROBLEM, "description": "No such run"}}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    **_NOT_FOUND,
    409: {**_PROBLEM, "description": "Its state does not allow it; the message names the state"},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"}
}


def _body(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


# ---- making and steering runs ------------------------------------------------------------------


@router.post(
    "/runs",
    status_code=202,
    response_model=views.RunView,
    responses={
        502: {**_PROBLEM, "description": "The teacher is not reachable"},
        202: {"headers": {"Location": {"schema": {"type": "string"}}}},
    },
    openapi_extra=_body({"$ref": "#/components/schemas/RunSpec"}, required=True),
)
async def create_run(
    request: Request,
    response: Response,
    plane: Plane,
    idempotency_key: Annotated[
        str | None,
        Header(description="A repeated request with the same key and body makes no second run."),
    ] = None,
) -> views.RunView:
    """Checks a run spec, its data, student and teacher, and queues the run."""
    if idempotency_key is not None and not _KEY.match(idempotency_key):
        why = "must be 1 to 200 printable ASCII characters without spaces"
        raise InvalidRequest(why, field="Idempotency-Key")
    spec = parse_spec(await json_object(request))
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    async with plane.key_lock(idempotency_key):
        run = await asyncio.to_thread(plane.runs.made_by_key, idempotency_key, digest)
        if run is None:
            teacher = await plane.checks.require_startable(spec)
            run = await asyncio.to_thread(
                plane.runs.create, spec, idempotency_key, digest, plane.has_folder, teacher
            )
    response.headers["Location"] = f"/runs/{run.id}"
    return await asyncio.to_thread(_view, plane, run)


@router.get("/runs", response_model=views.RunsPage)
def list_runs(
    plane: Plane,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor`")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[list[RunState] | None, Query(description="Only runs in these states.")] = None,
) -> views.RunsPage:
    """Lists runs, newest first."""
    found, revision = plane.runs.page(cursor, limit + 1, state or ())
    page, rest = found[:limit], found[limit:]
    return views.RunsPage(
        runs=_views(plane, page),
        next_cursor=str(page[-1].seq) if rest else None,
        revision=revision,
    )


@router.get("/runs/{run_id}", response_model=views.RunDetail, responses=_NOT_FOUND)
def get_run(plane: Plane, run_id: RunId) -> views.RunDetail:
    """One run, with its whole spec and what happened to it."""
    (run,) = plane.explained([plane.runs.get(run_id)])
    folder = plane.folder(run)
    history = run_history(plane.runs.history(run_id), folder)
    return views.run_detail(run, plane.clock(), plane.queue(), history, str(folder.path))


@router.post(
    "/runs/{run_id}/stop", status_code=202, response_model=views.RunView, responses=_CONFLICT
)
def stop_run(plane: Plane, run_id: RunId) -> views.RunView:
    """Asks a run to write a checkpoint and stop. Asking twice is the same as once."""
    return _view(plane, plane.runs.request_stop(run_id))


@router.post(
    "/runs/{run_id}/resume",
    status_code=202,
    response_model=views.RunView,
    responses={**_CONFLICT, 502: {**_PROBLEM, "description": "The teacher is not reachable"}},
    openapi_extra=_body(
        {
            "type": "object",
            "description": "The part of a RunSpec that changes, such as "
            '{"schedule": {"steps": 2000}}. A resume may change little; the rest is refused.',
        },
        required=False,
    ),
)
async def resume_run(request: Request, plane: Plane, run_id: RunId) -> views.RunView:
    """Queues a run that rests, to go on from its newest checkpoint.

    One that has succeeded, where the changes make it go on: `schedule.steps` above those made, and
    another `evaluation.patience` where that ended it.
    """
    changes = await optional_json_object(request)
    before = await asyncio.to_thread(plane.runs.get, run_id)
    spec = with_changes(before.run_spec, changes)
    require_goes_on(before, spec)
    await plane.checks.require_startable(spec, before.taught_by)

    def new_spec(present: RunSpec) -> RunSpec:
        if present != before.run_spec:
            raise Conflict(f"run {run_id} was resumed by another request meanwhile")
        return spec

    run = await asyncio.to_thread(plane.runs.request_resume, run_id, new_spec)
    return await asyncio.to_thread(_view, plane, run)


@router.delete("/runs/{run_id}", status_code=204, responses=_CONFLICT)
def remove_run(plane: Plane, run_id: RunId) -> None:
    """Deletes a run that rests, with its folder: checkpoints, metrics, export, all of it."""
    delete_run(plane.runs, RunFolder(plane.roots.runs / run_id))


# ---- looking at runs ---------------------------------------------------------------------------


@router.get("/runs/{run_id}/metrics", response_model=views.MetricsView, responses=_NOT_FOUND)
def get_metrics(
    plane: Plane,
    run_id: RunId,
    after_step: Annotated[int | None, Query(ge=-1, le=10**12)] = None,
    max_points: Annotated[int | None, Query(ge=16, le=MAX_RECORDS)] = None,
    cursor: Annotated[str | None, Query(max_length=40, description="`cursor` of before")] = None,
    keys: Annotated[str | None, Query(max_length=1000, description="Comma-separated")] = None,
) -> Response:
    """Metric records in the order of their steps: from the start, a step or a cursor on.

    With `max_points` at most about so many, spread over all of them, lows and highs kept; else the
    next few thousand.
    """
    path = plane.folder(plane.runs.get(run_id)).metrics_path
    wanted = frozenset(keys.split(",")) if keys else frozenset()
    start = Position.parse(cursor) if cursor is not None else Position()
    first_step = 0 if after_step is None else after_step + 1
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
    # The model is for the documentation: records are as the trainer wrote them, escapes included.
    return Response(json.dumps(body), media_type="application/json")


@router.get("/runs/{run_id}/samples", response_model=views.SamplesView, responses=_NOT_FOUND)
def get_samples(
    plane: Plane, run_id: RunId, limit: Annotated[int, Query(ge=1, le=1000)] = 64
) -> views.SamplesView:
    """What student and teacher wrote on at the last evaluations, for each of the run's prompts."""
    path = plane.folder(plane.runs.get(run_id)).samples_path
    return views.SamplesView(run_id=run_id, samples=newest_samples(path, limit))


@router.get(
    "/runs/{run_id}/logs",
    response_class=PlainTextResponse,
    responses={**_NOT_FOUND, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_logs(
    plane: Plane,
    run_id: RunId,
    tail_lines: Annotated[int, Query(alias="tail", ge=1, le=5000)] = 200,
) -> PlainTextResponse:
    """The last lines that the trainer wrote, without escapes, over-long lines cut."""
    lines = tail(plane.folder(plane.runs.get(run_id)).log_path, tail_lines)
    return PlainTextResponse("".join(f"{line}\n" for line in lines))


@router.get(
    "/runs/{run_id}/spec",
    response_class=PlainTextResponse,
    responses={
        **_NOT_FOUND,
        200: {"content": {"application/yaml": {"schema": {"type": "string"}}}},
    },
)
def get_spec(plane: Plane, run_id: RunId) -> Response:
    """The resolved spec as YAML, every default visible."""
    text = dump_spec(plane.runs.get(run_id).run_spec)
    return Response(text, media_type="application/yaml")


@router.get("/runs/{run_id}/events", responses={**_NOT_FOUND, **_STREAM})
async def stream_run(
    plane: Plane,
    run_id: RunId,
    after: Annotated[str | None, Query(max_length=80, description="An event's id")] = None,
    last_event_id: Annotated[str | None, Header(max_length=80)] = None,
) -> StreamingResponse:
    """Streams `state`, `metrics`, `rewind` and `deleted` of one run, from its start or an id on."""
    given = last_event_id or after
    position = RunPosition.parse(given) if given else RunPosition()
    run = await asyncio.to_thread(plane.runs.get, run_id)
    metrics_path = plane.folder(run).metrics_path
    return _stream(plane, run_events(plane.runs, plane.changes, run_id, metrics_path, position))


@router.get("/events", responses=_STREAM)
async def stream_list(
    plane: Plane,
    after: Annotated[int | None, Query(ge=0, le=2**62, description="`revision`")] = None,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**62)] = None,
) -> StreamingResponse:
    """Streams a `run` event for each run that changes, its id the run's revision, and `deleted`."""
    given = last_event_id if last_event_id is not None else after
    events = list_events(plane.runs, plane.changes, lambda found: [*_views(plane, found)], given)
    return _stream(plane, events)


# ---- what there is -----------------------------------------------------------------------------


@router.get("/teachers", response_model=views.TeachersView)
async def list_teachers(plane: Plane) -> views.TeachersView:
    """The configured teachers and those that runs ask, as they answer now."""
    asked_by = await asyncio.to_thread(plane.teachers_of_runs)
    teachers = await plane.teachers.views(asked_by)
    accounts = [account for teacher in teachers for account in teacher.accounts]
    names = await asyncio.to_thread(plane.runs.names, {account.run_id for account in accounts})
    for account in accounts:
        account.name = names.get(account.run_id)
    return views.TeachersView(teachers=teachers)


@router.get("/datasets", response_model=views.DatasetsView)
def list_datasets(plane: Plane) -> views.DatasetsView:
    """The datasets under the data root."""
    return views.DatasetsView(datasets=catalog.datasets(plane.roots.data))


@router.get("/models", response_model=views.ModelsView)
def list_models(plane: Plane) -> views.ModelsView:
    """The model folders under the models root."""
    return views.ModelsView(models=catalog.models(plane.roots.models))


@router.get("/healthz", response_model=views.HealthView)
async def healthz() -> views.HealthView:
    """Answers while the process lives."""
    return views.HealthView(status="ok")


@router.get("/readyz", response_model=views.ReadyView)
def readyz(plane: Plane) -> views.ReadyView:
    """Answers 200 while the control plane takes runs and looks after them."""
    if not plane.is_ready():
        raise Overloaded("the control plane is starting or ending", retry_after_seconds=1)
    plane.runs.newest_revision()
    return views.ReadyView(
        status="ready",
        max_running_runs=plane.devices.max_running,
        cuda_devices=len(plane.devices.cuda),
    )


# ---- shared --------------------------------------------------------------------------------------


def _view(plane: ControlPlane, run: Run) -> views.RunView:
    return _views(plane, [run])[0]


def _views(plane: ControlPlane, runs: list[Run]) -> list[views.RunView]:
    now = plane.clock()
    queue = plane.queue() if any(run.state is RunState.QUEUED for run in runs) else {}
    return [views.run_view(run, now, queue) for run in plane.explained(runs)]


def _stream(plane: ControlPlane, events: AsyncIterator[bytes]) -> StreamingResponse:
    plane.changes.require_room()
    return StreamingResponse(
        events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )
