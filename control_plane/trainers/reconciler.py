"""The reconcile loop: starts, watches and stops trainers until every run is as wanted.

One pass (`Reconciler.tick`):
    1. every run that should have a trainer: find its process, by the recorded (pid, create time),
       by its status file, or by its command line; record its status; if it is gone, record how it
       ended; if it should stop, signal it once, and kill it after the grace period
    2. interrupted runs whose delay is over are queued again
    3. queued runs get their devices and a process, in line, up to the limit (devices.py)

The control plane may die between any two statements. A run is marked as starting before its process
is started, and a later pass looks for that process before it starts another. The folder's lock
rules out two trainers.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError

from control_plane.reading.log import last_line, valid_unicode
from control_plane.runs.commands import RunCommands
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE, Run, Wanted
from control_plane.trainers.devices import Devices, Waiting, slots_environment
from control_plane.trainers.launcher import CREATE_TIME_TOLERANCE_SECONDS, Identity
from lectern_common.errors import Conflict, CorruptData, LecternError, NotFound
from lectern_common.roots import Roots
from lectern_common.run_folder import RESTING, RunFolder, RunState, Status

STOP_GRACE_SECONDS = 60.0
EXIT_GRACE_SECONDS = 30.0  # from a trainer's last status to the end of its process
SIGNAL_AGAIN_SECONDS = 5.0
KILL_SECONDS = 5.0  # from SIGKILL until the processes are gone
POLL_SECONDS = 0.1

_log = structlog.get_logger()


class Processes(Protocol):
    """What the loop needs of launcher.Launcher; tests pass a fake."""

    def tend(self) -> None: ...

    def start(
        self, folder: RunFolder, *, resume: bool, environment: Mapping[str, str]
    ) -> Identity: ...

    def find(self, folder: RunFolder) -> Identity | None: ...

    def is_alive(self, process: Identity) -> bool: ...

    def exit_status(self, process: Identity) -> int | None: ...

    def terminate(self, process: Identity) -> None: ...

    def kill(self, process: Identity) -> None: ...


class Reconciler:
    """Reconciles all runs of one store. `tick` and `stop_all` are never called at the same time.

    Args:
        runs: reads the rows.
        commands: changes the rows.
        roots: where run folders are.
        processes: starts and ends trainers.
        devices: the devices to train on.
        clock: Unix seconds.
        stop_grace_seconds: from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        runs: Runs,
        commands: RunCommands,
        roots: Roots,
        processes: Processes,
        devices: Devices,
        clock: Callable[[], float] = time.time,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._roots = roots
        self._processes = processes
        self._devices = devices
        self._clock = clock
        self._grace = stop_grace_seconds
        self._signalled: set[tuple[str, int]] = set()  # (run, attempt) by this process
        self._killed: set[tuple[str, int]] = set()
        self._draining = False

    def tick(self) -> None:
        """Reconciles every run once. A run that fails does not keep the others from it."""
        if not self._draining:
            self._processes.tend()
        for run in self._runs.in_states(ACTIVE):
            try:
                self._reconcile(run)
            except (LecternError, OSError, ValueError, SQLAlchemyError) as error:
                _log.error("run not looked after", run=run.id, error=str(error))
        if not self._draining:
            self._requeue_interrupted()
            self._start_queued()

    def stop_all(
        self,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stops every trainer with a checkpoint; the runs resume at the next start.

        After the grace period it kills the trainers that are left. No new ones are started.
        """
        self._draining = True
        deadline = monotonic() + self._grace
        while monotonic() < deadline + KILL_SECONDS:
            try:
                if not self._stop_active(kill=monotonic() >= deadline):
                    return
            except Exception as error:  # the database may be busy; the trainers must still stop
                _log.error("runs not stopped yet", error=repr(error))
            sleep(POLL_SECONDS)

    def _stop_active(self, *, kill: bool) -> bool:
        """Signals or kills every trainer, then reconciles. Returns whether any run is active."""
        for run in self._runs.in_states(ACTIVE):
            process = self._process_of(run, self._status(run))
            try:
                if process is not None and kill:
                    self._kill(run, process)
                elif process is not None:
                    self._signal_once(run, process)
            except OSError as error:
                _log.error("trainer not stopped", run=run.id, error=str(error))
        self.tick()
        return bool(self._runs.in_states(ACTIVE))

    # ---- one run with a trainer ----------------------------------------------------------------

    def _reconcile(self, run: Run) -> None:
        status = self._status(run)
        process = self._process_of(run, status)
        if process is not None and (process.pid, process.create_time) != (
            run.pid,
            run.process_create_time,
        ):
            _log.info("trainer adopted", run=run.id, pid=process.pid)
            run = self._commands.has_process(run.id, process.pid, process.create_time)
        said = status if status is not None and _is_of_attempt(run, status) else None
        if process is None:
            self._handle_gone(run, said)
            return
        if said is not None and said.state in RESTING:
            if self._clock() - said.since > EXIT_GRACE_SECONDS:
                self._kill(run, process)
        elif run.state is RunState.STOPPING and run.wanted is Wanted.STOPPED:
            self._signal_once(run, process)
            if self._clock() - (run.stop_sent_at or run.since) > self._grace:
                self._kill(run, process)
        # After the signals, which go out even if nothing can be recorded.
        if said is not None:
            self._commands.saw(run.id, said)

    def _handle_gone(self, run: Run, said: Status | None) -> None:
        """Decides why the run has no living process, and starts it or records its end."""
        recorded = _recorded(run)
        exit_status = None
        if recorded is not None:
            exit_status = self._processes.exit_status(recorded)
            self._processes.kill(recorded)  # what it started and left behind
        if said is not None and said.state in RESTING:
            self._record_end(run, said)
        elif recorded is None and run.state is RunState.STARTING and not self._draining:
            self._launch(run)
        elif run.state is RunState.STOPPING and run.wanted is Wanted.STOPPED:
            self._record_forced_stop(run, said)
        elif self._draining:
            self._interrupted_by_exit(run, said)
        elif recorded is not None and said is None and exit_status is not None and exit_status > 0:
            message = f"the trainer ended with exit status {exit_status} before its first step"
            line = last_line(RunFolder(self._roots.runs / run.id).log_path)
            self._commands.ended(
                run.id, RunState.FAILED, "start_failed", f"{message}: {line}" if line else message
            )
        else:
            reason = "crashed" if exit_status is not None and exit_status > 0 else "killed"
            self._commands.crashed(run.id, reason, _how(exit_status, run.attempt), said)

    def _record_end(self, run: Run, said: Status) -> None:
        if said.state is RunState.STOPPED and run.wanted is Wanted.RUNNING:
            if self._draining:
                self._interrupted_by_exit(run, said)
            else:
                message = "the trainer was told to stop, but not by the control plane"
                self._commands.crashed(run.id, "stopped_from_outside", message, said)
            return
        reason = "stopped" if said.state is RunState.STOPPED else said.reason
        self._commands.ended(run.id, said.state, reason, said.message, said)

    def _record_forced_stop(self, run: Run, said: Status | None) -> None:
        """Records the end of a run that the user stopped and that wrote no last status."""
        if (run.id, run.attempt) in self._killed:
            message = f"did not stop within {self._grace:g} s and was killed; " + _left(said)
            self._commands.ended(run.id, RunState.INTERRUPTED, "killed", message, said)
        elif said is None or (said.state is RunState.STARTING and said.checkpoint_step is None):
            self._commands.ended(run.id, RunState.STOPPED, "stopped", "before its first step", said)
        else:
            message = "ended while it was stopping; " + _left(said)
            self._commands.ended(run.id, RunState.INTERRUPTED, "killed", message, said)

    def _interrupted_by_exit(self, run: Run, said: Status | None) -> None:
        message = "the control plane was stopped; the run resumes when it is back"
        self._commands.ended(
            run.id, RunState.INTERRUPTED, "control_plane_stopped", message, said, resumes=True
        )

    def _signal_once(self, run: Run, process: Identity) -> None:
        """Sends SIGTERM once; a second one makes a trainer exit without a checkpoint.

        It is recorded before it is sent, so a control plane that died in between has sent none:
        the next one sends it unless the trainer's status says that it is stopping. It is sent even
        if it cannot be recorded: a trainer that is not told to stop dies without a checkpoint.

        Raises:
            OSError: the process cannot be signalled.
        """
        key = run.id, run.attempt
        status = self._status(run)
        if key in self._signalled or (status is not None and status.state is RunState.STOPPING):
            return
        sent_at = run.stop_sent_at
        if sent_at is not None and self._clock() - sent_at < SIGNAL_AGAIN_SECONDS:
            return
        if sent_at is None:
            try:
                self._commands.stop_sent(run.id)
            except SQLAlchemyError as error:  # the database is busy or full
                _log.error("signal not recorded", run=run.id, error=str(error))
        self._signalled.add(key)
        self._processes.terminate(process)

    def _kill(self, run: Run, process: Identity) -> None:
        _log.warning("trainer killed", run=run.id, pid=process.pid)
        self._killed.add((run.id, run.attempt))
        self._processes.kill(process)

    # ---- starting ------------------------------------------------------------------------------

    def _requeue_interrupted(self) -> None:
        for run in self._runs.in_states([RunState.INTERRUPTED]):
            if run.resumes_itself and (run.resume_at or 0) <= self._clock():
                with contextlib.suppress(NotFound):  # it has been deleted since
                    self._commands.requeue(run.id)

    def _start_queued(self) -> None:
        queued = self._runs.in_states([RunState.QUEUED])
        if not queued:
            return
        taken = {run.id: run.slots for run in self._runs.in_states(ACTIVE) if run.slots}
        waiting = [Waiting.of(run.id, run.spec) for run in queued]
        for run_id, place in self._devices.places(waiting, taken).items():
            if place.slots:
                claimed = self._commands.claim(run_id, place.slots, place.threads)
                if claimed is not None:
                    self._launch(claimed)

    def _launch(self, run: Run) -> None:
        """Creates the folder if it is missing, and starts the process unless there is one."""
        folder = RunFolder(self._roots.runs / run.id)
        try:
            found = self._processes.find(folder) if folder.path.exists() else None
            if found is None and folder.path.exists() and folder.is_locked():
                raise Conflict(f"run {run.id} is being trained by another program's process")
            if found is None:
                resume = _prepare(folder, run)
                environment = slots_environment(run.slots or (), run.threads)
                found = self._processes.start(folder, resume=resume, environment=environment)
                _log.info(
                    "trainer started",
                    run=run.id,
                    pid=found.pid,
                    devices=",".join(run.slots or ()),
                    threads=run.threads,
                )
        except (OSError, LecternError) as error:
            self._commands.ended(run.id, RunState.FAILED, "launch_failed", str(error))
            return
        self._commands.has_process(run.id, found.pid, found.create_time)

    # ---- reading the present state ---------------------------------------------------------------

    def _status(self, run: Run) -> Status | None:
        try:
            status = RunFolder(self._roots.runs / run.id).read_status()
            if status is None:
                return None
            return replace(status, message=valid_unicode(status.message))
        except (CorruptData, OSError) as error:
            _log.warning("status not readable", run=run.id, error=str(error))
            return None

    def _process_of(self, run: Run, status: Status | None) -> Identity | None:
        """Returns the living trainer of a run, or None."""
        recorded = _recorded(run)
        if recorded is not None and self._processes.is_alive(recorded):
            return recorded
        if status is not None and status.state not in RESTING:
            said = Identity(status.pid, status.process_create_time)
            if self._processes.is_alive(said):
                return said
        if recorded is None:
            return self._processes.find(RunFolder(self._roots.runs / run.id))
        return None


def _recorded(run: Run) -> Identity | None:
    if run.pid is None or run.process_create_time is None:
        return None
    return Identity(run.pid, run.process_create_time)


def _is_of_attempt(run: Run, status: Status) -> bool:
    """Returns whether the status is from the run's last attempt, not from an earlier one."""
    if run.pid is not None and run.process_create_time is not None:
        age_differs = abs(status.process_create_time - run.process_create_time)
        return status.pid == run.pid and age_differs <= CREATE_TIME_TOLERANCE_SECONDS
    before = run.last_status
    if before is not None and before.process_create_time == status.process_create_time:
        return False
    launched_at = run.launched_at or 0.0
    return status.process_create_time >= launched_at - CREATE_TIME_TOLERANCE_SECONDS


def _prepare(folder: RunFolder, run: Run) -> bool:
    """Makes the folder agree with the row; returns whether a trainer has used it before."""
    if not folder.path.exists():
        RunFolder.create(folder.path.parent, folder.run_id, run.run_spec, run.taught_by)
        return False
    if not folder.spec_path.exists() or folder.read_spec() != run.run_spec:
        folder.write_spec(run.run_spec)
    if run.taught_by is not None and not folder.teacher_path.exists():
        folder.write_teacher(run.taught_by)
    return folder.status_path.exists()


def _how(exit_status: int | None, attempt: int) -> str:
    if exit_status is None:
        return f"the trainer (attempt {attempt}) is gone"
    if exit_status < 0:
        try:
            name = signal.Signals(-exit_status).name
        except ValueError:
            name = f"signal {-exit_status}"
        return f"the trainer (attempt {attempt}) was ended by {name}"
    return f"the trainer (attempt {attempt}) ended with exit status {exit_status}; see its log"


def _left(said: Status | None) -> str:
    step = said.checkpoint_step if said is not None else None
    return "no checkpoint was written" if step is None else f"the newest checkpoint is step {step}"
