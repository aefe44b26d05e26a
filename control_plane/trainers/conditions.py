"""Facts about runs that change with time alone, as columns, so that streams send them.

queue_position   of a queued run; 1 is the next to start
waits_for        what a queued run waits for
stale_since      its trainer should be alive, but its heartbeat has not changed
stalled_since    its heart beats, but the trainer has made no progress for far longer than usual;
                 a condition, not a state: such a run may go on by itself

What is measured here is measured with a clock that never jumps, from when this process first saw a
value; what the trainer has measured comes in its status.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from control_plane.runs.commands import RunCommands
from control_plane.runs.queries import Runs
from control_plane.runs.record import ACTIVE, Run
from control_plane.trainers.devices import Devices
from control_plane.trainers.kinds.kind import Commands, Reader
from control_plane.trainers.kinds.line import Line
from lectern_common.run.status import RunState, Status, patience_seconds

STALE_SECONDS = 15.0


class Conditions:
    """Compares rows with the time and the devices, and records what has changed.

    Args:
        runs: reads the rows.
        commands: changes them.
        devices: the devices that queued runs wait for.
        clock: Unix seconds.
        monotonic: seconds that never go back.
        tasks: reads and changes those; None means that there are none.
    """

    def __init__(
        self,
        runs: Runs,
        commands: RunCommands,
        devices: Devices,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        tasks: tuple[Reader, Commands] | None = None,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._tasks = tasks
        self._readers: list[Reader] = [runs, *([tasks[0]] if tasks is not None else [])]
        self._line = Line(devices, self._readers)
        self._clock = clock
        self._hearts = _Watch(monotonic)
        self._steps = _Watch(monotonic)
        self._queue_seen: Hashable = None

    def look(self) -> None:
        """Records every fact that differs from its column."""
        active = self._runs.in_states(ACTIVE)
        taken = self._line.taken()
        queue = repr(taken), tuple(reader.queued() for reader in self._readers)
        found = {} if queue == self._queue_seen else self._of_queued()
        self._hearts.keep(run.id for run in active)
        self._steps.keep(run.id for run in active)
        for run in active:
            stale = self._stale_since(run)
            # A heart that has stopped tells nothing new about progress.
            stalled = run.stalled_since if stale is not None else self._stalled_since(run)
            if (stale, stalled) != (run.stale_since, run.stalled_since):
                found[run.id] = run.state, {"stale_since": stale, "stalled_since": stalled}
        if self._tasks is not None:
            of_tasks = {
                one.id: found.pop(one.id) for one in self._tasks[0].in_line() if one.id in found
            }
            self._tasks[1].noticed(of_tasks)
        self._commands.noticed(found)
        self._queue_seen = queue

    def _of_queued(self) -> dict[str, tuple[RunState, dict[str, Any]]]:
        """Returns the place of each queued one and what it waits for, if they have changed."""
        found: dict[str, tuple[RunState, dict[str, Any]]] = {}
        line = self._line.in_order()
        places = self._line.places(line)
        for place, run in enumerate(line, start=1):
            why = places[run.id].waits_for if run.id in places else None
            if (place, why) != (run.queue_position, run.waits_for):
                facts = {"queue_position": place, "waits_for": why}
                found[run.id] = RunState.QUEUED, facts
        return found

    def _stale_since(self, run: Run) -> float | None:
        status = _status_of_attempt(run)
        if status is None:
            return None
        seconds = self._hearts.seconds(run, status.heartbeat, again=run.stale_since is not None)
        return status.heartbeat if seconds > STALE_SECONDS else None

    def _stalled_since(self, run: Run) -> float | None:
        if run.state is RunState.WAITING_FOR_TEACHER or run.waits_for is not None:
            return None  # an active one waits for its backend to start it
        status = _status_of_attempt(run)
        if status is not None and status.activity is not None:
            seconds = status.stalled_seconds
        else:
            seconds = self._stalled_as_seen_here(run, status)
        if seconds is None:
            return None
        return run.stalled_since or self._clock() - seconds

    def _stalled_as_seen_here(self, run: Run, status: Status | None) -> float | None:
        """Returns seconds without a step, if they are too many.

        For trainers that have not said anything yet, or are of a release that does not say what
        they are doing.
        """
        step = None if status is None else (status.state, status.step, status.checkpoint_step)
        usual = None if status is None else status.latest.get("time/step_seconds")
        seconds = self._steps.seconds(run, step, again=run.stalled_since is not None)
        return seconds if seconds > patience_seconds(None, usual) else None


class _Watch:
    """How long a value of each run has been the same."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._since: dict[str, tuple[Hashable, float]] = {}

    def keep(self, run_ids: Iterable[str]) -> None:
        """Forgets all runs but these."""
        kept = set(run_ids)
        self._since = {key: value for key, value in self._since.items() if key in kept}

    def seconds(self, run: Run, value: Hashable, *, again: bool) -> float:
        """Returns for how long the run has had this value.

        Args:
            again: when a run is seen for the first time: it has been too long already, as another
                process has seen.
        """
        now, key = self._monotonic(), (run.attempt, value)
        before = self._since.get(run.id)
        if before is None or before[0] != key:
            since = float("-inf") if before is None and again else now
            self._since[run.id] = key, since
            return now - since
        return now - before[1]


def _status_of_attempt(run: Run) -> Status | None:
    """Returns the last status if the present trainer wrote it."""
    status = run.last_status
    if status is None or run.handle is None or run.pid not in (None, status.pid):
        return None
    return status if status.attempt in (None, run.attempt) else None
