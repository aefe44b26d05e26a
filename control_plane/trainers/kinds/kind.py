"""What the reconcile loop needs to know of a kind of rows with processes: runs, or tasks.

A row of either kind is a *job* here (runs/record.py).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from control_plane.runs.record import Job, JobStatus
from control_plane.trainers.sightings import Problem
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Handle
from lectern_common.run.status import RunState
from lectern_common.spec.sections import DeviceSpec
from lectern_common.stages.folder import TaskFolder

Folder = RunFolder | TaskFolder


class QueuedJob(Protocol):
    """One that waits for devices. Of equal priority, the oldest is first."""

    @property
    def id(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def created_at(self) -> float: ...
    @property
    def queue_position(self) -> int | None: ...
    @property
    def waits_for(self) -> str | None: ...
    @property
    def device(self) -> DeviceSpec:
        """Raises InvalidSpec if the row is damaged."""


class Reader(Protocol):
    """Reads the rows of one kind."""

    def in_states(self, states: Collection[RunState]) -> Sequence[Job]: ...

    def waiting_to_restart(self) -> Sequence[Job]: ...

    def in_line(self) -> Sequence[QueuedJob]: ...

    def queued(self) -> tuple[tuple[str, float], ...]: ...


class Commands(Protocol):
    """Changes the rows of one kind; see RunCommands."""

    def claim(self, run_id: str, slots: tuple[str, ...], threads: int = 1) -> Job | None: ...

    def requeue(self, run_id: str) -> Job: ...

    def has_process(self, run_id: str, handle: Handle) -> Job: ...

    def stop_sent(self, run_id: str) -> Job: ...

    def saw(self, run_id: str, status: Any) -> Job: ...

    def troubled(self, run_id: str, reason: str, message: str) -> Job: ...

    def noticed(self, facts: Mapping[str, tuple[RunState, Mapping[str, Any]]]) -> None: ...

    def ended(
        self,
        run_id: str,
        state: RunState,
        reason: str | None,
        message: str | None,
        status: Any = None,
        *,
        resumes: bool = False,
    ) -> Job: ...

    def crashed(self, run_id: str, reason: str, message: str, status: Any = None) -> Job: ...


class Kind(Protocol):
    """How the rows of one kind differ from those of the other."""

    @property
    def noun(self) -> str:
        """What one is called: "run"."""

    @property
    def process(self) -> str:
        """What its process is called: "trainer"."""

    def folder(self, job: Any) -> Folder:
        """Returns its folder, which may not exist yet."""

    def look(self, job: Any) -> tuple[JobStatus | None, Problem | None]:
        """Returns its status file, and what keeps it from being read."""

    def is_of_attempt(self, job: Any, status: Any) -> bool:
        """Returns whether the status is from the last attempt, not from an earlier one."""

    def last_said(self, job: Any) -> JobStatus | None:
        """Returns the last status that was seen of its process; None if it is not known."""

    def require_not_removed(self, job: Any) -> None:
        """Raises FolderMissing unless the folder still holds what it has written."""

    def device(self, job: Any) -> DeviceSpec:
        """Returns what it asks of a machine. Raises InvalidSpec if the row is damaged."""

    def prepare(self, job: Any) -> bool:
        """Makes the folder agree with the row; returns whether a process has used it before."""

    def has_nothing(self, said: Any) -> bool:
        """Returns whether a process that said this last has left nothing to go on with."""

    def left(self, said: Any) -> str:
        """Returns what there is to go on with, as the end of a sentence."""

    def said_nothing(self, exit_status: int) -> str:
        """Returns a sentence about a process that ended before it wrote a status."""
