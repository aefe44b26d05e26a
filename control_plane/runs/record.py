"""A run as the control plane stores it: its row, its states and transitions, reading rows.

queued -> starting -> running <-> waiting_for_teacher
             |           |  (from any of the three: stopping or an end)
             `-> stopping -> stopped | succeeded | failed | interrupted
running, waiting_for_teacher -> starting     its processes were lost, and are started again
stopped, failed, interrupted -> queued
succeeded -> queued    if the resume asks for more steps
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from control_plane.runs.store import deleted_runs, runs
from lectern_common.errors import NotFound
from lectern_common.run_folder import RESUMABLE, RunState, Status
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity


class Wanted(StrEnum):
    """What the user last asked for."""

    RUNNING = "running"
    STOPPED = "stopped"


# States in which a trainer may be alive.
ACTIVE = frozenset(
    {RunState.STARTING, RunState.RUNNING, RunState.WAITING_FOR_TEACHER, RunState.STOPPING}
)
_ENDS = {RunState.SUCCEEDED, RunState.FAILED, RunState.INTERRUPTED}

# Which state may follow which. A state may always follow itself.
NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.STARTING, RunState.STOPPED}),
    RunState.STARTING: frozenset(
        {RunState.RUNNING, RunState.WAITING_FOR_TEACHER, RunState.STOPPING, *_ENDS}
    ),
    RunState.RUNNING: frozenset(
        {RunState.STARTING, RunState.WAITING_FOR_TEACHER, RunState.STOPPING, *_ENDS}
    ),
    RunState.WAITING_FOR_TEACHER: frozenset(
        {RunState.STARTING, RunState.RUNNING, RunState.STOPPING, *_ENDS}
    ),
    RunState.STOPPING: frozenset({RunState.STOPPED, *_ENDS}),
    RunState.STOPPED: frozenset({RunState.QUEUED}),
    RunState.FAILED: frozenset({RunState.QUEUED}),
    RunState.INTERRUPTED: frozenset({RunState.QUEUED}),
    RunState.SUCCEEDED: frozenset({RunState.QUEUED}),
}


@dataclass(frozen=True)
class Run:
    """One row. Times are Unix seconds."""

    seq: int  # order of creation
    id: str
    name: str
    spec: dict[str, Any]  # resolved RunSpec
    created_at: float
    wanted: Wanted
    state: RunState
    since: float  # of `state`
    revision: int  # rises with every change of any run; a list stream continues from it
    reason: str | None = None
    message: str | None = None
    attempt: int = 0  # processes started for it so far
    restarts: int = 0  # automatic ones since the last new checkpoint or the last request
    restart_checkpoint: int | None = None  # newest checkpoint when it was last interrupted
    resume_at: float | None = None  # interrupted: when it is queued again by itself
    slots: list[str] | None = None  # its devices while active, one for each of its processes
    threads: int | None = None  # CPU threads of each of its processes, while active
    launched_at: float | None = None  # of the last attempt, before its process was started
    pid: int | None = None  # of the last attempt; None until recorded
    process_create_time: float | None = None
    stop_sent_at: float | None = None  # when this attempt was sent SIGTERM
    active_since: float | None = None
    active_seconds: float = 0.0  # of earlier attempts
    status: dict[str, Any] | None = None  # last Status seen, of any attempt
    teacher: dict[str, str] | None = None  # the TeacherIdentity it was accepted with

    @cached_property
    def run_spec(self) -> RunSpec:
        return parse_spec(self.spec)

    @property
    def taught_by(self) -> TeacherIdentity | None:
        return None if self.teacher is None else TeacherIdentity(**self.teacher)

    @cached_property
    def last_status(self) -> Status | None:
        if self.status is None:
            return None
        known = {entry.name for entry in fields(Status)}
        values = {name: value for name, value in self.status.items() if name in known}
        return Status(**{**values, "state": RunState(values["state"])})

    @property
    def resumable(self) -> bool:
        """Whether a resume without any change is accepted."""
        return self.state in RESUMABLE

    @property
    def checkpoint_step(self) -> int | None:
        return None if self.last_status is None else self.last_status.checkpoint_step

    @property
    def resumes_itself(self) -> bool:
        return (
            self.state is RunState.INTERRUPTED
            and self.wanted is Wanted.RUNNING
            and self.resume_at is not None
        )

    def elapsed_seconds(self, now: float) -> float:
        """Returns the time that trainers had, over all attempts."""
        current = 0.0 if self.active_since is None else max(0.0, now - self.active_since)
        return self.active_seconds + current


@dataclass(frozen=True)
class DeletedRun:
    """A run that was deleted; `revision` is that of its deletion."""

    id: str
    revision: int


@dataclass(frozen=True)
class Change:
    """A change of a run: its next state with a reason, and columns to set."""

    state: RunState | None = None  # None keeps it
    wanted: Wanted | None = None  # None keeps it
    reason: str | None = None  # None clears
    message: str | None = None  # None clears
    columns: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_columns(cls, run: Run, **columns: Any) -> "Change":
        """Returns a change of only these columns; state, reason and message stay."""
        return cls(reason=run.reason, message=run.message, columns=columns)


def select_runs(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    order: sa.ColumnElement[Any] | None = None,
    limit: int | None = None,
) -> list[Run]:
    """Returns the rows that meet every condition; by default oldest first."""
    query = sa.select(runs).where(*conditions)
    query = query.order_by(runs.c.seq if order is None else order).limit(limit)
    return [
        Run(**{**row, "state": RunState(row["state"]), "wanted": Wanted(row["wanted"])})
        for row in connection.execute(query).mappings()
    ]


def get_run(connection: sa.Connection, run_id: str) -> Run:
    """Returns one row. Raises NotFound."""
    found = select_runs(connection, runs.c.id == run_id)
    if not found:
        raise NotFound(f"no run {run_id}")
    return found[0]


def newest_revision(connection: sa.Connection) -> int:
    """Returns the revision of the last change or deletion of any run; 0 before any."""
    newest = (
        connection.execute(sa.select(sa.func.max(table.c.revision))).scalar() or 0
        for table in (runs, deleted_runs)
    )
    return max(newest)
