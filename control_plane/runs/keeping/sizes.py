"""How much disk run folders take, and measuring all of them slowly in the background."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from control_plane.runs.commands import RunCommands
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE

# Of a core, in each look of housekeeping, which come two seconds apart: 0.6 percent.
CPU_SECONDS = 0.012
PLAN_SECONDS = 10.0
ACTIVE_SECONDS = 30.0  # how often the folder of a run that trains is measured
RESTING_SECONDS = 3600.0  # others only change if somebody changes them
_BLOCK = 512  # unit of st_blocks, whatever the file system's own blocks are


@dataclass(frozen=True)
class Entry:
    """A file or folder: which one, what it takes, and how many names it has anywhere."""

    device: int
    inode: int
    num_bytes: int
    names: int
    is_folder: bool


def entries_of(path: Path) -> list[Entry]:
    """Returns everything in a folder and itself, a file once for each of its names in it.

    Links are not followed. What vanishes meanwhile is left out; an empty list means that there is
    no such folder.
    """
    try:
        return [_entry(path.stat()), *_below(path)]
    except OSError:
        return []


def size_of(path: Path) -> int | None:
    """Returns the bytes that a folder takes on disk, hard links once; None if it is gone."""
    entries = entries_of(path)
    return size_of_entries(entries) if entries else None


def size_of_entries(entries: Iterable[Entry]) -> int:
    """Returns the bytes that entries take on disk, one with several names once."""
    return sum({(one.device, one.inode): one.num_bytes for one in entries}.values())


def freed_bytes(folders: Iterable[list[Entry]]) -> int:
    """Returns what is free once all of these folders are removed.

    A file that has a name elsewhere stays, so it frees nothing.
    """
    found: dict[tuple[int, int], Entry] = {}
    removed: dict[tuple[int, int], int] = {}
    for entries in folders:
        for one in entries:
            key = one.device, one.inode
            found[key] = one
            removed[key] = removed.get(key, 0) + 1
    return sum(
        one.num_bytes for key, one in found.items() if one.is_folder or removed[key] >= one.names
    )


class RunSizes:
    """Measures run folders, a little in each look, and records what they take.

    Those that train are measured again and again; one that has come to rest soon, and then rarely.

    Args:
        monotonic, cpu: seconds that never go back, and seconds of CPU of this thread.
    """

    def __init__(
        self,
        runs: Runs,
        commands: RunCommands,
        runs_root: Path,
        monotonic: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._root = runs_root
        self._monotonic = monotonic
        self._cpu = cpu
        self._credit = 0.0
        self._due: deque[tuple[str, tuple[str, float]]] = deque()
        self._planned_at = float("-inf")
        self._measured: dict[str, tuple[tuple[str, float], float]] = {}

    def look(self) -> None:
        """Measures as many runs as there is time for; a long one is made up for by later looks."""
        self._credit = min(CPU_SECONDS, self._credit + CPU_SECONDS)
        begun = self._cpu()
        if self._credit > 0:
            self._measure(begun + self._credit)
        self._credit -= self._cpu() - begun

    def _measure(self, until: float) -> None:
        if not self._due and self._monotonic() - self._planned_at >= PLAN_SECONDS:
            self._planned_at = self._monotonic()
            self._due.extend(self._plan())
        found = {}
        while self._due and self._cpu() < until:
            run_id, seen = self._due.popleft()
            found[run_id] = size_of(self._root / run_id)
            self._measured[run_id] = seen, self._monotonic()
        self._commands.measured(found)

    def _plan(self) -> list[tuple[str, tuple[str, float]]]:
        """Returns the runs to measure, the most urgent first, with state and since when."""
        now, due = self._monotonic(), []
        rows = self._runs.sizes()
        known = {run_id for run_id, *_ in rows}
        self._measured = {key: value for key, value in self._measured.items() if key in known}
        for run_id, state, since, size in rows:
            seen, at = self._measured.get(run_id, (None, float("-inf")))
            has_changed = seen is not None and seen != (state, since)
            every = ACTIVE_SECONDS if state in ACTIVE else RESTING_SECONDS
            if has_changed or now - at >= every:
                is_urgent = has_changed or size is None or state in ACTIVE
                due.append((not is_urgent, run_id, (state, since)))
        due.sort(key=lambda one: one[0])
        return [(run_id, seen) for _, run_id, seen in due]


def _below(path: Path) -> Iterator[Entry]:
    folders: list[str | Path] = [path]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                inside = list(found)
        except OSError:
            continue
        for one in inside:
            try:
                entry = _entry(one.stat(follow_symlinks=False))
            except OSError:
                continue
            yield entry
            if entry.is_folder:
                folders.append(one.path)


def _entry(found: os.stat_result) -> Entry:
    is_folder = (found.st_mode & 0o170000) == 0o040000
    return Entry(found.st_dev, found.st_ino, found.st_blocks * _BLOCK, found.st_nlink, is_folder)
