"""Routes that create, list, show, stop, resume and delete runs.

Each function checks its input, calls one part of the plane, and answers. Those that only read are
plain functions: FastAPI runs them in threads, off the event loop.
"""

import asyncio
import hashlib
import json
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from control_plane.api.openapi import CHANGES
from control_plane.api.problems import CONFLICT, NO_SPACE, NOT_FOUND, TEACHER_AWAY
from control_plane.api.requests import (
    ForkBody,
    Plane,
    RunId,
    StopBody,
    checked_key,
    json_body,
    json_model,
    json_object,
    optional_json_object,
    with_changes,
    with_labels,
)
from control_plane.plane import ControlPlane
from control_plane.reading.checkpoints import checkpoints_of
from control_plane.reading.history import HistoryPosition, history_page, recent_history
from control_plane.runs.decisions import require_goes_on
from control_plane.runs.forking import complete, created, taken
from control_plane.runs.keeping.deletion import delete_run
from control_plane.runs.keeping.pruning import Criteria, prune
from control_plane.runs.record import Run, StopAt, require_not_removed
from control_plane.runs.search import Search
from control_plane.teachers.dry_run import checked_spec, free_disk
from control_plane.views.checks import SpecCheckView
from control_plane.views.keeping import AdoptedView, PrunedView, adopted_view, pruned_view
from control_plane.views.readings import CheckpointsView
from control_plane.views.run_fields import run_detail
from control_plane.views.runs import HistoryPage, RunDetail, RunsPage, RunView
from lectern_common.errors import Conflict
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.forking import forked_spec
from lectern_common.spec.load import dump_spec, parse_spec
from lectern_common.spec.run_spec import LABELS, NAME_PATTERN, RESUME_MAY_CHANGE, RunSpec, Tag

IdempotencyKey = Annotated[
    str | None,
    Header(description="Repeating a request with the same key and body creates no second run."),
]
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"schema": {"type": "string"}}}}
}

router = APIRouter()


@router.post(
    "/runs",
    status_code=202,
    response_model=RunView,
    responses={
        **TEACHER_AWAY,
        **_ACCEPTED,
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


@router.post(
    "/runs/{run_id}/fork",
    status_code=202,
    response_model=RunView,
    responses={**CONFLICT, **TEACHER_AWAY, **NO_SPACE, **_ACCEPTED},
    openapi_extra=json_body(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "checkpoint": {
                    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
                    "description": "Its step; null means the newest.",
                },
                "changes": {
                    "$ref": f"#/components/schemas/{CHANGES}",
                    "description": "The part of the run's spec that differs. Of `student` only "
                    "`dtype` may; `name` becomes the run's with `-fork`.",
                },
            },
        },
        required=False,
    ),
)
async def fork_run(
    request: Request,
    response: Response,
    plane: Plane,
    run_id: RunId,
    idempotency_key: IdempotencyKey = None,
) -> RunView:
    """Queues a new run that goes on from a checkpoint of another one, with some settings changed.

    The other run may be in any state. The answer comes once every byte of the checkpoint was read
    and compared, which takes a second or two a gigabyte.
    """
    key = checked_key(idempotency_key)
    body = await json_model(request, ForkBody, required=False)
    asked = json.dumps({"fork": run_id, **body.model_dump()}, sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()
    async with plane.key_lock(key), plane.forks:
        run = await asyncio.to_thread(plane.runs.made_by_key, key, digest)
        if run is None:
            source = await asyncio.to_thread(plane.runs.get, run_id)
            await asyncio.to_thread(plane.commands.require_room)
            run = await _forked(plane, source, body, key, digest)
    response.headers["Location"] = f"/runs/{run.id}"
    return await asyncio.to_thread(plane.run_view, run)


async def _forked(
    plane: ControlPlane, source: Run, body: ForkBody, key: str | None, digest: str
) -> Run:
    """Returns the new run. All file work is done in threads."""
    with_checkpoint = ExitStack()
    try:
        checkpoint = await asyncio.to_thread(
            with_checkpoint.enter_context, taken(plane.folder(source), body.checkpoint)
        )
        spec = forked_spec(source.run_spec, body.changes, checkpoint.source.step)
        same_rows = checkpoint.keeps_rows(spec)
        spec = await plane.checks.resolved(spec, checkpoint.begun if same_rows else None)
        packs_chats = checkpoint.packs_chats or not same_rows
        teacher = await plane.checks.require_startable(spec, packs_chats=packs_chats)

        def make() -> Run:
            complete(checkpoint, spec, teacher, packs_chats=packs_chats)
            return created(
                checkpoint,
                lambda fork: plane.commands.create(
                    spec, key, digest, plane.has_folder, teacher, fork
                ),
                plane.runs,
            )

        return await asyncio.to_thread(make)
    finally:
        await asyncio.to_thread(with_checkpoint.close)


@router.post(
    "/runs/{run_id}/stop",
    status_code=202,
    response_model=RunView,
    responses=CONFLICT,
    openapi_extra=json_body(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "at": {
                    "enum": list(StopAt),
                    "default": StopAt.NOW,
                    "description": "`checkpoint`: after the next checkpoint that is due anyway; "
                    "without one before its last step, the run succeeds.",
                }
            },
        },
        required=False,
    ),
)
async def stop_run(request: Request, plane: Plane, run_id: RunId) -> RunView:
    """Asks a run to write a checkpoint and stop, now or at its next one.

    Repeating the request changes nothing. `now` after `checkpoint` stops it now. A run without a
    trainer stops at once.
    """
    body = await json_model(request, StopBody, required=False)
    run = await asyncio.to_thread(plane.commands.request_stop, run_id, body.at)
    return await asyncio.to_thread(plane.run_view, run)


