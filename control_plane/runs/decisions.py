"""What becomes of a run: pure functions from its row to the change that follows.

`RunCommands` writes what they decide; None means that nothing changes. Those that take a Job hold
for tasks as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from control_plane.runs.healing import HEALED
from control_plane.runs.record import (
    ACTIVE,
    NEXT,
    STOP_ASKED,
    TROUBLES,
    Change,
    Job,
    JobStatus,
    Run,
    StopAt,
    Wanted,
)
from lectern_common.errors import Conflict
from lectern_common.run.status import EARLY_STOPPED, RESTING, RunState
from lectern_common.run.untrusted import cut
from lectern_common.spec.run_spec import RunSpec, require_more_to_do, require_resumable

RESUMES = "resumes"  # reason of a run that was queued again by itself
MAX_RESTARTS = 5
MAX_RESTART_DELAY_SECONDS = 60.0
HEARTBEAT_NEWS_SECONDS = 5.0  # how often a status that differs only in its heartbeat is stored
# Columns of the process of one that is active.
NO_HANDLE = ("handle", "process_create_time")
NO_PROCESS = (*NO_HANDLE, "slots", "threads", "stale_since", "stalled_since")


def require_goes_on(run: Run, spec: RunSpec) -> None:
    """Raises unless the run can resume with `spec`.

    Raises:
        Conflict: the run is active, or has nothing more to do.
        InvalidSpec: names every field that a resume may not change, or not to that value.
    """
    if run.state is RunState.STOPPING:
        raise Conflict(f"run {run.id} is stopping; resume it once it has stopped")
    if run.state not in RESTING:
        raise Conflict(f"run {run.id} is {run.state}; there is nothing to resume")
    before = run.run_spec
    require_resumable(before, spec, run.checkpoint_step)
    if run.state is RunState.SUCCEEDED:
        early, made = run.reason == EARLY_STOPPED, before.schedule.steps
        if early and run.last_status is not None:
            made = run.last_status.step
        require_more_to_do(run.id, before, spec, made, early=early)


def stopped(run: Job, noun: str = "run") -> Change | None:
    """Returns the change of a run or task that is to stop now.

    Raises:
        Conflict: there is nothing to stop.
    """
    if run.state in (RunState.SUCCEEDED, RunState.FAILED):
        raise Conflict(f"{noun} {run.id} has {run.state}; there is nothing to stop")
    if run.wanted is Wanted.STOPPED:
        return None
    if run.state in ACTIVE:
        columns = {"stop_at": None}
        return Change(RunState.STOPPING, Wanted.STOPPED, "stopped", columns=columns)
    if run.state is RunState.QUEUED:
        return Change(RunState.STOPPED, Wanted.STOPPED, "stopped")
    columns = {"resume_at": None, "waits_for": None, "stop_at": None}
    return Change(None, Wanted.STOPPED, run.reason, run.message, columns)


def stops_at_checkpoint(run: Run) -> Change | None:
    """Returns the change of a run that is to stop at its next checkpoint.

    Raises:
        Conflict: there is nothing to stop, or its trainer cannot be told.
    """
    if run.state not in ACTIVE or run.wanted is Wanted.STOPPED:
        return stopped(run)  # it has no trainer, or is stopping already
    if run.stop_at is StopAt.CHECKPOINT:
        return None
    status = run.last_status
    if status is not None and run.pid is not None and status.pid == run.pid and not status.stops_at:
        raise Conflict(
            f"the trainer of run {run.id} was started by an earlier release, and cannot be told to "
            f"stop at a checkpoint; stop it now (`lectern runs stop {run.id}`)"
        )
    text = "stops after its next checkpoint"
    return Change(None, None, STOP_ASKED, text, {"stop_at": StopAt.CHECKPOINT})


def requeued(run: Run) -> Change | None:
    """Returns the change of a run that is queued again by itself; None if it does not resume."""
    if not run.resumes_itself:
        return None
    why = ""
    columns: dict[str, Any] = {"resume_at": None}
    if run.reason in HEALED:
        why = f": {HEALED[run.reason]}"
        columns |= {"restarts": run.restarts + 1, "heals": run.heals + 1}
    message = f"resumes by itself{why}; before: {run.message or run.reason}"
    return Change(RunState.QUEUED, None, RESUMES, message, columns)


def told(run: Job, status: JobStatus) -> Change | None:
    """Returns what the status of a living process changes."""
    # One told to stop stays stopping, and a living one has not ended, whatever its status says.
    takes_state = (
        run.state in ACTIVE - {RunState.STOPPING}
        and status.state not in RESTING
        and status.state in (run.state, *NEXT[run.state])
    )
    moves = takes_state and status.state is not run.state
    heals = run.reason in TROUBLES
    if run.state not in ACTIVE or not (moves or heals or _is_news(run.last_status, status)):
        return None
    if takes_state:
        return Change(status.state, None, status.reason, status.message, seen(status))
    if heals:
        reason = "stopped" if run.wanted is Wanted.STOPPED else None
        return Change(None, None, reason, None, seen(status))
    return Change.of_columns(run, **seen(status))


def claimed(run: Job, slots: Sequence[str], threads: int, now: float) -> Change | None:
    """Returns the change of a queued one that gets its devices; None if it is no longer queued."""
    columns = {
        "slots": list(slots),
        "threads": threads,
        "attempt": run.attempt + 1,
        "launched_at": now,
        **without(run, NO_HANDLE),
        "stop_sent_at": None,
        "resume_at": None,
    }
    return Change(RunState.STARTING, columns=columns) if run.state is RunState.QUEUED else None


def troubled(run: Job, reason: str, message: str) -> Change | None:
    """Returns the change that says on an active one why the control plane cannot see it."""
    if run.state not in ACTIVE or (run.reason, run.message) == (reason, cut(message)):
        return None
    return Change(None, None, reason, message)


def crashed(
    run: Job, reason: str, message: str, status: JobStatus | None, now: float, progress: str
) -> Change | None:
    """Returns the change of one whose process is gone without having been asked to stop.

    Args:
        run: before that.
        reason: why it is gone.
        message: the same in a sentence.
        status: what the process last said.
        now: Unix seconds.
        progress: what begins the count of its restarts anew, for the message.
    """
    if run.state not in ACTIVE:
        return None
    goes, reached = run.goes_so_far(status)
    restarts = goes + 1
    columns = {**without(run, NO_PROCESS), **seen(status), **reached}
    if run.wanted is Wanted.STOPPED:
        return Change(RunState.INTERRUPTED, None, reason, message, columns)
    if restarts > MAX_RESTARTS:
        text = f"ended {restarts} times in a row without {progress}; last: {message}"
        return Change(RunState.FAILED, None, "crash_loop", text, columns)
    delay = min(2.0 ** (restarts - 1), MAX_RESTART_DELAY_SECONDS)
    columns |= {"restarts": restarts, "resume_at": now + delay}
    return Change(RunState.INTERRUPTED, None, reason, message, columns)


def without(run: Job, names: Iterable[str]) -> dict[str, Any]:
    """Returns those of the columns that its table has, cleared."""
    return {name: None for name in names if hasattr(run, name)}


def seen(status: JobStatus | None) -> dict[str, Any]:
    """Returns the column for a status; none for None."""
    if status is None:
        return {}
    return {"status": {**asdict(status), "state": str(status.state)}}


def active_time(run: Job, state: RunState, now: float) -> dict[str, Any]:
    """Returns the columns that count its time with a process, as it enters a state."""
    if state in ACTIVE:
        return {} if run.active_since is not None else {"active_since": now}
    return {"active_since": None, "active_seconds": run.elapsed_seconds(now)}


def after_change(run: Job, change: Change, now: float) -> dict[str, Any]:
    """Returns the columns to set for a change, but for the revision.

    Raises:
        ValueError: its state may not follow the present one.
    """
    state = change.state or run.state
    if state is not run.state and state not in NEXT[run.state] and not change.mends:
        raise ValueError(f"{run.id} is {run.state}, which cannot become {state}")
    values: dict[str, Any] = {
        **change.columns,
        "reason": change.reason,
        "message": None if change.message is None else cut(change.message),
    }
    if change.wanted is not None:
        values["wanted"] = change.wanted
    if state is not run.state:
        values |= {"state": state, "since": now, **active_time(run, state, now)}
        values = {**dict.fromkeys(("queue_position", "waits_for")), **values}
    return values


def _is_news(before: JobStatus | None, after: JobStatus) -> bool:
    if before is None or before.timeless != after.timeless:
        return True
    return abs(after.heartbeat - before.heartbeat) >= HEARTBEAT_NEWS_SECONDS
