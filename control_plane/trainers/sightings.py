"""What a run's folder shows of its trainer: its status, whose it is, or why it cannot be read."""

from dataclasses import dataclass

from control_plane.runs.record import FOLDER_MISSING, STATUS_UNREADABLE, Run
from lectern_common.errors import CorruptData
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import Status

# Trainer and control plane computed a create time from the wall clock within milliseconds.
_V1_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class Problem:
    """Why a run's status cannot be read: one of record.TROUBLES, and a sentence.

    The sentence stays the same while the problem does, so that it is recorded once.
    """

    reason: str
    text: str


def look(run: Run, folder: RunFolder) -> tuple[Status | None, Problem | None]:
    """Returns the run's status file, and what keeps it from being read."""
    try:
        status = folder.read_status()
    except CorruptData as error:
        return None, Problem(STATUS_UNREADABLE, str(error))
    if status is None and run.handle is not None and not folder.path.is_dir():
        return None, Problem(FOLDER_MISSING, _removed(run, folder))
    return status, None


def is_of_attempt(run: Run, status: Status) -> bool:
    """Returns whether the status is from the run's last attempt, not from an earlier one."""
    if status.process is not None:
        if run.process is not None:
            return status.process == run.process
        return status.attempt is not None and status.attempt == run.attempt
    # Version 1. Only create times that were computed at the trainer's start are compared.
    said, recorded = status.process_create_time, run.process_create_time
    if run.pid is not None:
        unknown = said is None or recorded is None
        close = unknown or abs((said or 0.0) - (recorded or 0.0)) <= _V1_TOLERANCE_SECONDS
        return status.pid == run.pid and close
    before = run.last_status
    return before is None or (before.pid, before.process_create_time) != (status.pid, said)


def last_said(run: Run) -> Status | None:
    """Returns the last status that was seen of the run's process; None if it is not known."""
    before = run.last_status
    if before is None or run.handle is None or not is_of_attempt(run, before):
        return None
    return before


def _removed(run: Run, folder: RunFolder) -> str:
    status = run.last_status
    when = "before its first step"
    if status is not None and run.has_progress:
        when = f"after step {status.step}, with its checkpoints and metrics"
    return (
        f"its folder {folder.path} was removed while it trained, {when}; put it back and resume "
        "the run, or create a new run from its spec"
    )
