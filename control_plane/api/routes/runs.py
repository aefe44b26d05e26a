"""Routes that create, list, show and label runs.

Each function checks its input, calls one part of the plane, and answers. Those that only read are
plain functions: FastAPI runs them in threads, off the event loop.
"""

import asyncio
import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from control_plane.api.openapi import CHANGES
from control_plane.api.problems import ACCEPTED, NOT_FOUND, TEACHER_AWAY
from control_plane.api.requests import (
    IdempotencyKey,
    Plane,
    RunId,
    checked_key,
    json_body,
    json_object,
    with_labels,
)
from control_plane.reading.checkpoints import checkpoints_of
from control_plane.reading.history import HistoryPosition, history_page, recent_history
from control_plane.runs.search import Search
from control_plane.teachers.dry_run import checked_spec, free_disk
from control_plane.views.checks import SpecCheckView
from control_plane.views.readings import CheckpointsView
from control_plane.views.run_fields import run_detail
from control_plane.views.runs import HistoryPage, RunDetail, RunsPage, RunView
from lectern_common.run.status import RunState
from lectern_common.spec.load import dump_spec, parse_spec
from lectern_common.spec.run_spec import LABELS, NAME_PATTERN, Tag

router = APIRouter()


@router.post(
    "/runs",
    status_code=202,
    response_model=RunView,
    responses={
        **TEACHER_AWAY,
        **ACCEPTED,
    },
    openapi_extra=json_body({"$ref": "#/components/schemas/RunSpec"}, required=True),
)
async def create_run(
    request: Request,
    response: Response,
    plane: Plane,
    idempotency_key: IdempotencyKey = None,
) -> RunView:
    """Checks a run spec, its data, student and teacher, and queues the run."""
    key = checked_key(idempotency_key)
    spec = parse_spec(await json_object(request))
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    async with plane.key_lock(key):
        run = await asyncio.to_thread(plane.runs.made_by_key, key, digest)
        if run is None:
            await asyncio.to_thread(plane.commands.require_room)
            spec = await plane.checks.resolved(spec)
            teacher = await plane.checks.require_startable(spec)
            run = await asyncio.to_thread(
                plane.commands.create, spec, key, digest, plane.has_folder, teacher
            )
    response.headers["Location"] = f"/runs/{run.id}"
    return await asyncio.to_thread(plane.run_view, run)


@router.post(
    "/runs/check",
    response_model=SpecCheckView,
    openapi_extra=json_body({"$ref": "#/components/schemas/RunSpec"}, required=True),
)
async def check_spec(request: Request, plane: Plane) -> SpecCheckView:
    """Makes every check that POST /runs makes, and estimates the run; creates nothing."""
    spec = await plane.checks.resolved(parse_spec(await json_object(request)))
    checks, found = await plane.checks.examined(spec)
    free = await asyncio.to_thread(free_disk, plane.roots.runs)
    return checked_spec(spec, checks, found, free)


@router.get("/runs", response_model=RunsPage)
def list_runs(
    plane: Plane,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor`")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[list[RunState] | None, Query(description="Only runs in these states.")] = None,
    q: Annotated[str | None, Query(max_length=100, description="Part of a name or id.")] = None,
    group: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="Only runs of this group.")
    ] = None,
    tag: Annotated[
        list[Tag] | None, Query(max_length=20, description="Only runs with all of these tags.")
    ] = None,
    sort: Annotated[
        str | None,
        Query(
            max_length=150,
            description="`name`, `created_at`, `state`, `attempt`, `student`, `progress`, "
            "`elapsed`, `device`, `tokens_per_second`, `teacher_wait_share`, `checkpoint_at`, "
            "`disk_bytes`, `latest.METRIC` or `spec.SETTING`; `-` before it for descending. Runs "
            "without a value come last.",
        ),
    ] = None,
) -> RunsPage:
    """Lists runs, newest first unless sorted."""
    search = Search(q, state or (), group, tag or (), sort)
    found = plane.runs.search(search, cursor, limit + 1)
    page, rest = found.runs[:limit], found.runs[limit:]
    return RunsPage(
        runs=plane.run_views(page),
        total=found.total,
        next_cursor=str(page[-1].seq) if rest else None,
        revision=found.revision,
    )


@router.get("/runs/{run_id}", response_model=RunDetail, responses=NOT_FOUND)
def get_run(plane: Plane, run_id: RunId) -> RunDetail:
    """Returns one run, with its whole spec and its history."""
    run = plane.runs.get(run_id)
    folder = plane.folder(run)
    history = recent_history(plane.runs, folder)
    return run_detail(run, plane.clock(), history, str(folder.path))


@router.patch(
    "/runs/{run_id}",
    response_model=RunView,
    responses=NOT_FOUND,
    openapi_extra=json_body(
        {
            "$ref": f"#/components/schemas/{CHANGES}",
            "description": 'The labels that change, such as {"priority": 5}; only x-may-change.',
            "x-may-change": list(LABELS),
        },
        required=True,
    ),
)
async def label_run(request: Request, plane: Plane, run_id: RunId) -> RunView:
    """Changes the priority, group, tags or notes of a run, in any state; null clears the group.

    A trainer that is at work has the new ones in its copy of the spec only from its next start.
    """
    labels = await json_object(request)
    run = await asyncio.to_thread(
        plane.commands.set_labels, run_id, lambda spec: with_labels(spec, labels)
    )
    return await asyncio.to_thread(plane.run_view, run)


@router.get("/runs/{run_id}/history", response_model=HistoryPage, responses=NOT_FOUND)
def get_history(
    plane: Plane,
    run_id: RunId,
    cursor: Annotated[str | None, Query(max_length=40, description="`next_cursor`")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    kind: Annotated[
        str | None, Query(max_length=100, description="`state`, or a kind of the trainer's events")
    ] = None,
) -> HistoryPage:
    """Lists what happened to a run, newest first: changes of state, and its trainer's events.

    With `kind`, a page may be short or empty although there are earlier ones: see `next_cursor`.
    """
    folder = plane.folder(plane.runs.get(run_id))
    start = HistoryPosition.parse(cursor) if cursor is not None else HistoryPosition()
    entries, rest = history_page(plane.runs, folder, start, limit, kind)
    return HistoryPage(
        run_id=run_id, entries=entries, next_cursor=None if rest is None else str(rest)
    )


@router.get("/runs/{run_id}/checkpoints", response_model=CheckpointsView, responses=NOT_FOUND)
def list_checkpoints(plane: Plane, run_id: RunId) -> CheckpointsView:
    """Lists the complete checkpoints of a run, oldest first."""
    folder = plane.folder(plane.runs.get(run_id))
    return CheckpointsView(run_id=run_id, checkpoints=checkpoints_of(folder))


_A_SPEC = {"$ref": "#/components/schemas/RunSpec"}


@router.get(
    "/runs/{run_id}/spec",
    response_class=PlainTextResponse,
    responses={
        **NOT_FOUND,
        200: {"content": {"application/yaml": {"schema": _A_SPEC}}},
    },
)
def get_spec(plane: Plane, run_id: RunId) -> Response:
    """Returns the resolved spec as YAML, with every default filled in."""
    text = dump_spec(plane.runs.get(run_id).run_spec)
    return Response(text, media_type="application/yaml")
