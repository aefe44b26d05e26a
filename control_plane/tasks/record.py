"""A task as the control plane stores it: its row, and reading rows.

A task is one execution of a stage. It has the states of a run, and waits for a device as runs do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from control_plane.runs.record import StopAt, Wanted, stored_value
from control_plane.runs.store import tasks
from lectern_common.errors import CorruptData, NotFound
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Handle, Identity
from lectern_common.run.status import RESUMABLE, RunState
from lectern_common.spec.sections import DeviceSpec
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.status import TaskStatus, stored_status

MAX_COUNTED = 20  # different things; a process that counted ever new ones would never fail
# Where the folders of tasks without a run lie, under the runs root.
TASKS_NAME = ".tasks"
# Which field of a stage's request names the run; a stage without one has no run.
SUBJECTS = {"evaluate": "model", "export": "run", "publish": "run"}


@dataclass(frozen=True)
class Task:
    """One row. Times are Unix seconds."""

    seq: int  # order of creation
    id: str
    run_id: str | None  # None: it belongs to no run
    stage: str
    asked: dict[str, Any]  # the fields of the stage's request
    device_kind: Literal["auto", "cpu", "cuda"]
    by: str | None  # who asked for it
    created_at: float
    wanted: Wanted
    state: RunState
    since: float  # of `state`
    revision: int  # among those of runs
    reason: str | None = None
    message: str | None = None
    attempt: int = 0  # processes started for it so far
    restarts: int = 0  # automatic ones since it last got further, or the last request
    # How far it was when it was interrupted: of each thing that it counts, how many were done.
    restart_progress: dict[str, int] | None = None
    resume_at: float | None = None  # interrupted: when it is queued again by itself
    slots: list[str] | None = None  # its device while active
    threads: int | None = None
    launched_at: float | None = None
    handle: Handle | None = None  # of the last attempt; None until recorded
    stop_sent_at: float | None = None
    active_since: float | None = None
    active_seconds: float = 0.0  # of earlier attempts
    status: dict[str, Any] | None = None  # last TaskStatus seen, of any attempt
    queue_position: int | None = None  # queued: 1 is the next to start
    waits_for: str | None = None  # queued: a sentence

    # Of a run only: a task keeps what it has done as it goes.
    stop_at: StopAt | None = None
    # Of runs only, which a person may move in the line.
    priority: int = 0

    @property
    def device(self) -> DeviceSpec:
        return DeviceSpec.model_validate({"kind": self.device_kind})

    @property
    def pid(self) -> int | None:
        """The pid of its process on this machine; None if it has none here."""
        return None if self.handle is None else self.handle.pid

    @property
    def process(self) -> Identity | None:
        """The process of the last attempt; None until recorded."""
        return None if self.handle is None else self.handle.process

    @cached_property
    def last_status(self) -> TaskStatus | None:
        return None if self.status is None else stored_status(self.status)

    @property
    def resumable(self) -> bool:
        return self.state in RESUMABLE

    @property
    def resumes_itself(self) -> bool:
        return (
            self.state is RunState.INTERRUPTED
            and self.wanted is Wanted.RUNNING
            and self.resume_at is not None
        )

    def goes_so_far(self, status: TaskStatus | None) -> tuple[int, dict[str, Any]]:
        """See Job.goes_so_far; a task gets further when more is done of what it counts."""
        if status is None:
            return self.restarts, {}
        reached = dict(self.restart_progress or {})
        counted = status.doing or ""
        is_new = counted not in reached and len(reached) < MAX_COUNTED
        if not is_new and status.done <= reached.get(counted, status.done):
            return self.restarts, {}
        return 0, {"restart_progress": {**reached, counted: status.done}}

    def elapsed_seconds(self, now: float) -> float:
        """Returns the time that processes had, over all attempts."""
        current = 0.0 if self.active_since is None else max(0.0, now - self.active_since)
        return self.active_seconds + current

    def folder(self, runs_root: Path) -> TaskFolder:
        if self.run_id is None:
            return TaskFolder(runs_root / TASKS_NAME / self.id)
        return TaskFolder(RunFolder(runs_root / self.run_id).tasks_path / self.id)


def select_tasks(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]] = (tasks.c.seq,),
    limit: int | None = None,
) -> list[Task]:
    """Returns the rows that meet every condition; by default oldest first."""
    query = sa.select(tasks).where(*conditions).order_by(*order).limit(limit)
    return [_task_of(row) for row in connection.execute(query).mappings()]


def get_task(connection: sa.Connection, task_id: str) -> Task:
    """Returns one row. Raises NotFound."""
    found = select_tasks(connection, tasks.c.id == task_id)
    if not found:
        raise NotFound(f"no task {task_id}")
    return found[0]


def tasks_since(connection: sa.Connection, revision: int, limit: int) -> list[Task]:
    """Returns the first tasks whose last change came after a revision, in that order."""
    changed = tasks.c.revision > revision
    return select_tasks(connection, changed, order=(tasks.c.revision,), limit=limit)


def _task_of(row: sa.RowMapping) -> Task:
    """Returns the task of a row, whatever it holds: a damaged one must not hide the others."""
    values = {column.name: stored_value(column, row[column.name]) for column in tasks.columns}
    device = values.pop("device")
    values["device_kind"] = device if device in ("auto", "cuda") else "cpu"
    values["asked"] = row["asked"] if isinstance(row["asked"], dict) else {}
    slots = row["slots"]
    values["handle"] = Handle.of(values["handle"])
    is_list = isinstance(slots, list) and all(isinstance(one, str) for one in slots)
    values["slots"] = slots if is_list else None
    values["restart_progress"] = _counts(row["restart_progress"])
    values["wanted"] = row["wanted"] if row["wanted"] in [*Wanted] else Wanted.STOPPED
    values["wanted"] = Wanted(values["wanted"])
    try:
        values["state"] = RunState(row["state"])
    except ValueError:
        message = f"the database has it in the unknown state {str(row['state'])[:40]!r}; delete it"
        values |= {"reason": CorruptData.reason, "message": message, "state": RunState.FAILED}
    return Task(**values)


def _counts(value: Any) -> dict[str, int] | None:
    """Returns a stored `restart_progress`; None for one that is damaged."""
    if isinstance(value, dict) and all(type(one) is int for one in value.values()):
        return value
    return None
