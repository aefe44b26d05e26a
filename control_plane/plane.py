"""Assembles the control plane: opens, starts and closes all of its parts.

store <- runs <- reconciler -> launcher        start checks, teacher monitor -> teachers
           `- changes -> event streams
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from control_plane.reading.series.indexes import (
    ACTIVE_BEHIND_BYTES,
    RESTING_BEHIND_BYTES,
    Indexes,
)
from control_plane.reading.streams import Changes
from control_plane.runs.commands import RunCommands
from control_plane.runs.deletion import finish_deletions
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE, Run
from control_plane.runs.store import DATABASE_NAME, Store
from control_plane.teachers.checks import StartChecks
from control_plane.teachers.monitor import TeacherMonitor
from control_plane.trainers.devices import Devices, Waiting
from control_plane.trainers.launcher import TRAINER_ARGV, Launcher
from control_plane.trainers.reconciler import STOP_GRACE_SECONDS, Processes, Reconciler
from control_plane.views import RunView, run_view
from lectern_common.errors import InvalidSpec, LecternError, Misconfigured
from lectern_common.files import take_lock
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder, RunState
from lectern_common.teacher.address import replica_addresses
from lectern_common.teacher.secrets import SecretFiles

LOCK_NAME = "control-plane.lock"
TICK_SECONDS = 0.5
READY_TICK_SECONDS = 30.0
INDEX_SECONDS = 20.0
MAX_THREADS = 32

_log = structlog.get_logger()


@dataclass
class ControlPlane:
    """All parts of one control plane. Made by `open_plane`; `close` ends it."""

    roots: Roots
    store: Store
    runs: Runs
    commands: RunCommands
    changes: Changes
    reconciler: Reconciler
    devices: Devices
    checks: StartChecks
    teachers: TeacherMonitor
    lock_descriptor: int
    stops_runs_on_exit: bool
    clock: Callable[[], float] = time.time
    tick_seconds: float = TICK_SECONDS
    last_tick: float = float("-inf")  # monotonic
    keys: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    indexes: Indexes = field(default_factory=Indexes)
    _index_task: asyncio.Task[None] | None = None
    _loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reconciles all runs once, then keeps doing so in the background."""
        # Checks wait for teachers in threads; the loop and streams must not wait behind them.
        pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="plane")
        asyncio.get_running_loop().set_default_executor(pool)
        self.changes.start()
        await self._tick()
        self._loop_task = asyncio.create_task(self._loop())
        self._index_task = asyncio.create_task(self._keep_indexes())

    async def stop(self) -> None:
        """Ends the loop, stops the trainers if `stops_runs_on_exit`, and closes everything."""
        self.changes.close()
        self.indexes.close()
        for task in (self._loop_task, self._index_task):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        try:
            if self.stops_runs_on_exit:
                await asyncio.to_thread(self.reconciler.stop_all)
        finally:
            self.close()

    def close(self) -> None:
        self.teachers.close()
        self.store.close()
        os.close(self.lock_descriptor)

    def is_ready(self) -> bool:
        """Returns whether the loop is running and streams can be opened."""
        return not self.changes.closed and time.monotonic() - self.last_tick < READY_TICK_SECONDS

    def queue(self) -> dict[str, int]:
        """Returns the position of every queued run; 1 is next."""
        queued = self.runs.in_states([RunState.QUEUED])
        return {run.id: position for position, run in enumerate(queued, start=1)}

    def explained(self, runs: Sequence[Run]) -> list[Run]:
        """Returns the runs; the message of a queued run says what it waits for."""
        if all(run.state is not RunState.QUEUED for run in runs):
            return list(runs)
        taken = {run.id: run.slots for run in self.runs.in_states(ACTIVE) if run.slots}
        waiting = []
        for run in self.runs.in_states([RunState.QUEUED]):
            with suppress(InvalidSpec):  # of a damaged row; the loop fails the run
                waiting.append(Waiting.of(run.id, run.device))
        places = self.devices.places(waiting, taken)

        def explain(run: Run) -> Run:
            place = places.get(run.id) if run.state is RunState.QUEUED else None
            why = None if place is None else place.waits_for
            return run if why is None else replace(run, message=why)

        return [explain(run) for run in runs]

    def run_view(self, run: Run) -> RunView:
        """Returns the view of a run now."""
        return self.run_views([run])[0]

    def run_views(self, runs: Sequence[Run]) -> list[RunView]:
        """Returns the views of runs now."""
        now = self.clock()
        queue = self.queue() if any(run.state is RunState.QUEUED for run in runs) else {}
        return [run_view(run, now, queue) for run in self.explained(runs)]

    def teachers_of_runs(self) -> dict[str, list[str]]:
        """Returns the active and queued runs of each teacher server that they use."""
        found: dict[str, list[str]] = {}
        for run in self.runs.in_states([*ACTIVE, RunState.QUEUED]):
            teacher = run.spec.get("teacher")
            with suppress(KeyError, TypeError, AttributeError, LecternError):  # a damaged row
                for address in replica_addresses(teacher["address"]) if teacher else ():
                    found.setdefault(address, []).append(run.id)
        return found

    def folder(self, run: Run) -> RunFolder:
        return RunFolder(self.roots.runs / run.id)

    def has_folder(self, run_id: str) -> bool:
        """Returns whether a run folder has that id, even if not made by this control plane."""
        return (self.roots.runs / run_id).exists()

    def key_lock(self, key: str | None) -> asyncio.Lock:
        """Returns the lock that serialises requests with the same Idempotency-Key."""
        return asyncio.Lock() if key is None else self.keys.setdefault(key, asyncio.Lock())

    async def _loop(self) -> None:
        while True:
            changed = self.changes.next()
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self.tick_seconds)
            await self._tick()
            await asyncio.sleep(self.tick_seconds / 5)  # changes come in bursts

    async def _keep_indexes(self) -> None:
        """Indexes metrics before a chart asks: long files once, those of active runs as they grow.

        A failure is logged: a chart can always index for itself.
        """
        states, behind = list(RunState), RESTING_BEHIND_BYTES
        while True:
            try:
                runs = await asyncio.to_thread(self.runs.in_states, states)
                folders = [self.folder(run) for run in runs]
                await asyncio.to_thread(self.indexes.catch_up, folders, behind)
                states, behind = list(ACTIVE), ACTIVE_BEHIND_BYTES
            except Exception as error:
                _log.warning("metrics not indexed", error=repr(error))
            await asyncio.sleep(INDEX_SECONDS)

    async def _tick(self) -> None:
        """Runs one reconcile pass in a thread; on cancellation, waits for it to finish."""
        task = asyncio.create_task(asyncio.to_thread(self.reconciler.tick))
        try:
            await asyncio.shield(task)
            self.last_tick = time.monotonic()
        except asyncio.CancelledError:
            await asyncio.gather(task, return_exceptions=True)
            raise
        except Exception as error:  # the database may be busy or full: the next pass may succeed
            _log.error("look at the runs failed", error=repr(error))