@router.post(
    "/runs/{run_id}/resume",
    status_code=202,
    response_model=RunView,
    responses={**CONFLICT, **TEACHER_AWAY},
    openapi_extra=json_body(
        {
            "$ref": f"#/components/schemas/{CHANGES}",
            "description": "The part of a RunSpec that changes, such as "
            '{"schedule": {"steps": 2000}}. A resume may change only these: x-may-change.',
            "x-may-change": list(RESUME_MAY_CHANGE),
        },
        required=False,
    ),
)
async def resume_run(request: Request, plane: Plane, run_id: RunId) -> RunView:
    """Queues a run that is not active, to resume from its newest checkpoint.

    A run that has succeeded needs changes that give it more to do: `schedule.steps` above the steps
    made, and another `evaluation.patience` if early stopping ended it.
    """
    changes = await optional_json_object(request)
    before = await asyncio.to_thread(plane.runs.get, run_id)
    spec = with_changes(before.run_spec, changes)
    require_goes_on(before, spec)
    await asyncio.to_thread(require_not_removed, before, plane.folder(before))
    packs_chats = await asyncio.to_thread(lambda: plane.folder(before).packs_chats)
    await plane.checks.require_startable(spec, before.taught_by, packs_chats=packs_chats)

    labels = before.run_spec.model_dump(mode="json", include=set(LABELS))

    def new_spec(present: RunSpec) -> RunSpec:
        if with_labels(present, labels) != before.run_spec:
            raise Conflict(f"run {run_id} was resumed by another request meanwhile")
        return with_changes(present, changes)

    run = await asyncio.to_thread(plane.commands.request_resume, run_id, new_spec)
    return await asyncio.to_thread(plane.run_view, run)


@router.delete("/runs/{run_id}", status_code=204, responses=CONFLICT)
def remove_run(plane: Plane, run_id: RunId) -> None:
    """Deletes a run that is not active, with its whole folder: checkpoints, metrics, export."""
    delete_run(plane.commands, RunFolder(plane.roots.runs / run_id))


@router.post(
    "/runs/prune",
    response_model=PrunedView,
    openapi_extra=json_body(Criteria.model_json_schema(), required=True),
)
async def prune_runs(request: Request, plane: Plane) -> PrunedView:
    """Deletes the runs at rest that meet criteria; with `dry_run`, the default, only lists them.

    At least one criterion is needed. A run that resumes by itself is never deleted.
    """
    criteria = await json_model(request, Criteria)
    pruned = await asyncio.to_thread(
        prune, plane.runs, plane.commands, plane.roots.runs, criteria, plane.clock()
    )
    return pruned_view(pruned)


class Adopt(BaseModel):
    """Which folders to adopt."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    run_ids: (
        Annotated[list[Annotated[str, Field(max_length=255)]], Field(max_length=10_000)] | None
    ) = None
    """null: all without a row, but for those of deleted runs, which must be named."""


@router.post(
    "/runs/adopt",
    response_model=AdoptedView,
    openapi_extra=json_body(Adopt.model_json_schema(), required=True),
)
async def adopt_runs(request: Request, plane: Plane) -> AdoptedView:
    """Makes rows of run folders that the database does not know, as after one was restored.

    Repeating the request changes nothing. A damaged folder is refused and not touched.
    """
    asked = await json_model(request, Adopt)
    return adopted_view(await asyncio.to_thread(plane.adoption.adopt, asked.run_ids))


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
