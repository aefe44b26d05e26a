"""Routes that create, list, show, stop, resume and delete tasks."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse

from control_plane.api.openapi import TASK_BODIES
from control_plane.api.problems import ACCEPTED, NOT_FOUND, PROBLEM
from control_plane.api.requests import Plane, RunId, checked_key, json_body, json_object
from control_plane.plane import ControlPlane
from control_plane.reading.logs.tail import tail
from control_plane.tasks.keeping import delete_task
from control_plane.tasks.record import SUBJECTS, Task
from control_plane.views.tasks import (
    StageName,
    TaskDetail,
    TasksView,
    TaskView,
    task_fields,
    task_view,
)
from lectern_common.errors import CorruptData, InvalidSpec
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import NAME_PATTERN
from lectern_common.stages.evaluate import EvaluateRequest, require_harmless
from lectern_common.stages.folder import MARKDOWN
from lectern_common.stages.requests import parse_request

TaskId = Annotated[str, Path(pattern=NAME_PATTERN, description="As returned when it was created.")]
_NO_TASK: dict[int | str, dict[str, Any]] = {404: {**PROBLEM, "description": "No such task"}}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    **_NO_TASK,
    409: {**PROBLEM, "description": "The task's state does not allow it; `detail` says why"},
}

_F = TypeVar("_F", bound=Callable[..., Any])

router = APIRouter()


@dataclass(frozen=True)
class _Asked:
    """A request for a new task."""

    plane: ControlPlane
    response: Response
    body: dict[str, Any]
    key: str | None

    async def task(self, stage: str, run_id: str | None) -> TaskView:
        """Checks the fields of the request, all but the run, and queues the task."""
        asked = self.body
        subject = SUBJECTS.get(stage)
        if subject is not None:
            for name in (subject, "stage"):
                if name in asked:
                    raise InvalidSpec([(name, "is what the path says; leave it out")])
            asked = {**asked, subject: run_id}
        request = await asyncio.to_thread(parse_request, stage, asked)
        if isinstance(request, EvaluateRequest):
            require_harmless(request)
        self.plane.checks.require_task_sends_known(request)
        device = getattr(request, "device", "cpu")
        if device == "cuda" and not self.plane.devices.cuda:
            why = "there is no CUDA device on this machine; set auto or cpu"
            raise InvalidSpec([("device", why)])
        values = request.model_dump(mode="json", exclude={"stage"})
        same = json.dumps([stage, run_id, values], sort_keys=True)

        def create() -> Task:
            return self.plane.task_commands.create(
                stage,
                values,
                run_id,
                device=device,
                key=self.key,
                request_sha256=hashlib.sha256(same.encode()).hexdigest(),
            )

        task = await asyncio.to_thread(create)
        self.response.headers["Location"] = f"/tasks/{task.id}"
        return task_view(task, self.plane.clock())


async def _asked(
    request: Request,
    response: Response,
    plane: Plane,
    idempotency_key: Annotated[
        str | None,
        Header(description="Repeating a request with the same key and body makes no second task."),
    ] = None,
) -> _Asked:
    key = checked_key(idempotency_key)
    return _Asked(plane, response, await json_object(request), key)


Asked = Annotated[_Asked, Depends(_asked)]


def _body(stage: str) -> dict[str, Any]:
    return json_body({"$ref": f"#/components/schemas/{TASK_BODIES[stage]}"}, required=True)


def _creates(path: str, stage: str) -> Callable[[_F], _F]:
    """Returns the decorator of a route that queues a task of this stage."""
    missing = NOT_FOUND if stage in SUBJECTS else {}
    return router.post(
        path,
        status_code=202,
        response_model=TaskView,
        responses={**missing, **ACCEPTED},
        openapi_extra=_body(stage),
    )


@_creates("/runs/{run_id}/evaluations", "evaluate")
async def create_evaluation(asked: Asked, run_id: RunId) -> TaskView:
    """Queues an evaluation of a run: of its export, or of a checkpoint."""
    return await asked.task("evaluate", run_id)


@_creates("/runs/{run_id}/exports", "export")
async def create_export(asked: Asked, run_id: RunId) -> TaskView:
    """Queues an export of a run's student, in a format for other programs."""
    return await asked.task("export", run_id)