def open_plane(
    roots: Roots,
    *,
    devices: Devices,
    teachers: Mapping[str, SecretFiles] | None = None,
    processes: Processes | None = None,
    stops_runs_on_exit: bool = False,
    stop_grace_seconds: float = STOP_GRACE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> ControlPlane:
    """Returns the only control plane over `roots.runs`.

    Args:
        teachers: configured servers, and the secrets that may be sent to each.
        processes: starts and ends trainers; None means a Launcher of the usual trainer.
        stops_runs_on_exit: `stop` ends the trainers; otherwise they keep running and are adopted
            later.

    Raises:
        Misconfigured: another control plane uses the folder, its file system has no locks, or the
            database cannot be used.
    """
    lock = _lock(roots.runs)
    try:
        store = Store.open(roots.runs / DATABASE_NAME)
    except BaseException:
        os.close(lock)
        raise
    changes = Changes()
    runs, commands = Runs(store), RunCommands(store, clock, changes.notify)
    finish_deletions(runs, roots.runs)
    launcher = processes or Launcher(TRAINER_ARGV, roots.environment())
    return ControlPlane(
        roots=roots,
        store=store,
        runs=runs,
        commands=commands,
        changes=changes,
        reconciler=Reconciler(
            runs, commands, roots, launcher, devices, stop_grace_seconds=stop_grace_seconds
        ),
        devices=devices,
        checks=StartChecks(roots, devices, teachers or {}),
        teachers=TeacherMonitor(roots, teachers or {}, bool(devices.cuda), clock),
        lock_descriptor=lock,
        stops_runs_on_exit=stops_runs_on_exit,
        clock=clock,
    )


def _lock(runs_root: Path) -> int:
    """Returns a descriptor that holds the lock of a runs root while it is open."""
    try:
        runs_root.mkdir(parents=True, exist_ok=True)
        return take_lock(runs_root / LOCK_NAME)
    except BlockingIOError:
        raise Misconfigured(
            f"another control plane manages {runs_root}; stop it first, or choose another "
            "folder with --home"
        ) from None
    except OSError as error:
        raise Misconfigured(
            f"cannot write in {runs_root}: {error.strerror}; make it writable for this user, or "
            "choose another with --home"
        ) from None
