"""The control plane put together: everything that a request or the loop needs, opened and closed.

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

from control_plane.reading.streams import Changes
from control_plane.runs.commands import RunCommands
from control_plane.runs.deletion import finish_deletions
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE, Run
from control_plane.runs.store import DATABASE_NAME, Store
from control_plane.teachers.checks import StartChecks
from control_plane.teachers.monitor import TeacherMonitor
from control_plane.trainers.devices import Devices
from control_plane.trainers.launcher import TRAINER_ARGV, Launcher
from control_plane.trainers.reconciler import STOP_GRACE_SECONDS, Processes, Reconciler
from control_plane.views import RunView, run_view
from lectern_common.errors import Misconfigured
from lectern_common.files import take_lock
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder, RunState
from lectern_common.teacher.address import replica_addresses
from lectern_common.teacher.secrets import SecretFiles

LOCK_NAME = "control-plane.lock"
TICK_SECONDS = 0.5
READY_TICK_SECONDS = 30.0
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
    _loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Looks after all runs once, then keeps doing so in the background."""
        # Checks wait for teachers in threads; the loop and the streams must not wait behind them.
        pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="plane")
        asyncio.get_running_loop().set_default_executor(pool)
        self.changes.start()
        await self._tick()
        self._loop_task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Ends the loop and, where so chosen, every trainer; closes everything."""
        self.changes.close()
        if self._loop_task is not None:
            self._loop_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop_task
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
        """Returns True while the loop goes round and streams are open to all."""
        return not self.changes.closed and time.monotonic() - self.last_tick < READY_TICK_SECONDS

    def queue(self) -> dict[str, int]:
        """Returns the position of every queued run; 1 is the next."""
        queued = self.runs.in_states([RunState.QUEUED])
        return {run.id: position for position, run in enumerate(queued, start=1)}

    def explained(self, runs: Sequence[Run]) -> list[Run]:
        """Returns the runs, each that is queued with what it waits for as its message."""
        if all(run.state is not RunState.QUEUED for run in runs):
            return list(runs)
        taken = {run.id: run.slot for run in self.runs.in_states(ACTIVE) if run.slot}

        def explain(run: Run) -> Run:
            why = None
            if run.state is RunState.QUEUED:
                why = self.devices.why_none(run.spec["device"]["kind"], taken)
            return run if why is None else replace(run, message=why)

        return [explain(run) for run in runs]

    def run_view(self, run: Run) -> RunView:
        """Returns a run as a client sees it now."""
        return self.run_views([run])[0]

    def run_views(self, runs: Sequence[Run]) -> list[RunView]:
        """Returns runs as a client sees them now."""
        now = self.clock()
        queue = self.queue() if any(run.state is RunState.QUEUED for run in runs) else {}
        return [run_view(run, now, queue) for run in self.explained(runs)]

    def teachers_of_runs(self) -> dict[str, list[str]]:
        """Returns for each teacher server that runs at work ask: those runs."""
        found: dict[str, list[str]] = {}
        for run in self.runs.in_states([*ACTIVE, RunState.QUEUED]):
            teacher = run.spec["teacher"]
            for address in replica_addresses(teacher["address"]) if teacher else ():
                found.setdefault(address, []).append(run.id)
        return found

    def folder(self, run: Run) -> RunFolder:
        return RunFolder(self.roots.runs / run.id)

    def has_folder(self, run_id: str) -> bool:
        """Returns True where a folder has that id, whoever made it."""
        return (self.roots.runs / run_id).exists()

    def key_lock(self, key: str | None) -> asyncio.Lock:
        """Returns the lock that requests with one Idempotency-Key take turns by."""
        return asyncio.Lock() if key is None else self.keys.setdefault(key, asyncio.Lock())

    async def _loop(self) -> None:
        while True:
            changed = self.changes.next()
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self.tick_seconds)
            await self._tick()
            await asyncio.sleep(self.tick_seconds / 5)  # changes come in bursts

    async def _tick(self) -> None:
        """One look, in a thread. It is waited for even when the loop is told to end."""
        task = asyncio.create_task(asyncio.to_thread(self.reconciler.tick))
        try:
            await asyncio.shield(task)
            self.last_tick = time.monotonic()
        except asyncio.CancelledError:
            await asyncio.gather(task, return_exceptions=True)
            raise
        except Exception as error:  # the database may be busy or full: the next look may do
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
    """Returns a control plane over `roots.runs`, alone there.

    Args:
        teachers: configured servers, and the secrets that may be sent to each.
        processes: starts and ends trainers; None means a Launcher of the usual trainer.
        stops_runs_on_exit: `stop` ends the trainers; otherwise they go on and are adopted later.

    Raises:
        Misconfigured: another control plane is there, or the database cannot be used.
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
        reconciler=Reconciler(runs, commands, roots, launcher, devices, clock, stop_grace_seconds),
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
            f"another control plane looks after {runs_root}; stop it first, or choose another "
            "place with --home"
        ) from None
    except OSError as error:
        raise Misconfigured(
            f"cannot write in {runs_root}: {error.strerror}; make it writable for this user, or "
            "choose another with --home"
        ) from None
