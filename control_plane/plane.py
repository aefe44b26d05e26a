"""Assembles the control plane: opens, starts and closes all of its parts.

store <- runs <- reconciler -> launcher        start checks, teacher monitor -> teachers
           `- changes -> feed -> event streams
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from control_plane.disk_space import DiskWatch
from control_plane.housekeeping import Housekeeping, sweep
from control_plane.observing.deliveries import Deliveries
from control_plane.observing.disk import DiskAlert
from control_plane.readiness import Readiness
from control_plane.reading.feed import Feed
from control_plane.reading.series.indexes import (
    ACTIVE_BEHIND_BYTES,
    RESTING_BEHIND_BYTES,
    Indexes,
)
from control_plane.reading.wakes import Wakes, set_within
from control_plane.runs.alerts import Alerts
from control_plane.runs.commands import MAX_QUEUED, RunCommands
from control_plane.runs.forking import finish_forks
from control_plane.runs.keeping.adoption import Adoption
from control_plane.runs.keeping.backups import (
    EVERY_HOURS,
    KEPT,
    BackupFailed,
    Backups,
    Kind,
    PeriodicBackups,
)
from control_plane.runs.keeping.deletion import finish_deletions
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE, Run
from control_plane.runs.store import DATABASE_NAME, Store
from control_plane.sweeps.store import Sweeps
from control_plane.sweeps.table import Reached
from control_plane.tasks.commands import TaskCommands
from control_plane.tasks.keeping import catch_up
from control_plane.tasks.queries import Tasks
from control_plane.tasks.record import tasks_since
from control_plane.teachers.checks import StartChecks
from control_plane.teachers.monitor import TeacherMonitor
from control_plane.teachers.returned import teacher_obstacle
from control_plane.trainers.conditions import Conditions
from control_plane.trainers.devices import Devices
from control_plane.trainers.healing import Healing, Obstacle
from control_plane.trainers.kinds.line import Line
from control_plane.trainers.kinds.tasks import TaskKind
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.processes import TRAINER_ARGV, LocalProcesses
from control_plane.trainers.launching.seam import Launcher
from control_plane.trainers.obstacles import data_obstacle, disk_obstacle
from control_plane.trainers.overdue import WAITING_MINUTES, Overdue
from control_plane.trainers.reconciler import STOP_GRACE_SECONDS, Reconciler
from control_plane.views.run_fields import run_view
from control_plane.views.runs import RunView
from control_plane.views.service import DiskView
from lectern_common.errors import (
    DataUnavailable,
    DiskFull,
    DiskStalled,
    Misconfigured,
    TeacherUnavailable,
)
from lectern_common.files import take_lock
from lectern_common.logs import get_logger
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.run.webhook import Receiver
from lectern_common.teacher.address import replica_addresses
from lectern_common.teacher.secrets import SecretFiles

LOCK_NAME = "control-plane.lock"
TICK_SECONDS = 0.5
INDEX_SECONDS = 20.0
MAX_THREADS = 32
MAX_FORKS_AT_ONCE = 2

_log = get_logger()


@dataclass
class ControlPlane:
    """All parts of one control plane. Made by `open_plane`; `close` ends it."""

    roots: Roots
    store: Store
    runs: Runs
    commands: RunCommands
    tasks: Tasks
    task_commands: TaskCommands
    sweeps: Sweeps
    changes: Wakes
    feed: Feed
    launcher: Launcher
    reconciler: Reconciler
    task_reconciler: Reconciler
    conditions: Conditions
    overdue: Overdue
    healing: Healing
    alerts: Alerts
    deliveries: Deliveries
    readiness: Readiness
    devices: Devices
    checks: StartChecks
    teachers: TeacherMonitor
    adoption: Adoption
    housekeeping: Housekeeping
    disk_watch: DiskWatch
    backups: PeriodicBackups
    lock_descriptor: int
    stops_runs_on_exit: bool
    max_queued: int
    schema: str
    started_at: float
    clock: Callable[[], float] = time.time
    tick_seconds: float = TICK_SECONDS
    # Each reads a checkpoint whole: a few at once keep the disk busy, and leave threads to others.
    forks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_FORKS_AT_ONCE))
    keys: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    indexes: Indexes = field(default_factory=Indexes)
    reached: Reached = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reached = Reached(self.indexes)

    async def start(self) -> None:
        """Reconciles all runs once, then keeps doing so in the background."""
        # For the loop and the streams. Calls to teachers have threads of their own, where a teacher
        # that hangs delays only those who ask about teachers.
        pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="plane")
        asyncio.get_running_loop().set_default_executor(pool)
        self.changes.start()
        self.housekeeping.start()
        self.backups.start()
        self.deliveries.start()
        await self._tick()
        work = (self._loop(), self.feed.follow(), self._keep_indexes())
        self._tasks = [asyncio.create_task(part) for part in work]

    async def stop(self) -> None:
        """Ends the loop, stops the trainers if `stops_runs_on_exit`, and closes everything."""
        self.feed.close()
        self.indexes.close()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        try:
            if self.stops_runs_on_exit:
                await asyncio.to_thread(self.reconciler.stop_all, [self.task_reconciler])
        finally:
            self.close()

    def close(self) -> None:
        self.housekeeping.close()
        self.backups.close()
        self.deliveries.close()
        self.healing.close()
        self.checks.close()
        self.teachers.close()
        self.store.close()
        os.close(self.lock_descriptor)

    def unready(self) -> dict[str, str]:
        """Returns what keeps it from its work now, by part; an empty mapping if nothing does."""
        return {"stopping": "it is stopping"} if self.feed.closed else self.readiness.problems()

    def slowed(self) -> dict[str, str]:
        """Returns what makes its work slower than usual, though it does it, by part."""
        why = self.launcher.slowed()
        found = {} if why is None else {"fork_server": f"{why}; trainers are started afresh"}
        away = self.reconciler.away or self.task_reconciler.away
        return found if away is None else {**found, "launcher": away}

    def disk(self) -> DiskView:
        """Returns what is free on the disk of the run folders, and what active runs need of it.

        Raises:
            OSError: the disk cannot be asked.
        """
        return self.disk_watch.view(self.runs.in_states(ACTIVE))

    def run_view(self, run: Run) -> RunView:
        """Returns the view of a run now."""
        return run_view(run, self.clock())

    def run_views(self, runs: Sequence[Run]) -> list[RunView]:
        """Returns the views of runs now."""
        return [self.run_view(run) for run in runs]

    def teachers_of_runs(self) -> dict[str, list[str]]:
        """Returns the active and queued runs of each teacher server that they use."""
        found: dict[str, list[str]] = {}
        for run_id, named in self.runs.teachers([*ACTIVE, RunState.QUEUED]):
            for address in replica_addresses(named):
                found.setdefault(address, []).append(run_id)
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
        while not self.feed.closed:
            await set_within(self.changes.next(), self.tick_seconds)
            await self._tick()
            await asyncio.sleep(self.tick_seconds / 5)  # changes come in bursts

    async def _keep_indexes(self) -> None:
        """Indexes metrics before a chart asks: long files once, those of active runs as they grow.

        A failure is logged: a chart can always index for itself.
        """
        states, behind = list(RunState), RESTING_BEHIND_BYTES
        while not self.feed.closed:
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
        task = asyncio.create_task(asyncio.to_thread(self._look))
        try:
            await asyncio.shield(task)
            self.readiness.looked()
        except asyncio.CancelledError:
            await asyncio.gather(task, return_exceptions=True)
            raise
        except Exception as error:  # the database may be busy or full: the next pass may succeed
            _log.error("look at the runs failed", error=repr(error))
            self.readiness.looked(f"the last look at the runs failed: {error!r}")

    def _look(self) -> None:
        if self.runs.at_rest():  # the whole look costs twenty times as much
            self.launcher.tend()
            return
        self.reconciler.tick()
        self.task_reconciler.tick()
        self.healing.look()
        self.conditions.look()
        self.overdue.look()


def open_plane(
    roots: Roots,
    *,
    devices: Devices,
    teachers: Mapping[str, SecretFiles] | None = None,
    launcher: Launcher | None = None,
    stops_runs_on_exit: bool = False,
    stop_grace_seconds: float = STOP_GRACE_SECONDS,
    max_queued: int = MAX_QUEUED,
    backup_every_hours: float = EVERY_HOURS,
    keep_backups: int = KEPT,
    receiver: Receiver | None = None,
    waiting_minutes: float = WAITING_MINUTES,
    clock: Callable[[], float] = time.time,
) -> ControlPlane:
    """Returns the only control plane over `roots.runs`.

    Args:
        teachers: configured servers, and the secrets that may be sent to each.
        launcher: starts and ends trainers; None means the usual trainer on this machine.
        stops_runs_on_exit: `stop` ends the trainers; otherwise they keep running and are adopted
            later.
        max_queued: how many runs may wait for a device.
        backup_every_hours: between two backups of the database; 0 makes them only at starts.
        keep_backups: how many of those are kept.
        receiver: gets the alerts.
        waiting_minutes: a run that waits for longer makes an alert.

    Raises:
        Misconfigured: another control plane uses the folder, its file system has no locks, or the
            database cannot be used.
    """
    lock = _lock(roots.runs)
    backups = Backups(roots.runs / DATABASE_NAME, roots.backups, keep_backups)
    periodic = PeriodicBackups(backups, backup_every_hours)
    try:
        store = Store.open(backups.database, backups)
    except BaseException:
        os.close(lock)
        raise
    try:
        backups.make(Kind.START)
    except BackupFailed as error:  # a full disk is no reason to leave the runs alone
        _log.warning("database not backed up", error=str(error))
        periodic.soon()
    changes = Wakes()
    alerts = Alerts(store, clock, delivers=receiver is not None, changed=changes.wake_from_thread)
    deliveries = Deliveries(alerts, receiver, clock=clock)
    alerts.added = deliveries.wake
    runs, tasks = Runs(store, tasks_since), Tasks(store)
    commands = RunCommands(store, clock, changes.wake_from_thread, max_queued, alerts)
    task_commands = TaskCommands(store, clock, changes.wake_from_thread, alerts)
    finish_deletions(runs, roots.runs)
    finish_forks(runs, roots.runs)
    sweep(roots.runs)
    launcher = launcher or LocalLauncher(LocalProcesses(TRAINER_ARGV, roots.environment()))
    adoption = Adoption(runs, commands, roots.runs, launcher.find, devices.cuda)
    adoption.catch_up()
    adoption.mention_unknown()
    catch_up(tasks, task_commands, roots.runs, [row[0] for row in runs.sizes()])
    line = Line(devices, [runs, tasks])
    disk = DiskWatch(roots)
    return ControlPlane(
        roots=roots,
        store=store,
        runs=runs,
        commands=commands,
        tasks=tasks,
        task_commands=task_commands,
        sweeps=Sweeps(store, commands, clock),
        changes=changes,
        feed=Feed(runs, lambda run: run_view(run, clock()), changes),
        launcher=launcher,
        reconciler=Reconciler(
            runs,
            commands,
            roots,
            launcher,
            devices,
            stop_grace_seconds=stop_grace_seconds,
            line=line,
        ),
        task_reconciler=Reconciler(
            tasks,
            task_commands,
            roots,
            launcher,
            devices,
            stop_grace_seconds=stop_grace_seconds,
            kind=TaskKind(roots.runs),
            line=line,
        ),
        conditions=Conditions(runs, commands, devices, clock, tasks=(tasks, task_commands)),
        overdue=Overdue(runs, commands, waiting_minutes, clock),
        alerts=alerts,
        deliveries=deliveries,
        healing=Healing(runs, commands, _obstacles(roots, teachers or {})),
        readiness=Readiness(store, roots.runs),
        devices=devices,
        checks=StartChecks(roots, devices, teachers or {}),
        teachers=TeacherMonitor(roots, teachers or {}, bool(devices.cuda), clock),
        adoption=adoption,
        housekeeping=Housekeeping(
            runs, commands, roots.runs, disk, DiskAlert(alerts).seen, tasks=tasks
        ),
        disk_watch=disk,
        backups=periodic,
        lock_descriptor=lock,
        stops_runs_on_exit=stops_runs_on_exit,
        max_queued=max_queued,
        schema=store.schema(),
        started_at=clock(),
        clock=clock,
    )


def _obstacles(roots: Roots, teachers: Mapping[str, SecretFiles]) -> dict[str, Obstacle]:
    """Returns what keeps an interrupted run from going on, by the reason of its end."""

    def of_disk(run: Run) -> str | None:
        return disk_obstacle(run, roots)

    return {
        TeacherUnavailable.reason: lambda run: teacher_obstacle(run, roots, teachers),
        DiskFull.reason: of_disk,
        DiskStalled.reason: of_disk,
        DataUnavailable.reason: lambda run: data_obstacle(run, roots),
    }


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
