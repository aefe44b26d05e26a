"""A trainer in the foreground of a terminal: watched from its run folder, stopped by Ctrl-C."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from lectern.console import INTERRUPTED_EXIT_CODE, note
from lectern.local.processes import Child, interrupts_held, signals_interrupt
from lectern.terminal.live import LiveRun
from lectern_common.errors import CorruptData
from lectern_common.json_lines import Position, Record, read_after
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder, RunState, Status, checkpoint_steps

POLL_SECONDS = 0.2
# Time for the step at hand and its checkpoint.
STOP_GRACE_SECONDS = 120.0


def run_trainer(
    folder: RunFolder,
    roots: Roots,
    *,
    resume: bool = False,
    show: Callable[[LiveRun], None] = lambda view: None,
) -> int:
    """Trains until the trainer ends; calls `show` a few times a second with how the run stands.

    Ctrl-C (or SIGTERM, SIGHUP) asks the trainer to checkpoint and stop; a second one kills it and
    raises KeyboardInterrupt.

    Returns:
        Exit status: 0 succeeded or stopped, 1 failed, 75 interrupted (also where the trainer was
        killed).
    """
    argv = [sys.executable, "-m", "student_trainer", str(folder.path)]
    argv += ["--resume"] if resume else []
    view = LiveRun(
        folder.run_id,
        state=RunState.STARTING,
        step=max(checkpoint_steps(folder.checkpoints_path), default=0) if resume else 0,
        steps=folder.read_spec().schedule.steps,
    )
    metrics = MetricsReader(folder.metrics_path)
    child: Child | None = None

    def refresh(child: Child) -> None:
        status = status_of(folder, child)
        if status is not None:
            view.show_status(status)
        view.add_metrics(metrics.new())
        show(view)

    with signals_interrupt():
        try:
            with interrupts_held():
                child = Child("trainer", argv, folder.log_path, roots.environment())
            while child.is_alive:
                refresh(child)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if child is None:
                raise
            note("stopping: the run writes a checkpoint (Ctrl-C again ends it at once)")
            child.stop(STOP_GRACE_SECONDS)
        except BaseException:
            if child is not None:
                child.stop(STOP_GRACE_SECONDS)
            raise
        refresh(child)
    code = child.process.wait()
    return code if code >= 0 else INTERRUPTED_EXIT_CODE


def status_of(folder: RunFolder, child: Child) -> Status | None:
    """Returns what this child has written of itself; None before it did (not a former trainer's
    words).
    """
    try:
        status = folder.read_status()
    except CorruptData:
        return None
    return status if status is not None and status.pid == child.process.pid else None


class MetricsReader:
    """Reads a growing metrics.jsonl from where it stood at the last call.

    A trainer that resumes cuts the file back to its checkpoint; it is then read again from the
    start, and steps come a second time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = Position()

    def new(self) -> list[Record]:
        """Returns the records that were completed since the last call."""
        records: list[Record] = []
        more = True
        while more:
            found = read_after(self._path, self._position)
            records += [record for record, _ in found.records]
            self._position, more = found.end, found.more
        return records
