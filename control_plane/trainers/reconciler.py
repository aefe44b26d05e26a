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

Where the backend of the trainers does not answer (seam.Sight.UNKNOWN), nothing is decided about
its runs, and no grace of theirs passes. One that it has accepted but not started yet is WAITING.

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
from collections.abc import Callable, Sequence

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
from control_plane.trainers.kinds.kind import Commands, Kind, Reader
from control_plane.trainers.kinds.line import Line
from control_plane.trainers.kinds.runs import RunKind
from control_plane.trainers.launching.seam import Launcher, Needs, Seen, Sight
from control_plane.trainers.sightings import Problem
from lectern_common.errors import (
    BackendDown,
    Conflict,
    CorruptData,
    FolderMissing,
    InvalidSpec,
    LecternError,
    NotFound,
)
from lectern_common.logs import get_logger
from lectern_common.roots import Roots
from lectern_common.run.processes import Handle
from lectern_common.run.status import (
    ATTEMPT_VARIABLE,
    RESTING,
    STOP_AT_END,
    RunState,
    Status,
)
from lectern_common.run.untrusted import cut

STOP_GRACE_SECONDS = 60.0
EXIT_GRACE_SECONDS = 30.0  # from a trainer's last status to the end of its process
SIGNAL_AGAIN_SECONDS = 5.0
KILL_SECONDS = 5.0  # from SIGKILL until the processes are gone
POLL_SECONDS = 0.1

_log = get_logger()


