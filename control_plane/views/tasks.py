"""A task as every list, page and stream shows it."""

from typing import Any, Literal

from control_plane.runs.record import Wanted
from control_plane.tasks.record import Task
from control_plane.views.run_fields import waiting_message
from control_plane.views.view import View
from lectern_common.run.status import RunState

StageName = Literal["evaluate", "export", "publish", "precompute"]


class TaskView(View):
    """One task as it is now: one execution of a stage. Times are Unix seconds."""

    id: str
    run_id: str | None
    """null if it belongs to no run."""
    stage: str
    """evaluate, export, publish or precompute."""
    asked: dict[str, Any]
    """The fields of the stage's request."""
    by: str | None
    """Who asked for it: client, address and token."""
    created_at: float
    seq: int
    """Its place among all tasks ever accepted."""
    revision: int
    """Rises with every change of any run or task."""
    state: RunState
    """As a run's."""
    wanted: Wanted
    """What the user last asked for."""
    since: float
    """When it entered this state."""
    reason: str | None
    """Machine-readable word for why it is in this state."""
    message: str | None
    """The reason as a sentence."""
    field: str | None
    """Of the request, if that is what is wrong."""
    attempt: int
    """Processes started for it so far."""
    restarts: int
    """Automatic ones since the last request."""
    resumable: bool
    """Whether a resume is accepted: it then goes on with what it has done so far."""
    resumes_at: float | None
    """When it goes on by itself; null if it does not."""
    queue_position: int | None
    """1 is the next to start, of runs and tasks; null unless queued."""
    slots: list[str]
    """Its device while it is active: `cuda:0` or `cpu`."""
    threads: int | None
    doing: str | None
    """What is counted, such as `problems`."""
    done: int
    of: int
    per_second: float | None
    """How fast it goes lately; null unless it is running."""
    eta_seconds: float | None
    """Until all of `of` are done, at that rate."""
    said: list[str]
    """The last sentences that the stage has said."""
    elapsed_seconds: float
    """Time with a process, over all attempts."""
    heartbeat: float | None
    """When its process last reported."""


class TaskDetail(TaskView):
    """A task with its result."""

    result: dict[str, Any] | None
    """What the stage returned; null before it succeeded, or if it cannot be read."""
    markdown: str | None
    """The same for people, of stages that write such a text."""
    folder: str
    """Path on the control plane's machine."""


class TasksView(View):
    """Tasks, newest first."""

    tasks: list[TaskView]
    next_cursor: str | None
    """Pass as `cursor` for the next page; null on the last page."""
    revision: int
    """Pass as `after` to /events, to stream what changes after this answer."""


def task_view(task: Task, now: float) -> TaskView:
    """Returns the view of a task."""
    return TaskView(**task_fields(task, now))


def task_fields(task: Task, now: float) -> dict[str, Any]:
    """Returns the values of a task's view."""
    status = task.last_status
    is_running = status is not None and task.state is RunState.RUNNING
    return {
        "id": task.id,
        "run_id": task.run_id,
        "stage": task.stage,
        "asked": task.asked,
        "by": task.by,
        "created_at": task.created_at,
        "seq": task.seq,
        "revision": task.revision,
        "state": task.state,
        "wanted": task.wanted,
        "since": task.since,
        "reason": task.reason,
        "message": waiting_message(task) or task.message,
        "field": status.field if status and task.state is RunState.FAILED else None,
        "attempt": task.attempt,
        "restarts": task.restarts,
        "resumable": task.resumable,
        "resumes_at": task.resume_at if task.resumes_itself else None,
        "queue_position": task.queue_position,
        "slots": task.slots or [],
        "threads": task.threads,
        "doing": status.doing if status else None,
        "done": status.done if status else 0,
        "of": status.of if status else 0,
        "per_second": status.per_second if status and is_running else None,
        "eta_seconds": status.seconds_left if status and is_running else None,
        "said": list(status.said) if status else [],
        "elapsed_seconds": task.elapsed_seconds(now),
        "heartbeat": status.heartbeat if status else None,
    }
