"""Routes that fork, stop and resume runs."""

import asyncio
import hashlib
import json
from contextlib import ExitStack

from fastapi import APIRouter, Request, Response

from control_plane.api.openapi import CHANGES
from control_plane.api.problems import ACCEPTED, CONFLICT, NO_SPACE, TEACHER_AWAY
from control_plane.api.requests import (
    ForkBody,
    IdempotencyKey,
    Plane,
    RunId,
    StopBody,
    checked_key,
    json_body,
    json_model,
    optional_json_object,
    with_changes,
    with_labels,
)
from control_plane.plane import ControlPlane
from control_plane.runs.decisions import require_goes_on
from control_plane.runs.forking import complete, created, taken
from control_plane.runs.record import Run, StopAt, require_not_removed
from control_plane.views.runs import RunView
from lectern_common.errors import Conflict
from lectern_common.spec.forking import forked_spec
from lectern_common.spec.run_spec import LABELS, RESUME_MAY_CHANGE, RunSpec

router = APIRouter()


@router.post(
    "/runs/{run_id}/fork",
    status_code=202,
    response_model=RunView,
    responses={**CONFLICT, **TEACHER_AWAY, **NO_SPACE, **ACCEPTED},
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
