"""Routes that create, check, list, show, stop and delete sweeps."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from control_plane.api.openapi import SWEEP
from control_plane.api.problems import CONFLICT, PROBLEM, TEACHER_AWAY
from control_plane.api.requests import Plane, checked_key, json_body, json_object
from control_plane.plane import ControlPlane
from control_plane.reading.series.extremes import Extremes
from control_plane.runs.record import Run
from control_plane.sweeps import checks
from control_plane.sweeps.shared_work import shared_work
from control_plane.sweeps.store import SweepRecord
from control_plane.sweeps.table import table_of
from control_plane.sweeps.views import SweepCheckView, SweepsPage, SweepSummary, SweepView
from control_plane.teachers.dry_run import free_disk
from lectern_common.spec.run_spec import NAME_PATTERN
from lectern_common.spec.sweep import parse_sweep

SweepId = Annotated[str, Path(pattern=NAME_PATTERN, description="As returned by POST /sweeps.")]
_NO_SWEEP: dict[int | str, dict[str, Any]] = {404: {**PROBLEM, "description": "No such sweep"}}
_BODY = json_body({"$ref": f"#/components/schemas/{SWEEP}"}, required=True)

router = APIRouter()


@router.post(
    "/sweeps",
    status_code=202,
    response_model=SweepView,
    responses={
        **TEACHER_AWAY,
        202: {"headers": {"Location": {"schema": {"type": "string"}}}},
    },
    openapi_extra=_BODY,
)
async def create_sweep(
    request: Request,
    response: Response,
    plane: Plane,
    idempotency_key: Annotated[
        str | None,
        Header(description="Repeating a request with the same key and body creates no second one."),
    ] = None,
) -> SweepView:
    """Checks every combination of a sweep, and queues a run for each: all of them, or none."""
    key = checked_key(idempotency_key)
    sweep = await asyncio.to_thread(parse_sweep, await json_object(request))
    async with plane.key_lock(None if key is None else f"sweep {key}"):
        made = await asyncio.to_thread(plane.sweeps.made_by_key, key, sweep)
        if made is None:
            await asyncio.to_thread(plane.commands.require_room, len(sweep.specs))
            ready = await checks.require_startable(sweep, plane.checks)
            made = await asyncio.to_thread(plane.sweeps.create, sweep, ready, key, plane.has_folder)
    response.headers["Location"] = f"/sweeps/{made.id}"
    return await _view(plane, made.id)


@router.post("/sweeps/check", response_model=SweepCheckView, openapi_extra=_BODY)
async def check_sweep(request: Request, plane: Plane) -> SweepCheckView:
    """Makes every check that POST /sweeps makes, estimates all runs together; creates nothing."""
    sweep = await asyncio.to_thread(parse_sweep, await json_object(request))
    free = await asyncio.to_thread(free_disk, plane.roots.runs)
    return await checks.checked(sweep, plane.checks, plane.devices.max_running, free)


@router.get("/sweeps", response_model=SweepsPage)
def list_sweeps(
    plane: Plane,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor`")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> SweepsPage:
    """Lists sweeps, newest first, with how many of their runs are in which state."""
    found, states, total = plane.sweeps.page(cursor, limit + 1)
    page, rest = found[:limit], found[limit:]
    return SweepsPage(
        sweeps=[SweepSummary(**_fields(one), states=states[one.id]) for one in page],
        total=total,
        next_cursor=str(page[-1].seq) if rest else None,
    )


@router.get("/sweeps/{sweep_id}", response_model=SweepView, responses=_NO_SWEEP)
async def get_sweep(plane: Plane, sweep_id: SweepId) -> SweepView:
    """Returns the table of a sweep: its runs, mean and spread over seeds, and the best."""
    return await _view(plane, sweep_id)


@router.post(
    "/sweeps/{sweep_id}/stop", status_code=202, response_model=SweepView, responses=_NO_SWEEP
)
async def stop_sweep(plane: Plane, sweep_id: SweepId) -> SweepView:
    """Asks all runs of a sweep to stop that are active or queued. Repeating it changes nothing."""
    await asyncio.to_thread(plane.sweeps.stop, sweep_id)
    return await _view(plane, sweep_id)


@router.delete(
    "/sweeps/{sweep_id}",
    status_code=204,
    responses={
        **_NO_SWEEP,
        409: {**CONFLICT[409], "description": "A run of it is active, queued, or resumes"},
    },
)
def remove_sweep(plane: Plane, sweep_id: SweepId) -> None:
    """Deletes the record of a sweep whose runs are at rest; they stay, with their `group`."""
    plane.sweeps.delete(sweep_id)


async def _view(plane: ControlPlane, sweep_id: str) -> SweepView:
    record, runs = await asyncio.to_thread(plane.sweeps.get, sweep_id)

    def reached(run: Run) -> Extremes | None:
        return plane.reached.of(plane.folder(run), record.metric, record.goal)

    teacher, table = await asyncio.gather(
        shared_work(runs, plane.teachers),
        asyncio.to_thread(table_of, record, runs, reached),
    )
    return SweepView(
        **_fields(record),
        runs=table.runs,
        groups=table.groups,
        best=table.best,
        best_group=table.best_group,
        teacher=teacher,
    )


def _fields(record: SweepRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "group": record.id,
        "created_at": record.created_at,
        "metric": record.metric,
        "goal": record.goal,
        "num_runs": record.num_runs,
        "settings": record.settings,
    }
