"""Runs a trainer in the foreground, shows its run folder, and stops it on Ctrl-C."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from lectern.console import INTERRUPTED_EXIT_CODE, note
from lectern.local.processes import Child, interrupts_held, signals_interrupt, signals_noted
from lectern.terminal.live import LiveRun
from lectern_common.errors import CorruptData
from lectern_common.json_lines import Position, Record, read_after
from lectern_common.roots import Roots
from lectern_common.run.folder import STOP_AT_CHECKPOINT_SIGNAL, RunFolder, checkpoint_steps
from lectern_common.run.status import STOP_AT_END, RunState, Status

POLL_SECONDS = 0.2
# Time to finish the current step and write its checkpoint.
STOP_GRACE_SECONDS = 120.0


def run_trainer(
    folder: RunFolder,
    roots: Roots,
    *,
    resume: bool = False,
    show: Callable[[LiveRun], None] = lambda view: None,
) -> int:
    """Runs the trainer until it ends; calls `show` a few times a second with the run's state.

    Ctrl-C (or SIGTERM, SIGHUP) asks the trainer to write a checkpoint and stop; a second one kills
    it and raises KeyboardInterrupt. SIGUSR1 asks it to stop at the next checkpoint that is due
    anyway. If this process is killed, the trainer stops with a checkpoint.

    Returns:
        Exit status: 0 succeeded or stopped, 1 failed, 75 interrupted (or the trainer was killed).
    """
    argv = [sys.executable, "-m", "student_trainer", str(folder.path)]
    argv += [*(["--resume"] if resume else []), "--stop-with-parent"]
    view = LiveRun(
        folder.run_id,
        state=RunState.STARTING,
        step=max(checkpoint_steps(folder.checkpoints_path), default=0) if resume else 0,
        steps=folder.read_spec().schedule.steps,
    )
    metrics = MetricsReader(folder.metrics_path)
    child: Child | None = None
    told = False

    def refresh(child: Child, asked_at_checkpoint: list[int]) -> None:
        nonlocal told
        status = status_of(folder, child)
        if status is not None:
            view.show_status(status)
            # Not before: the signal would kill a process that does not know it yet.
            if asked_at_checkpoint and not told and status.stops_at == STOP_AT_END:
                told = True
                child.signal(STOP_AT_CHECKPOINT_SIGNAL)
                note("the run stops at its next checkpoint (Ctrl-C stops it now)")
        view.add_metrics(metrics.new())
        show(view)

    with signals_interrupt(), signals_noted(STOP_AT_CHECKPOINT_SIGNAL) as asked:
        try:
            with interrupts_held():
                environment = roots.environment()
                child = Child("trainer", argv, folder.log_path, environment, hears_our_end=True)
            while child.is_alive:
                refresh(child, asked)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if child is None:
                raise
            note("stopping: the run writes a checkpoint (Ctrl-C again kills it at once)")
            child.stop(STOP_GRACE_SECONDS)
        except BaseException:
            if child is not None:
                child.stop(STOP_GRACE_SECONDS)
            raise
        refresh(child, asked)
    code = child.wait()
    return code if code >= 0 else INTERRUPTED_EXIT_CODE


def status_of(folder: RunFolder, child: Child) -> Status | None:
    """Returns the status that this child wrote; None before its first, even if an earlier trainer
    left one.
    """
    try:
        status = folder.read_status()
    except CorruptData:
        return None
    return status if status is not None and status.pid == child.process.pid else None


class MetricsReader:
    """Reads the new records of a growing metrics.jsonl.

    A resuming trainer cuts the file back to its checkpoint; the file is then read again from the
    start, and steps are returned a second time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = Position()

    def new(self) -> list[Record]:
        """Returns the records completed since the last call."""
        records: list[Record] = []
        more = True
        while more:
            found = read_after(self._path, self._position)
            records += [record for record, _ in found.records]
            self._position, more = found.end, found.more
        return records
