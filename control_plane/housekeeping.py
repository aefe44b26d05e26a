"""Keeps the runs root tidy: trainers' logs below a limit, and no leftovers of killed processes.

It also says in the control plane's log when its disk will be too full for what active runs write.

A trainer's output goes straight to its log, through a descriptor in append mode that its children
share and that outlives this process. So the file cannot be rotated by name, and no pipe stands
between. Instead its middle is cut out in place; what is written next is appended behind that.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil

from control_plane.disk_space import DiskWatch
from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.sizes import RunSizes
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE, Run
from control_plane.tasks.queries import Tasks
from control_plane.tasks.record import TASKS_NAME
from lectern_common.errors import LecternError
from lectern_common.logs import cap_log, get_logger
from lectern_common.run.folder import RunFolder
from lectern_common.stages.folder import TaskFolder

LOOK_SECONDS = 2.0
DISK_SECONDS = 20.0
# A file is put in place within moments of its creation; on a stalled disk, within minutes.
OLD_SECONDS = 600.0
# Of a leftover whose process is gone: its pid may be alive in another container's namespace.
GONE_SECONDS = 60.0
_HIDDEN_FILE = re.compile(r"^\..+\.(?P<pid>\d+)\.tmp$")
_LOCK_PROBE = re.compile(r"^\.lock-(?P<pid>\d+)-\d+$")
_NEW_FOLDER = re.compile(r"^\.new-\w+$")
_HALF_CHECKPOINT = re.compile(r"^\.writing-")

_log = get_logger()


class Housekeeping:
    """Caps the logs of active runs and tasks, measures run folders, and watches the disk.

    In a thread of its own: a slow disk delays nothing else.

    Args:
        runs: reads which runs are active.
        runs_root: holds their folders.
        disk_seen: is told the warning of each look at the disk; None means that there is room.
        tasks: reads which tasks are active; None means none.
    """

    def __init__(
        self,
        runs: Runs,
        commands: RunCommands,
        runs_root: Path,
        disk: DiskWatch,
        disk_seen: Callable[[str | None], None] = lambda warning: None,
        tasks: Tasks | None = None,
    ) -> None:
        self._runs = runs
        self._tasks = tasks
        self._disk = disk
        self._disk_seen = disk_seen
        self._sizes = RunSizes(runs, commands, runs_root)
        self._room = commands.room
        self._root = runs_root
        self._disk_seen_at = float("-inf")
        self._warned = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; returns once it has ended."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Caps each log once; measures some folders; now and then looks how full the disk is."""
        active = self._runs.in_states(ACTIVE)
        logs = [RunFolder(self._root / run.id).log_path for run in active]
        if self._tasks is not None:
            working = self._tasks.in_states(ACTIVE)
            logs += [task.folder(self._root).log_path for task in working]
        for path in logs:
            try:
                if cap_log(path):
                    _log.warning("log cut", log=str(path))
            except OSError as error:
                _log.warning("log not cut", log=str(path), error=str(error))
        # After the logs: on a full disk the database cannot record what is seen, and raises.
        if time.monotonic() - self._disk_seen_at >= DISK_SECONDS:
            self._disk_seen_at = time.monotonic()
            self._room.take()
            self._look_at_disk(active)
        self._sizes.look()

    def _look_at_disk(self, active: list[Run]) -> None:
        try:
            disk = self._disk.look(active)
        except OSError as error:
            _log.warning("disk not looked at", error=str(error))
            return
        if disk.warning is not None and not self._warned:
            _log.warning("disk fills", folder=str(self._root), why=disk.warning)
        self._warned = disk.warning is not None
        self._disk_seen(disk.warning)

    def _keep(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # the database may be busy: the next look may succeed
                _log.warning("run folders not looked after", error=repr(error))


def sweep(runs_root: Path, clock: Callable[[], float] = time.time) -> list[Path]:
    """Removes what killed processes left in the runs root and in run folders; returns it.

    Only what has a name that Lectern gives to files that are not yet in place, and only if it is
    old: a minute if it names a process that is gone here, else ten. A run that is being trained is
    not touched.
    """
    removed = []
    for path in _leftovers(runs_root, clock()):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            _log.warning("leftover not removed", path=str(path), error=str(error))
        else:
            removed.append(path)
    if removed:
        _log.info("leftovers removed", count=len(removed), first=str(removed[0]))
    return removed


def _leftovers(runs_root: Path, now: float) -> Iterator[Path]:
    for entry in _entries(runs_root):
        named = _HIDDEN_FILE.match(entry.name) or _LOCK_PROBE.match(entry.name)
        if named or _NEW_FOLDER.match(entry.name):
            if _is_dead(entry, named, now):
                yield Path(entry.path)
        elif entry.name == TASKS_NAME:
            yield from _in_tasks(Path(entry.path), now)
        elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _in_run(Path(entry.path), now)
            yield from _in_tasks(RunFolder(Path(entry.path)).tasks_path, now)


def _in_run(path: Path, now: float) -> Iterator[Path]:
    folder = RunFolder(path)
    found = [
        (entry, named)
        for entry in _entries(path)
        if (named := _HIDDEN_FILE.match(entry.name)) and entry.is_file(follow_symlinks=False)
    ]
    halves = [one for one in _entries(folder.checkpoints_path) if _HALF_CHECKPOINT.match(one.name)]
    if not found and not halves:
        return
    try:
        with folder.locked():  # nobody trains it
            yield from (Path(entry.path) for entry, named in found if _is_dead(entry, named, now))
            yield from (Path(entry.path) for entry in halves if _age(entry, now) > OLD_SECONDS)
    except (LecternError, OSError):
        return


def _in_tasks(path: Path, now: float) -> Iterator[Path]:
    """Yields the leftovers in the folders of tasks that no process works on."""
    for entry in _entries(path):
        if entry.name.startswith(".new-"):
            if _age(entry, now) > OLD_SECONDS:
                yield Path(entry.path)
            continue
        found = [
            (one, named)
            for one in _entries(Path(entry.path))
            if (named := _HIDDEN_FILE.match(one.name)) and one.is_file(follow_symlinks=False)
        ]
        try:
            with TaskFolder(Path(entry.path)).locked() if found else nullcontext():
                yield from (Path(one.path) for one, named in found if _is_dead(one, named, now))
        except (LecternError, OSError):
            continue


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_dead(entry: os.DirEntry[str], named: re.Match[str] | None, now: float) -> bool:
    """Returns whether an entry is old, or less old and made by a process that is gone."""
    gone = named is not None and not psutil.pid_exists(int(named["pid"]))
    return _age(entry, now) > (GONE_SECONDS if gone else OLD_SECONDS)


def _age(entry: os.DirEntry[str], now: float) -> float:
    try:
        return now - entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
