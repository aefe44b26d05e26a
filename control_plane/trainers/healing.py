"""Looks whether what interrupted runs wait for has come true, and queues them again if so.

What a run waits for is in its row (runs/healing.py), so a control plane that was restarted goes on
waiting. Here is only when it is looked at next: first after 15 seconds, then at delays that double
up to five minutes.

A look may hang as long as a teacher or a disk does, so looks run in threads of their own, those of
each kind apart from the others. `Healing.look` itself only collects what they have found.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from control_plane.runs.commands import RunCommands
from control_plane.runs.healing import delay_seconds
from control_plane.runs.queries import Runs
from control_plane.runs.record import Run
from lectern_common.errors import NotFound
from lectern_common.logs import get_logger
from lectern_common.run.status import RunState

MAX_LOOKS_AT_ONCE = 4  # of each kind

# Returns what keeps the run from going on, or None.
Obstacle = Callable[[Run], str | None]

_log = get_logger()


@dataclass
class _Wait:
    """One run's wait: when it is looked at next, how often it was, and the look in progress."""

    attempt: int
    due: float
    looks: int = 0
    look: Future[str | None] | None = None


class Healing:
    """Asks for each waiting run, by the reason of its end, whether it can go on.

    Args:
        runs: reads the rows.
        commands: changes them.
        obstacles: by reason.
        clock: monotonic seconds.
        new_pool: makes the threads for one kind of look.
    """

    def __init__(
        self,
        runs: Runs,
        commands: RunCommands,
        obstacles: Mapping[str, Obstacle],
        clock: Callable[[], float] = time.monotonic,
        new_pool: Callable[[], Executor] = lambda: ThreadPoolExecutor(
            MAX_LOOKS_AT_ONCE, thread_name_prefix="heal"
        ),
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._obstacles = dict(obstacles)
        self._clock = clock
        self._pools = {obstacle: new_pool() for obstacle in set(self._obstacles.values())}
        self._waits: dict[str, _Wait] = {}

    def close(self) -> None:
        """Drops the looks that have not begun."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def look(self) -> None:
        """Queues the runs that can go on, says what the others wait for, starts looks that are due.

        Blocks for nothing but the database.
        """
        waiting = self._runs.waiting_to_heal()
        present = {run.id for run in waiting}
        self._waits = {key: wait for key, wait in self._waits.items() if key in present}
        news: dict[str, tuple[RunState, dict[str, Any]]] = {}
        for run in waiting:
            wait = self._wait_of(run)
            if wait.look is not None and wait.look.done():
                obstacle = self._found(run, wait.look)
                wait.look, wait.looks = None, wait.looks + 1
                wait.due = self._clock() + delay_seconds(run.restarts + wait.looks)
                if obstacle is None:
                    with suppress(NotFound):  # it has been deleted since
                        self._commands.healed(run)
                elif obstacle != run.waits_for:
                    news[run.id] = run.state, {"waits_for": obstacle}
            elif wait.look is None and self._clock() >= wait.due:
                wait.look = self._started(run)
        self._commands.noticed(news)

    def _wait_of(self, run: Run) -> _Wait:
        wait = self._waits.get(run.id)
        if wait is None or wait.attempt != run.attempt:
            due = self._clock() + delay_seconds(run.restarts)
            wait = self._waits[run.id] = _Wait(run.attempt, due)
        return wait

    def _started(self, run: Run) -> Future[str | None] | None:
        obstacle = self._obstacles.get(run.reason or "")
        return None if obstacle is None else self._pools[obstacle].submit(obstacle, run)

    def _found(self, run: Run, look: Future[str | None]) -> str | None:
        """Returns the result of a look; one that failed counts as an obstacle."""
        try:
            return look.result()
        except Exception as error:
            _log.error("not known whether the run can go on", run=run.id, error=repr(error))
            return run.waits_for
