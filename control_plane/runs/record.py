"""A run as the control plane stores it: its row, its states and transitions, reading rows.

queued -> starting -> running <-> waiting_for_teacher
             |           |  (from any of the three: stopping or an end)
             `-> stopping -> stopped | succeeded | failed | interrupted
running, waiting_for_teacher -> starting     its processes were lost, and are started again
starting, running, waiting_for_teacher -> stopped     after the checkpoint at which it was to stop
stopped, failed, interrupted -> queued
succeeded -> queued    if the resume asks for more steps
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

import sqlalchemy as sa
from pydantic import ValidationError

from control_plane.runs.store import alerts, deleted_runs, history, runs, sound_json, tasks
from lectern_common.errors import CorruptData, FolderMissing, InvalidSpec, NotFound
from lectern_common.json_lines import MAX_COUNT
from lectern_common.run.folder import ForkedFrom, RunFolder
from lectern_common.run.processes import Handle, Identity
from lectern_common.run.status import RESUMABLE, RunState, Status, salvaged_status
from lectern_common.run.untrusted import cut
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import DeviceSpec
from lectern_common.stages.status import TaskStatus
from lectern_common.teacher.identity import TeacherIdentity

JobStatus = Status | TaskStatus


class Wanted(StrEnum):
    """What the user last asked for."""

    RUNNING = "running"
    STOPPED = "stopped"


class StopAt(StrEnum):
    """When a run that is asked to stop does so."""

    NOW = "now"  # it writes a checkpoint
    CHECKPOINT = "checkpoint"  # after the next checkpoint that is due anyway


# States in which a trainer may be alive.
ACTIVE = frozenset(
    {RunState.STARTING, RunState.RUNNING, RunState.WAITING_FOR_TEACHER, RunState.STOPPING}
)
TRAINS = ACTIVE - {RunState.STARTING}
# Those of them in which it should make progress.
MOVING = ACTIVE - {RunState.WAITING_FOR_TEACHER}
# Reasons of an active run that the control plane gave, not its trainer: the next good status of the
# trainer clears them.
STATUS_UNREADABLE = "status_unreadable"
FOLDER_MISSING = FolderMissing.reason
INTERNAL = "internal"
TROUBLES = frozenset({STATUS_UNREADABLE, FOLDER_MISSING, INTERNAL})
STOP_ASKED = "stop_at_checkpoint"  # reason of a run in its history, once it was asked for
FORKED = "forked"  # reason of a new run that was made of another one's checkpoint
_ENDS = {RunState.SUCCEEDED, RunState.FAILED, RunState.INTERRUPTED}
_STOPS = {RunState.STOPPING, RunState.STOPPED}

# Which state may follow which. A state may always follow itself.
NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.STARTING, RunState.STOPPED}),
    RunState.STARTING: frozenset({RunState.RUNNING, RunState.WAITING_FOR_TEACHER, *_STOPS, *_ENDS}),
    RunState.RUNNING: frozenset({RunState.STARTING, RunState.WAITING_FOR_TEACHER, *_STOPS, *_ENDS}),
    RunState.WAITING_FOR_TEACHER: frozenset({RunState.STARTING, RunState.RUNNING, *_STOPS, *_ENDS}),
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
    handle: Handle | None = None  # of the last attempt; None until recorded
    process_create_time: float | None = None  # only in rows of older releases
    stop_sent_at: float | None = None  # when this attempt was sent SIGTERM
    active_since: float | None = None
    active_seconds: float = 0.0  # of earlier attempts
    status: dict[str, Any] | None = None  # last Status seen, of any attempt
    teacher: dict[str, str] | None = None  # the TeacherIdentity it was accepted with
    queue_position: int | None = None  # queued: 1 is the next to start
    waits_for: str | None = None  # queued: a sentence; interrupted: see runs/healing.py
    stale_since: float | None = None  # active: the last heartbeat, if there has been none since
    stalled_since: float | None = None  # active: the last progress, if it makes none
    heals: int = 0  # times it went on after an end that heals, since the last request
    disk_bytes: int | None = None  # of its folder; None until measured
    stop_at: StopAt | None = None  # CHECKPOINT: asked to stop at its next one; None: not asked
    forked_from: ForkedFrom | None = None  # the checkpoint of another run that it began with
    overdue_since: float | None = None  # waits or is silent so long that an alert was made

    @property
    def run_id(self) -> str:
        return self.id

    @cached_property
    def run_spec(self) -> RunSpec:
        return parse_spec(self.spec)

    @property
    def taught_by(self) -> TeacherIdentity | None:
        """The teacher that it was accepted with. Raises CorruptData if its row is damaged."""
        try:
            return None if self.teacher is None else TeacherIdentity(**self.teacher)
        except TypeError:
            raise CorruptData(f"the row of run {self.id} does not name its teacher") from None

    @property
    def pid(self) -> int | None:
        """The pid of its process on this machine; None if it has none here."""
        return None if self.handle is None else self.handle.pid

    @property
    def process(self) -> Identity | None:
        """The process of the last attempt; None until recorded, and in rows of older releases."""
        return None if self.handle is None else self.handle.process

    @cached_property
    def last_status(self) -> Status | None:
        return salvaged_status(self.status)

    @property
    def trains(self) -> bool:
        """Whether it has a trainer that makes steps, or waits for its teacher to make more."""
        return self.state in TRAINS

    @property
    def has_progress(self) -> bool:
        """Whether its folder holds steps or checkpoints that cannot be made again for nothing."""
        status = self.last_status
        return status is not None and (status.step > 0 or status.checkpoint_step is not None)

    @property
    def resumable(self) -> bool:
        """Whether a resume without any change is accepted."""
        gone = self.reason == FOLDER_MISSING and self.has_progress
        return self.state in RESUMABLE and not gone

    @property
    def checkpoint_step(self) -> int | None:
        if self.last_status is not None:
            return self.last_status.checkpoint_step
        return None if self.forked_from is None else self.forked_from.step

    @property
    def resumes_itself(self) -> bool:
        return (
            self.state is RunState.INTERRUPTED
            and self.wanted is Wanted.RUNNING
            and (self.resume_at is not None or self.waits_for is not None)
        )

    @property
    def resumes_when(self) -> str | None:
        """What has to come true before it resumes by itself; None if only time has to pass."""
        return self.waits_for if self.resumes_itself else None

    def goes_so_far(self, status: Status | None) -> tuple[int, dict[str, Any]]:
        """See Job.goes_so_far; a run gets further with each new checkpoint."""
        reached = (status.checkpoint_step if status else None) or self.restart_checkpoint
        goes = self.restarts if reached == self.restart_checkpoint else 0
        return goes, {"restart_checkpoint": reached}

    def elapsed_seconds(self, now: float) -> float:
        """Returns the time that trainers had, over all attempts."""
        current = 0.0 if self.active_since is None else max(0.0, now - self.active_since)
        return self.active_seconds + current


@dataclass(frozen=True)
class InLine:
    """What a queued run's place and devices depend on; other columns of a long queue are not read.

    Attributes:
        needs: `device` of its spec, or what is wrong with that.
    """

    id: str
    name: str
    created_at: float
    queue_position: int | None
    waits_for: str | None
    needs: DeviceSpec | InvalidSpec
    priority: int = 0

    @property
    def device(self) -> DeviceSpec:
        """The devices that it waits for. Raises InvalidSpec."""
        if isinstance(self.needs, InvalidSpec):
            raise self.needs
        return self.needs


_SPEC = sound_json(runs.c.spec)
# Of a row whose spec is of an earlier release, or damaged: the default.
PRIORITY: sa.ColumnElement[int] = sa.case(
    (
        sa.func.json_type(_SPEC, "$.priority") == "integer",
        sa.func.json_extract(_SPEC, "$.priority"),
    ),
    else_=0,
)
# Queued runs in the order in which they start.
IN_LINE = (PRIORITY.desc(), runs.c.seq)


@dataclass(frozen=True)
class DeletedRun:
    """A run or task that was deleted; `revision` is that of its deletion."""

    id: str
    revision: int


class Job(Protocol):
    """What runs and tasks have in common: a process that is started, watched and stopped."""

    @property
    def id(self) -> str: ...
    @property
    def run_id(self) -> str | None: ...
    @property
    def state(self) -> RunState: ...
    @property
    def wanted(self) -> Wanted: ...
    @property
    def since(self) -> float: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def attempt(self) -> int: ...
    @property
    def resume_at(self) -> float | None: ...
    @property
    def slots(self) -> list[str] | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def handle(self) -> Handle | None: ...
    @property
    def waits_for(self) -> str | None: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def process(self) -> Identity | None: ...
    @property
    def stop_sent_at(self) -> float | None: ...
    @property
    def stop_at(self) -> StopAt | None: ...
    @property
    def active_since(self) -> float | None: ...
    @property
    def last_status(self) -> JobStatus | None: ...
    @property
    def resumes_itself(self) -> bool: ...

    def goes_so_far(self, status: Any) -> tuple[int, dict[str, Any]]:
        """Returns how often it went on by itself since it got further, and the columns to keep.

        Args:
            status: what its process last said in this attempt; None if it said nothing.
        """

    def elapsed_seconds(self, now: float) -> float: ...


@dataclass(frozen=True)
class Change:
    """A change of a run: its next state with a reason, and columns to set."""

    state: RunState | None = None  # None keeps it
    wanted: Wanted | None = None  # None keeps it
    reason: str | None = None  # None clears
    message: str | None = None  # None clears
    columns: Mapping[str, Any] = field(default_factory=dict)
    mends: bool = False  # the row was older than the run, so any state may follow

    @classmethod
    def of_columns(cls, run: Job, **columns: Any) -> "Change":
        """Returns a change of only these columns; state, reason and message stay."""
        return cls(reason=run.reason, message=run.message, columns=columns)


def select_runs(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]] = (runs.c.seq,),
    limit: int | None = None,
) -> list[Run]:
    """Returns the rows that meet every condition; by default oldest first."""
    query = sa.select(runs).where(*conditions).order_by(*order).limit(limit)
    return [_run_of(row) for row in connection.execute(query).mappings()]


def select_line(connection: sa.Connection) -> list[InLine]:
    """Returns the queued runs, the next to start first."""
    shown = (runs.c.id, runs.c.name, runs.c.created_at, runs.c.queue_position, runs.c.waits_for)
    device = sa.func.json_extract(_SPEC, "$.device").label("device")
    query = sa.select(*shown, device, PRIORITY.label("priority"))
    query = query.where(runs.c.state == RunState.QUEUED).order_by(*IN_LINE)
    found = []
    for row in connection.execute(query).mappings():
        values = {column.name: stored_value(column, row[column.name]) for column in shown}
        needs = _needs(connection, row)
        found.append(InLine(**values, needs=needs, priority=row["priority"]))
    return found


def _needs(connection: sa.Connection, row: sa.RowMapping) -> DeviceSpec | InvalidSpec:
    try:
        return DeviceSpec.model_validate_json(row["device"])
    except (TypeError, ValidationError):  # of an earlier release, or damaged
        try:
            return get_run(connection, row["id"]).run_spec.device
        except InvalidSpec as error:
            return error


def _run_of(row: sa.RowMapping) -> Run:
    """Returns the run of a row, whatever the row holds: a damaged one must not hide the others."""
    values = {column.name: stored_value(column, row[column.name]) for column in runs.columns}
    values["spec"] = _object(row["spec"])
    values["slots"] = _texts(row["slots"])
    values["handle"] = Handle.of(values["handle"])
    values["teacher"] = None if row["teacher"] is None else _object(row["teacher"])
    values["stop_at"] = StopAt.CHECKPOINT if row["stop_at"] == StopAt.CHECKPOINT else None
    values["forked_from"] = None
    if row["forked_from"] is not None:
        with suppress(ValueError):
            values["forked_from"] = ForkedFrom.of_json(row["forked_from"])
    try:
        values["wanted"] = Wanted(row["wanted"])
    except ValueError:
        values["wanted"] = Wanted.STOPPED
    try:
        values["state"] = RunState(row["state"])
    except ValueError:
        message = f"the database has it in the unknown state {str(row['state'])[:40]!r}; resume it"
        values |= {"reason": CorruptData.reason, "message": message, "state": RunState.FAILED}
    return Run(**values)


def readable_change(row: sa.RowMapping) -> dict[str, Any]:
    """Returns a row of the history, whatever it holds; None for what cannot be read of it."""
    values = {column.name: stored_value(column, row[column.name]) for column in history.columns}
    if values["wanted"] not in [*Wanted]:
        values["wanted"] = None
    if values["state"] not in [*RunState]:
        unknown = f"the database has the unknown state {str(row['state'])[:40]!r}"
        said = values["message"]
        values |= {"state": None, "message": f"{unknown}; {said}" if said else unknown}
    return values


def stored_value(column: sa.Column[Any], value: Any) -> Any:
    """Returns a column's value, or a plain one if it is not of the column's type."""
    if value is None or isinstance(column.type, sa.JSON):
        return value
    if isinstance(column.type, sa.Text):
        return cut(value if isinstance(value, str) else str(value))
    is_number = isinstance(value, int | float) and math.isfinite(value)
    if is_number and isinstance(column.type, sa.Float):
        return value
    if is_number and value == int(value) and abs(value) <= MAX_COUNT:
        return int(value)
    return None if column.nullable else 0


def _texts(value: Any) -> list[str] | None:
    """Returns a list of texts; None for anything else."""
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if is_list else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def require_not_removed(run: Run, folder: RunFolder) -> None:
    """Raises unless the folder still holds what the run has written.

    Raises:
        FolderMissing: the folder, or all of its checkpoints, were removed.
    """
    status = run.last_status
    if status is None or not run.has_progress:
        return
    if not folder.path.is_dir():
        raise FolderMissing(
            f"the folder of run {run.id} was removed after step {status.step}, with its "
            f"checkpoints and metrics: put {folder.path} back and resume the run, or create a new "
            "run from its spec"
        )
    had = status.checkpoint_step
    # The trainer sets broken ones aside as broken-step-..., and starts again by itself.
    if had is not None and not any(folder.checkpoints_path.glob("*step-*")):
        raise FolderMissing(
            f"the checkpoints of run {run.id} were removed, the newest of step {had}: put them "
            f"back into {folder.checkpoints_path} and resume the run, or create a new run from its "
            "spec"
        )


def get_run(connection: sa.Connection, run_id: str) -> Run:
    """Returns one row. Raises NotFound."""
    found = select_runs(connection, runs.c.id == run_id)
    if not found:
        raise NotFound(f"no run {run_id}")
    return found[0]


def newest_revision(connection: sa.Connection) -> int:
    """Returns the revision of the last change of any run, task or alert; 0 before any."""
    each = (
        sa.select(sa.func.max(table.c.revision).label("newest"))
        for table in (runs, deleted_runs, alerts, tasks)
    )
    newest = sa.union_all(*each).subquery()
    return connection.execute(sa.select(sa.func.max(newest.c.newest))).scalar() or 0
