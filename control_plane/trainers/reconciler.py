"""The reconcile loop: starts, watches and stops trainers until every run is as wanted.

Tasks have processes of their own, which another Reconciler looks after in the same way: what
differs between a run and a task is in kinds/. Both stand in one line for devices (kinds/line.py).

One pass (`Reconciler.tick`):
    1. every run that should have a trainer: find its process, by the recorded identity, by its
       status file and lock, or by its command line; record its status; if it is gone, record how it
       ended; if it should stop, signal it once, and kill it after the grace period; if it should
       stop at a checkpoint, signal it again and again until its status says that it knows
    2. interrupted runs whose delay is over are queued again
    3. queued runs get their devices and a process, by priority, then by age, up to the limit
       (devices.py)

The control plane may die between any two statements. A run is marked as starting before its process
is started, and a later pass looks for that process before it starts another. The folder's lock
rules out two trainers.

No decision is made by the wall clock, which may be set. Graces and delays are measured by the
monotonic clock from when this process first saw their cause: another control plane begins them
anew, so a trainer gets more time then, never less.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from control_plane.reading.logs.tail import last_line
from control_plane.runs.record import (
    ACTIVE,
    FOLDER_MISSING,
    INTERNAL,
    Job,
    JobStatus,
    StopAt,
    Wanted,
)
from control_plane.trainers.devices import Devices, slots_environment
from control_plane.trainers.kinds.kind import Commands, Folder, Kind, Reader
from control_plane.trainers.kinds.line import Line
from control_plane.trainers.kinds.runs import RunKind
from control_plane.trainers.sightings import Problem
from lectern_common.errors import (
    Conflict,
    CorruptData,
    FolderMissing,
    InvalidSpec,
    LecternError,
    NotFound,
)
from lectern_common.logs import get_logger
from lectern_common.roots import Roots
from lectern_common.run.processes import Identity
from lectern_common.run.status import (
    ATTEMPT_VARIABLE,
    RESTING,
    STOP_AT_END,
    RunState,
    Status,
)

STOP_GRACE_SECONDS = 60.0
EXIT_GRACE_SECONDS = 30.0  # from a trainer's last status to the end of its process
SIGNAL_AGAIN_SECONDS = 5.0
KILL_SECONDS = 5.0  # from SIGKILL until the processes are gone
POLL_SECONDS = 0.1

_log = get_logger()


class Processes(Protocol):
    """What the loop needs of launching.local.LocalLauncher; tests pass a fake."""

    def tend(self) -> None: ...

    def slowed(self) -> str | None: ...

    def start(
        self, folder: Folder, *, resume: bool, environment: Mapping[str, str]
    ) -> Identity: ...

    def find(self, folder: Folder, said: Identity | None = None) -> Identity | None: ...

    def is_alive(self, process: Identity) -> bool: ...

    def exit_status(self, process: Identity) -> int | None: ...

    def terminate(self, process: Identity) -> None: ...

    def stop_at_checkpoint(self, process: Identity) -> None: ...

    def kill(self, process: Identity) -> None: ...


class Reconciler:
    """Reconciles all runs, or all tasks, of one store.

    `tick` and `stop_all` are never called at the same time.

    Args:
        runs: reads the rows.
        commands: changes the rows.
        roots: where run folders are.
        processes: starts and ends trainers.
        devices: the devices to train on.
        clock: monotonic seconds.
        stop_grace_seconds: from SIGTERM to SIGKILL.
        kind: what the rows are; None means runs.
        line: of all that waits for the devices; None means of `runs` alone.
    """

    def __init__(
        self,
        runs: Reader,
        commands: Commands,
        roots: Roots,
        processes: Processes,
        devices: Devices,
        clock: Callable[[], float] = time.monotonic,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
        kind: Kind | None = None,
        line: Line | None = None,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._kind: Kind = kind or RunKind(roots.runs)
        self._processes = processes
        self._line = line or Line(devices, [runs])
        self._clock = clock
        self._grace = stop_grace_seconds
        self._signalled: set[tuple[str, int]] = set()  # (id, attempt) by this process
        self._killed: set[tuple[str, int]] = set()
        self._told_at: dict[tuple[str, int], float] = {}  # when it was last told of a checkpoint
        self._exit_statuses: dict[Identity, int] = {}
        self._first_seen: dict[tuple[str, int, str], float] = {}
        self._logged: dict[str, str] = {}  # by run, what was logged last
        self._draining = False

    def tick(self) -> None:
        """Reconciles every run once. A run that fails does not keep the others from it."""
        if not self._draining:
            self._processes.tend()
        for run in self._runs.in_states(ACTIVE):
            try:
                self._reconcile(run)
            except Exception as error:
                self._could_not_look_after(run, error)
        if not self._draining:
            self._requeue_interrupted()
            self._start_queued()

    def stop_all(
        self,
        others: Sequence["Reconciler"] = (),
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stops every trainer with a checkpoint; the runs resume at the next start.

        After the grace period it kills the trainers that are left. No new ones are started. What
        the `others` look after is stopped at the same time.
        """
        both = [self, *others]
        for one in both:
            one._draining = True
        deadline = monotonic() + self._grace
        while monotonic() < deadline + KILL_SECONDS:
            try:
                kill = monotonic() >= deadline
                active = [one._stop_active(kill=kill) for one in both]
                if not any(active):
                    return
            except Exception as error:  # the database may be busy; the trainers must still stop
                _log.error("runs not stopped yet", error=repr(error))
            sleep(POLL_SECONDS)

    def _stop_active(self, *, kill: bool) -> bool:
        """Signals or kills every trainer, then reconciles. Returns whether any run is active."""
        for run in self._runs.in_states(ACTIVE):
            try:
                process = self._process_of(run, self._look(run)[0])
                if process is not None and kill:
                    self._kill(run, process)
                elif process is not None:
                    self._signal_once(run, process)
            except Exception as error:  # each of the others must still be stopped
                _log.error("trainer not stopped", run=run.id, error=repr(error))
        self.tick()
        return bool(self._runs.in_states(ACTIVE))

    # ---- one run with a trainer ----------------------------------------------------------------

    def _reconcile(self, run: Job) -> None:
        status, problem = self._look(run)
        process = self._process_of(run, status)
        if process is not None and process != run.process:
            _log.info(f"{self._kind.process} adopted", run=run.id, pid=process.pid)
            run = self._commands.has_process(run.id, process)
        said = status if status is not None and self._kind.is_of_attempt(run, status) else None
        if process is None:
            self._handle_gone(run, said, problem)
            return
        if said is not None and said.state in RESTING:
            if self._seconds_of(run, f"ended at {said.since}") > EXIT_GRACE_SECONDS:
                self._kill(run, process)
        elif run.state is RunState.STOPPING and run.wanted is Wanted.STOPPED:
            self._signal_once(run, process)
            if self._seconds_of(run, "stopping") > self._grace:
                self._kill(run, process)
        elif run.stop_at is StopAt.CHECKPOINT and isinstance(said, Status):
            self._tell_of_checkpoint(run, process, said)
        # After the signals, which go out even if nothing can be recorded.
        if problem is not None:
            self._log_once(run, problem.text)
            self._commands.troubled(run.id, problem.reason, problem.text)
        elif said is not None:
            self._commands.saw(run.id, said)

    def _handle_gone(self, run: Job, said: JobStatus | None, problem: Problem | None) -> None:
        """Decides why the run has no living process, and starts it or records its end."""
        recorded = run.process
        exit_status = None
        if recorded is not None:
            # Kept, because killing forgets it, and what follows may fail and be tried again.
            known = self._exit_statuses.get(recorded)
            exit_status = known if known is not None else self._processes.exit_status(recorded)
            if exit_status is not None:
                self._exit_statuses[recorded] = exit_status
            self._processes.kill(recorded)  # what it started and left behind
        said = said or self._kind.last_said(run)  # the file may be gone, or no longer readable
        if said is not None and said.state in RESTING:
            self._record_end(run, said)
        elif run.pid is None and run.state is RunState.STARTING and not self._draining:
            self._launch(run)
        elif problem is not None and problem.reason == FOLDER_MISSING:
            self._commands.ended(run.id, RunState.FAILED, FOLDER_MISSING, problem.text, said)
        elif run.state is RunState.STOPPING and run.wanted is Wanted.STOPPED:
            self._record_forced_stop(run, said)
        elif self._draining:
            self._interrupted_by_exit(run, said)
        elif problem is None and said is None and exit_status is not None and exit_status > 0:
            message = self._kind.said_nothing(exit_status)
            line = last_line(self._kind.folder(run).log_path)
            self._commands.ended(
                run.id, RunState.FAILED, "start_failed", f"{message}: {line}" if line else message
            )
        else:
            reason = "crashed" if exit_status is not None and exit_status > 0 else "killed"
            how = f"the {self._kind.process} {_how(exit_status, run.attempt)}"
            if problem is not None:
                reason, how = problem.reason, f"{how}; {problem.text}"
            self._commands.crashed(run.id, reason, how, said)

    def _record_end(self, run: Job, said: JobStatus) -> None:
        # One that was to stop at a checkpoint has written one, whoever made it stop.
        was_asked = run.wanted is Wanted.STOPPED or run.stop_at is not None
        if said.state is RunState.STOPPED and not was_asked:
            if self._draining:
                self._interrupted_by_exit(run, said)
            else:
                message = f"the {self._kind.process} was told to stop, but not by the control plane"
                self._commands.crashed(run.id, "stopped_from_outside", message, said)
            return
        reason = "stopped" if said.state is RunState.STOPPED else said.reason
        self._commands.ended(run.id, said.state, reason, said.message, said)

    def _record_forced_stop(self, run: Job, said: JobStatus | None) -> None:
        """Records the end of a run that the user stopped and that wrote no last status."""
        if (run.id, run.attempt) in self._killed:
            message = f"did not stop within {self._grace:g} s and was killed; " + self._kind.left(
                said
            )
            self._commands.ended(run.id, RunState.INTERRUPTED, "killed", message, said)
        elif said is None or self._kind.has_nothing(said):
            self._commands.ended(run.id, RunState.STOPPED, "stopped", "before its first step", said)
        else:
            message = "ended while it was stopping; " + self._kind.left(said)
            self._commands.ended(run.id, RunState.INTERRUPTED, "killed", message, said)

    def _interrupted_by_exit(self, run: Job, said: JobStatus | None) -> None:
        message = f"the control plane was stopped; the {self._kind.noun} resumes when it is back"
        self._commands.ended(
            run.id, RunState.INTERRUPTED, "control_plane_stopped", message, said, resumes=True
        )

    def _signal_once(self, run: Job, process: Identity) -> None:
        """Sends SIGTERM once; a second one makes a trainer exit without a checkpoint.

        It is recorded before it is sent, so a control plane that died in between has sent none:
        the next one sends it unless the trainer's status says that it is stopping. It is sent even
        if it cannot be recorded: a trainer that is not told to stop dies without a checkpoint.

        Raises:
            OSError: the process cannot be signalled.
        """
        key = run.id, run.attempt
        status = self._look(run)[0]
        if key in self._signalled or (status is not None and status.state is RunState.STOPPING):
            return
        sent_before = run.stop_sent_at is not None  # by another control plane, or almost
        if sent_before and self._seconds_of(run, "signal recorded") < SIGNAL_AGAIN_SECONDS:
            return
        if not sent_before:
            try:
                self._commands.stop_sent(run.id)
            except SQLAlchemyError as error:  # the database is busy or full
                _log.error("signal not recorded", run=run.id, error=str(error))
        self._signalled.add(key)
        self._processes.terminate(process)

    def _tell_of_checkpoint(self, run: Job, process: Identity, said: Status) -> None:
        """Signals a trainer that does not know yet that it is to stop at its next checkpoint.

        Any number of such signals are as one, so nothing is recorded. A trainer whose status does
        not say where it stops would be killed by the signal: one of an earlier release.

        Raises:
            OSError: the process cannot be signalled.
        """
        key, now = (run.id, run.attempt), self._clock()
        if said.stops_at != STOP_AT_END:
            return
        if now - self._told_at.get(key, -math.inf) >= SIGNAL_AGAIN_SECONDS:
            self._told_at[key] = now
            self._processes.stop_at_checkpoint(process)

    def _kill(self, run: Job, process: Identity) -> None:
        _log.warning(f"{self._kind.process} killed", run=run.id, pid=process.pid)
        self._killed.add((run.id, run.attempt))
        self._processes.kill(process)

    # ---- starting ------------------------------------------------------------------------------

    def _requeue_interrupted(self) -> None:
        for run in self._runs.waiting_to_restart():
            delay = (run.resume_at or 0.0) - run.since  # both by the wall clock, at one moment
            if self._seconds_of(run, "interrupted") >= delay:
                with contextlib.suppress(NotFound):  # it has been deleted since
                    self._commands.requeue(run.id)

    def _start_queued(self) -> None:
        queued = self._runs.in_line()
        for run in queued:
            try:
                _ = run.device
            except InvalidSpec as error:
                self._refuse_damaged(run.id, error)
        places = self._line.places() if queued else {}
        for run in queued:
            place = places.get(run.id)
            if place is not None and place.slots:
                claimed = self._commands.claim(run.id, place.slots, place.threads)
                if claimed is not None:
                    self._launch(claimed)

    def _refuse_damaged(self, run_id: str, error: InvalidSpec) -> None:
        message = f"the spec of its row cannot be read; create a new {self._kind.noun}: {error}"
        if self._commands.claim(run_id, ()) is not None:
            self._commands.ended(run_id, RunState.FAILED, CorruptData.reason, message)

    def _launch(self, run: Job) -> None:
        """Creates the folder if it is missing, and starts the process unless there is one."""
        folder = self._kind.folder(run)
        try:
            self._kind.require_not_removed(run)
            found = self._processes.find(folder) if folder.path.exists() else None
            if found is None and folder.path.exists() and folder.is_locked():
                raise Conflict(f"{self._kind.noun} {run.id} has another program's process")
            if found is None:
                resume = self._kind.prepare(run)
                environment = slots_environment(run.slots or (), run.threads)
                environment |= {ATTEMPT_VARIABLE: str(run.attempt)}
                found = self._processes.start(folder, resume=resume, environment=environment)
                _log.info(
                    f"{self._kind.process} started",
                    run=run.id,
                    pid=found.pid,
                    devices=",".join(run.slots or ()),
                    threads=run.threads,
                )
        except (OSError, LecternError) as error:
            reason = error.reason if isinstance(error, FolderMissing) else "launch_failed"
            self._commands.ended(run.id, RunState.FAILED, reason, str(error))
            return
        self._commands.has_process(run.id, found)

    # ---- reading the present state ---------------------------------------------------------------

    def _look(self, run: Job) -> tuple[JobStatus | None, Problem | None]:
        return self._kind.look(run)

    def _process_of(self, run: Job, status: JobStatus | None) -> Identity | None:
        """Returns the living trainer of a run, or None."""
        recorded = run.process
        if recorded is not None and self._processes.is_alive(recorded):
            return recorded
        said = status.process if status is not None and status.state not in RESTING else None
        if recorded is None or said not in (None, recorded):
            return self._processes.find(self._kind.folder(run), said)
        return None

    def _seconds_of(self, run: Job, what: str) -> float:
        """Returns the seconds since this process first saw `what` of the run's attempt."""
        now = self._clock()
        return now - self._first_seen.setdefault((run.id, run.attempt, what), now)

    def _could_not_look_after(self, run: Job, error: Exception) -> None:
        """Logs it, and says it on the run; the other runs are looked after as ever."""
        self._log_once(run, repr(error))
        if not isinstance(error, SQLAlchemyError):  # nothing can be written then
            text = f"the control plane cannot look after it, and tries again: {error!r}"
            with contextlib.suppress(SQLAlchemyError, LecternError):
                self._commands.troubled(run.id, INTERNAL, text)

    def _log_once(self, run: Job, error: str) -> None:
        """Logs it unless it was the last about this run: a pass is made twice a second."""
        if self._logged.get(run.id) != error:
            self._logged[run.id] = error
            _log.error(f"{self._kind.noun} not looked after", run=run.id, error=error)


def _how(exit_status: int | None, attempt: int) -> str:
    if exit_status is None:
        return f"(attempt {attempt}) is gone"
    if exit_status < 0:
        try:
            name = signal.Signals(-exit_status).name
        except ValueError:
            name = f"signal {-exit_status}"
        return f"(attempt {attempt}) was ended by {name}"
    return f"(attempt {attempt}) ended with exit status {exit_status}; see its log"
