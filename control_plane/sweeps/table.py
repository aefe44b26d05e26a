"""The table of a sweep: what each run reached, mean and spread over seeds, and the best.

The value of a run is its best finite one, which early stopping would export. Runs that differ only
in `seed` form a group. Groups are compared by the mean of their runs; one competes only when each
of its runs has a value and none has diverged, since a mean over the runs that went well says
nothing about the setting.
"""

import json
import math
import statistics
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.reading.series.extremes import Extremes, extremes_of
from control_plane.reading.series.indexes import Indexes
from control_plane.runs.record import Run
from control_plane.sweeps.store import SweepRecord
from control_plane.sweeps.views import SweepGroupView, SweepRunView
from lectern_common.errors import Diverged
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RESTING, RunState
from lectern_common.spec.sweep import SEED, Goal, setting_of

_MAX_REMEMBERED = 2000


class Reached:
    """What runs have reached by a metric; remembers it until a run's metrics change. Thread-safe.

    Args:
        indexes: of the metrics of all runs.
    """

    def __init__(self, indexes: Indexes) -> None:
        self._indexes = indexes
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, Goal], tuple[str, Extremes | None]] = OrderedDict()

    def of(self, folder: RunFolder, metric: str, goal: Goal) -> Extremes | None:
        """Returns what `extremes_of` does. Raises OSError."""
        indexed, key = self._indexes.of(folder), (folder.run_id, metric, goal)
        with self._lock:
            revision, found = self._known.get(key, ("", None))
        if revision != indexed.revision:
            lowest = goal == "min"
            found = extremes_of(indexed, folder.metrics_path, metric, lowest=lowest)
        with self._lock:
            self._known[key] = indexed.revision, found
            self._known.move_to_end(key)
            while len(self._known) > _MAX_REMEMBERED:
                self._known.popitem(last=False)
        return found


@dataclass(frozen=True)
class Table:
    """The table of a sweep. `best_group` is an index into `groups`."""

    runs: list[SweepRunView]
    groups: list[SweepGroupView]
    best: str | None
    best_group: int | None


def table_of(
    sweep: SweepRecord, runs: Sequence[Run], reached: Callable[[Run], Extremes | None]
) -> Table:
    """Returns the table.

    Args:
        sweep: says which settings differ, and what is best.
        runs: in the order of the table.
        reached: returns what a run has reached; may raise OSError.
    """
    groups: dict[str, int] = {}
    rows: list[SweepRunView] = []
    for run in runs:
        settings = {path: setting_of(run.spec, path) for path in sweep.settings}
        key = json.dumps(_without_seed(settings), sort_keys=True)
        group = groups.setdefault(key, len(groups))
        rows.append(_row(sweep, run, settings, group, reached))
    found = [_group([row for row in rows if row.group == number]) for number in range(len(groups))]
    sign = 1.0 if sweep.goal == "min" else -1.0
    means = {
        number: sign * group.mean
        for number, group in enumerate(found)
        if group.mean is not None and group.note is None
    }
    if not means:
        return Table(rows, found, None, None)
    best_group = min(means, key=lambda number: means[number])
    best = min(
        (row for row in rows if row.group == best_group),
        key=lambda row: math.inf if row.best is None else sign * row.best,
    )
    return Table(rows, found, best.run_id, best_group)


def _row(
    sweep: SweepRecord,
    run: Run,
    settings: dict[str, Any],
    group: int,
    reached: Callable[[Run], Extremes | None],
) -> SweepRunView:
    status = run.last_status
    unread: str | None = None
    try:
        found = reached(run)
    except OSError as error:
        found, unread = None, f"its metrics cannot be read: {error.strerror}"
    steps = setting_of(run.spec, "schedule.steps")
    return SweepRunView(
        run_id=run.id,
        name=run.name,
        state=run.state,
        reason=run.reason,
        message=run.message,
        step=status.step if status else 0,
        steps=steps if isinstance(steps, int) else (status.steps if status else 0),
        settings=settings,
        value=found.last if found else None,
        value_step=found.last_step if found else None,
        best=found.best if found else None,
        at_step=found.best_step if found else None,
        note=unread or _why_not(run, sweep.metric, found),
        resumes=run.resumes_itself,
        group=group,
    )


def _why_not(run: Run, metric: str, found: Extremes | None) -> str | None:
    """Returns why a run cannot be the best; None if it can."""
    if run.state is RunState.FAILED and run.reason == Diverged.reason:
        return f"diverged: {run.message or 'its loss is not finite'}"
    if found is None:
        return f"{run.state} without {metric}" if run.state in RESTING else f"no {metric} yet"
    if found.last is None or found.best is None:
        return f"diverged: {metric} is not finite at step {found.last_step}"
    return None


def _group(rows: Sequence[SweepRunView]) -> SweepGroupView:
    values = [row.best for row in rows if row.note is None and row.best is not None]
    mean, spread = _mean_and_spread(values)
    noted = [row for row in rows if row.note is not None]
    note = None
    if noted:
        which = "" if len(rows) == 1 else f"{len(noted)} of {len(rows)} runs, the first: "
        note = f"{which}{noted[0].note}"
    return SweepGroupView(
        settings=_without_seed(rows[0].settings),
        runs=[row.run_id for row in rows],
        n=len(values),
        mean=mean,
        spread=spread,
        note=note,
    )


def _mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Returns mean and sample standard deviation; None for what is not defined or not finite."""
    try:
        mean = statistics.fmean(values) if values else None
        spread = statistics.stdev(values) if len(values) > 1 else None
    except OverflowError:
        return None, None
    return mean, spread


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in settings.items() if path != SEED}