@_creates("/runs/{run_id}/publications", "publish")
async def create_publication(asked: Asked, run_id: RunId) -> TaskView:
    """Queues the plan of a model repository of a run's student, or its upload."""
    return await asked.task("publish", run_id)


@_creates("/records", "precompute")
async def create_record(asked: Asked) -> TaskView:
    """Queues a recording: the teacher of a spec, run once over its data."""
    return await asked.task("precompute", None)


@router.get("/runs/{run_id}/tasks", response_model=TasksView, responses=NOT_FOUND)
def list_tasks_of_run(
    plane: Plane,
    run_id: RunId,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor`")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> TasksView:
    """Lists the tasks of a run, newest first."""
    plane.runs.get(run_id)
    return _page(plane, limit, run_id=run_id, before_seq=cursor)


@router.get("/tasks", response_model=TasksView)
def list_tasks(
    plane: Plane,
    cursor: Annotated[int | None, Query(ge=1, le=2**62, description="`next_cursor`")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[
        list[RunState] | None, Query(description="Only tasks in these states.")
    ] = None,
    stage: Annotated[StageName | None, Query(description="Only tasks of this stage.")] = None,
) -> TasksView:
    """Lists tasks, newest first."""
    return _page(plane, limit, stage=stage, states=state or (), before_seq=cursor)


@router.get("/tasks/{task_id}", response_model=TaskDetail, responses=_NO_TASK)
def get_task(plane: Plane, task_id: TaskId) -> TaskDetail:
    """Returns one task, with its result once it has succeeded."""
    task = plane.tasks.get(task_id)
    folder = task.folder(plane.roots.runs)
    result = None
    if task.state is RunState.SUCCEEDED:
        with suppress(CorruptData):
            result = folder.read_result()
    markdown = None if result is None else result.pop(MARKDOWN, None)
    return TaskDetail(
        **task_fields(task, plane.clock()),
        result=result,
        markdown=markdown,
        folder=str(folder.path),
    )


@router.get(
    "/tasks/{task_id}/log",
    response_class=PlainTextResponse,
    responses={**_NO_TASK, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def get_log(
    plane: Plane,
    task_id: TaskId,
    tail_lines: Annotated[int, Query(alias="tail", ge=1, le=5000)] = 200,
) -> PlainTextResponse:
    """Returns the last lines of a task's log, without escapes, with over-long lines cut."""
    lines = tail(plane.tasks.get(task_id).folder(plane.roots.runs).log_path, tail_lines)
    return PlainTextResponse("".join(f"{line}\n" for line in lines))


@router.post("/tasks/{task_id}/stop", status_code=202, response_model=TaskView, responses=_CONFLICT)
def stop_task(plane: Plane, task_id: TaskId) -> TaskView:
    """Asks a task to stop; what it has done so far is kept. Repeating it changes nothing."""
    return task_view(plane.task_commands.request_stop(task_id), plane.clock())


@router.post(
    "/tasks/{task_id}/resume", status_code=202, response_model=TaskView, responses=_CONFLICT
)
def resume_task(plane: Plane, task_id: TaskId) -> TaskView:
    """Queues a task that has stopped, failed or was interrupted; it goes on where it was."""
    return task_view(plane.task_commands.request_resume(task_id), plane.clock())


@router.delete("/tasks/{task_id}", status_code=204, responses=_CONFLICT)
def remove_task(plane: Plane, task_id: TaskId) -> None:
    """Deletes a task at rest with its folder: result, log and what it has kept."""
    delete_task(plane.task_commands, plane.tasks.get(task_id), plane.roots.runs)


def _page(plane: ControlPlane, limit: int, **conditions: Any) -> TasksView:
    found, revision = plane.tasks.page(limit=limit + 1, **conditions)
    page, rest = found[:limit], found[limit:]
    return TasksView(
        tasks=[task_view(task, plane.clock()) for task in page],
        next_cursor=str(page[-1].seq) if rest else None,
        revision=revision,
    )