class Reconciler:
    """Reconciles all runs, or all tasks, of one store.

    `tick` and `stop_all` are never called at the same time.

    Args:
        runs: reads the rows.
        commands: changes the rows.
        roots: where run folders are.
        launcher: starts and ends trainers.
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
        launcher: Launcher,
        devices: Devices,
        clock: Callable[[], float] = time.monotonic,
        stop_grace_seconds: float = STOP_GRACE_SECONDS,
        kind: Kind | None = None,
        line: Line | None = None,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._kind: Kind = kind or RunKind(roots.runs)
        self._launcher = launcher
        self._line = line or Line(devices, [runs])
        self._clock = clock
        self._grace = stop_grace_seconds
        self._signalled: set[tuple[str, int]] = set()  # (id, attempt) by this process
        self._killed: set[tuple[str, int]] = set()
        self._told_at: dict[tuple[str, int], float] = {}  # when it was last told of a checkpoint
        self._exit_statuses: dict[Handle, int] = {}
        self._first_seen: dict[tuple[str, int, str], float] = {}
        self._logged: dict[str, str] = {}  # by run, what was logged last
        self._lost_at: dict[tuple[str, int], float] = {}  # since when the backend says nothing
        self._away: str | None = None
        self._draining = False

    @property
    def away(self) -> str | None:
        """What the backend said when it did not answer at the last look; None if it answered."""
        return self._away

    def tick(self) -> None:
        """Reconciles every run once. A run that fails does not keep the others from it."""
        if not self._draining:
            self._launcher.tend()
        self._away = None
        for run in self._runs.in_states(ACTIVE):
            try:
                self._reconcile(run)
            except BackendDown as error:
                self._not_known(run, str(error))
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
                handle, sight = self._sight_of(run, self._look(run)[0])
                if handle is not None and (kill or sight.sight is Sight.WAITING):
                    self._kill(run, handle)
                elif handle is not None and sight.sight is Sight.ALIVE:
                    self._signal_once(run, handle)
            except Exception as error:  # each of the others must still be stopped
                _log.error("trainer not stopped", run=run.id, error=repr(error))
        self.tick()
        return bool(self._runs.in_states(ACTIVE))

    # ---- one run with a trainer ----------------------------------------------------------------

    def _reconcile(self, run: Job) -> None:
        status, problem = self._look(run)
        handle, sight = self._sight_of(run, status)
        if sight.sight is Sight.UNKNOWN:
            self._not_known(run, sight.why or "its backend does not answer")
            return
        self._known_again(run)
        if handle is not None and handle != run.handle:
            _log.info(f"{self._kind.process} adopted", run=run.id, handle=str(handle))
            run = self._commands.has_process(run.id, handle)
        said = status if status is not None and self._kind.is_of_attempt(run, status) else None
        if handle is None:
            self._handle_gone(run, said, problem, sight.exit_status)
            return
        if sight.sight is Sight.WAITING:
            self._handle_waiting(run, handle, sight.why)
            return
        if run.waits_for is not None:
            self._commands.noticed({run.id: (run.state, {"waits_for": None})})
        if said is not None and said.state in RESTING:
            if self._seconds_of(run, f"ended at {said.since}") > EXIT_GRACE_SECONDS:
                self._kill(run, handle)
        elif run.state is RunState.STOPPING and run.wanted is Wanted.STOPPED:
            self._signal_once(run, handle)
            if self._seconds_of(run, "stopping") > self._grace:
                self._kill(run, handle)
        elif run.stop_at is StopAt.CHECKPOINT and isinstance(said, Status):
            self._tell_of_checkpoint(run, handle, said)
        # After the signals, which go out even if nothing can be recorded.
        if problem is not None:
            self._log_once(run, problem.text)
            self._commands.troubled(run.id, problem.reason, problem.text)
        elif said is not None:
            self._commands.saw(run.id, said)

    def _handle_waiting(self, run: Job, handle: Handle, why: str | None) -> None:
        """Shows what the backend waits for; one that is to stop is cancelled at once."""
        if run.wanted is Wanted.STOPPED or run.stop_at is not None:
            self._launcher.kill(handle)
            message = "before it was started"
            self._commands.ended(run.id, RunState.STOPPED, "stopped", message)
        elif run.waits_for != (text := cut(why or "its backend starts it")):
            self._commands.noticed({run.id: (run.state, {"waits_for": text})})

    def _not_known(self, run: Job, why: str) -> None:
        """Leaves a run as it is, since its backend does not answer; no grace of it passes."""
        self._away = why
        self._lost_at.setdefault((run.id, run.attempt), self._clock())
        self._log_once(run, why)

    def _known_again(self, run: Job) -> None:
        """Takes the time in which the backend did not answer from every grace of the run."""
        lost_at = self._lost_at.pop((run.id, run.attempt), None)
        if lost_at is None:
            return
        away = self._clock() - lost_at
        for key, since in self._first_seen.items():
            if key[:2] == (run.id, run.attempt):
                self._first_seen[key] = since + away

    def _handle_gone(
        self,
        run: Job,
        said: JobStatus | None,
        problem: Problem | None,
        exit_status: int | None,
    ) -> None:
        """Decides why the run has no living process, and starts it or records its end."""
        recorded = run.handle
        if recorded is not None:
            # Kept, because killing forgets it, and what follows may fail and be tried again.
            exit_status = self._exit_statuses.get(recorded, exit_status)
            if exit_status is not None:
                self._exit_statuses[recorded] = exit_status
            self._launcher.kill(recorded)  # what it started and left behind
        said = said or self._kind.last_said(run)  # the file may be gone, or no longer readable
        if said is not None and said.state in RESTING:
            self._record_end(run, said)
        elif run.handle is None and run.state is RunState.STARTING and not self._draining:
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

    def _signal_once(self, run: Job, handle: Handle) -> None:
        """Sends SIGTERM once; a second one makes a trainer exit without a checkpoint.

        It is recorded before it is sent, so a control plane that died in between has sent none:
        the next one sends it unless the trainer's status says that it is stopping. It is sent even
        if it cannot be recorded: a trainer that is not told to stop dies without a checkpoint.

        Raises:
            BackendDown: it was not sent; a later pass sends it.
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
        try:
            self._launcher.terminate(handle)
        except BackendDown:
            self._signalled.discard(key)
            raise

    def _tell_of_checkpoint(self, run: Job, handle: Handle, said: Status) -> None:
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
            self._launcher.stop_at_checkpoint(handle)
            self._told_at[key] = now

    def _kill(self, run: Job, handle: Handle) -> None:
        _log.warning(f"{self._kind.process} killed", run=run.id, handle=str(handle))
        self._launcher.kill(handle)
        self._killed.add((run.id, run.attempt))

    # ---- starting ------------------------------------------------------------------------------

    def _requeue_interrupted(self) -> None:
        for run in self._runs.waiting_to_restart():
            delay = (run.resume_at or 0.0) - run.since  # both by the wall clock, at one moment
            if self._seconds_of(run, "interrupted") >= delay:
                with contextlib.suppress(NotFound):  # it has been deleted since
                    self._commands.requeue(run.id)

    def _start_queued(self) -> None:
        queued = self._runs.in_line()
        asked: dict[str, int] = {}  # CPU threads of each process
        for run in queued:
            try:
                asked[run.id] = run.device.threads or 1
            except InvalidSpec as error:
                self._refuse_damaged(run.id, error)
        if self._launcher.has_own_queue:  # it places them; they are handed on in their order
            for run_id, threads in asked.items():
                claimed = self._commands.claim(run_id, (), threads)
                if claimed is not None:
                    self._launch(claimed)
            return
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
            exists = folder.path.exists()
            found = self._launcher.find(folder, run.attempt) if exists else None
            if found is None and exists and folder.is_locked():
                if self._launcher.has_own_queue:  # by a job that has not quite ended, say
                    raise BackendDown(f"the folder of {run.id} is still locked by another process")
                raise Conflict(f"{self._kind.noun} {run.id} has another program's process")
            if found is None:
                resume = self._kind.prepare(run)
                environment = {ATTEMPT_VARIABLE: str(run.attempt)}
                if not self._launcher.has_own_queue:  # a site gives its own devices and cores
                    environment |= slots_environment(run.slots or (), run.threads)
                found = self._launcher.start(
                    folder,
                    attempt=run.attempt,
                    resume=resume,
                    needs=self._needs(run),
                    environment=environment,
                )
                _log.info(
                    f"{self._kind.process} started",
                    run=run.id,
                    handle=str(found),
                    devices=",".join(run.slots or ()),
                    threads=run.threads,
                )
        except BackendDown as error:  # it stays `starting`: the next pass asks again
            self._not_known(run, str(error))
            return
        except (OSError, LecternError) as error:
            reason = error.reason if isinstance(error, FolderMissing) else "launch_failed"
            self._commands.ended(run.id, RunState.FAILED, reason, str(error))
            return
        self._commands.has_process(run.id, found)

    # ---- reading the present state ---------------------------------------------------------------

    def _look(self, run: Job) -> tuple[JobStatus | None, Problem | None]:
        return self._kind.look(run)

    def _sight_of(self, run: Job, status: JobStatus | None) -> tuple[Handle | None, Seen]:
        """Returns the handle of the run's trainer, None if it is gone, and what was seen of it.

        Raises:
            BackendDown: the backend does not answer.
            OSError: the processes cannot be looked at.
        """
        recorded, sight = run.handle, Seen(Sight.GONE)
        if recorded is not None:
            sight = self._launcher.look(recorded)
            if sight.sight is not Sight.GONE:
                return recorded, sight
        said = status.process if status is not None and status.state not in RESTING else None
        if recorded is None or recorded.process is None or said not in (None, recorded.process):
            found = self._launcher.find(self._kind.folder(run), run.attempt, said)
            if found is not None and found != recorded:
                return found, self._launcher.look(found)
        return None, sight

    def _needs(self, run: Job) -> Needs:
        """Returns what it asks of a machine: of its spec, or what it was given of this one."""
        device = self._kind.device(run)
        slots = run.slots or ()
        gpus = sum(slot != "cpu" for slot in slots) if slots else device.count
        if device.kind == "cpu":
            gpus = 0
        threads = device.threads if self._launcher.has_own_queue else run.threads
        return Needs(gpus, 1, device.count, threads)

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
