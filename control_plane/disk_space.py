"""What is free on the disk of the run folders, how fast that changes, and what is still written."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from control_plane.runs.record import Run
from control_plane.views.service import DiskView
from lectern_common.checks.needs.estimate import bytes_to_come
from lectern_common.errors import LecternError
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder, checkpoint_steps
from lectern_common.tokens.weights import safetensors_files, tensor_shapes
from lectern_common.words import duration, size

# Of a run that has no checkpoint yet.
FIRST_CHECKPOINT_BYTES = 64 << 20
MARGIN_BYTES = 32 << 20  # for metrics, logs and the database
WARN_HOURS = 24.0
WINDOW_SECONDS = 3600.0
LEAST_WINDOW_SECONDS = 600.0  # before, a checkpoint that was just written would look like a trend
_CLEARED = 0.05  # of the disk: it was cleared by hand, so what was seen before says nothing


class DiskWatch:
    """Watches the disk of the run folders: what is free, and how fast that becomes less.

    Args:
        roots: where run folders and models are.
        monotonic: seconds that never go back.
    """

    def __init__(self, roots: Roots, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._roots = roots
        self._monotonic = monotonic
        self._seen: deque[tuple[float, int]] = deque()  # when, and what was free

    def look(self, active: Collection[Run]) -> DiskView:
        """Returns the view of now, and remembers what is free.

        Raises:
            OSError: the disk cannot be asked.
        """
        usage = shutil.disk_usage(self._roots.runs)
        now = self._monotonic()
        if self._seen and usage.free - self._seen[-1][1] > _CLEARED * usage.total:
            self._seen.clear()
        while self._seen and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        self._seen.append((now, usage.free))
        return self.view(active)

    def view(self, active: Collection[Run]) -> DiskView:
        """Returns how much is free, what active runs need, and a warning if that may not suffice.

        Raises:
            OSError: the disk cannot be asked.
        """
        folders = [RunFolder(self._roots.runs / run.id) for run in active]
        found = disk_view(self._roots.runs, folders)
        to_come = MARGIN_BYTES + sum(
            bytes_of_run_to_come(run, folder, self._roots)
            for run, folder in zip(active, folders, strict=True)
        )
        found.warning = _warning(found, to_come, self.bytes_per_hour())
        return found

    def bytes_per_hour(self) -> float | None:
        """Returns how much less is free each hour, by the last one; None if it was not long enough.

        The least that was free in the first half of it is compared with the least in the second: a
        checkpoint that is written, and an older one that is removed for it, are no trend.
        """
        seen = list(self._seen)
        seconds = seen[-1][0] - seen[0][0] if seen else 0.0
        if seconds < LEAST_WINDOW_SECONDS:
            return None
        middle = seen[0][0] + seconds / 2
        first = min(free for at, free in seen if at <= middle)
        second = min(free for at, free in seen if at >= middle)
        return 3600 * (first - second) / (seconds / 2)


def disk_view(runs_root: Path, active: Iterable[RunFolder]) -> DiskView:
    """Returns how much is free for the run folders, and whether that is too little.

    Args:
        runs_root: lies on the disk.
        active: the folders of the runs that train.

    Raises:
        OSError: the disk cannot be asked.
    """
    usage = shutil.disk_usage(runs_root)
    needed = MARGIN_BYTES + sum(map(next_checkpoint_bytes, active))
    return DiskView(
        total_bytes=usage.total,
        free_bytes=usage.free,
        needed_bytes=needed,
        low=usage.free < needed,
        warning=None,
    )


def next_checkpoint_bytes(folder: RunFolder) -> int:
    """Returns what a run's next checkpoint takes: a little more than its newest one."""
    try:
        newest = folder.newest_step
        if newest is None:
            return FIRST_CHECKPOINT_BYTES
        path = folder.checkpoints_path / f"step-{newest:08d}"
        return int(1.1 * sum(file.stat().st_size for file in path.iterdir() if file.is_file()))
    except OSError:  # an older one is being removed
        return FIRST_CHECKPOINT_BYTES


def bytes_of_run_to_come(run: Run, folder: RunFolder, roots: Roots) -> int:
    """Returns what an active run still adds to the disk: checkpoints that it keeps, and its export.

    By the size of its newest checkpoint; before the first one, by the weights that it starts from.
    """
    try:
        spec = run.run_spec
        present = checkpoint_steps(folder.checkpoints_path)
        parameters = _parameters(spec.student.init, roots)
        measured = next_checkpoint_bytes(folder) if present else None
        step = run.last_status.step if run.last_status is not None else 0
        to_come = bytes_to_come(spec, step, len(present), measured, parameters)
    except (LecternError, OSError):  # a damaged spec, or a folder that is being removed
        to_come = None
    return next_checkpoint_bytes(folder) if to_come is None else to_come


def _parameters(init: str | None, roots: Roots) -> int | None:
    """Returns the parameters of a model folder; None for other names."""
    if init is None or not (roots.models / init).is_dir():
        return None
    total = 0
    for shape in tensor_shapes(safetensors_files(roots.models / init)).values():
        count = 1
        for width in shape:
            count *= width
        total += count
    return total


def _warning(found: DiskView, to_come: int, per_hour: float | None) -> str | None:
    """Returns a sentence if the disk will be too small for what is still written; else None."""
    free = size(found.free_bytes)
    hours = None
    if per_hour is not None and per_hour > 0:
        hours = found.free_bytes / per_hour
    soon = hours is not None and hours < WARN_HOURS
    trend = ""
    if hours is not None and per_hour is not None and (soon or found.free_bytes < to_come):
        trend = f"it fills by {size(per_hour)} an hour and is full in {duration(hours)}"
    if found.low:
        why = (
            f"the disk of the runs is nearly full: {free} free, and the next checkpoints of the "
            f"active runs need {size(found.needed_bytes)}"
        )
    elif found.free_bytes < to_come:
        why = (
            f"the disk of the runs will be full before the active runs end: {free} free, and they "
            f"still write {size(to_come)} of checkpoints and exports"
        )
    elif soon:
        why = f"the disk of the runs fills: {free} free"
    else:
        return None
    what = "make room, such as with `lectern runs prune`"
    return "; ".join([why, *([trend] if trend else []), what])
