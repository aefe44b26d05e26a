"""Runs that have waited, and trainers that have been silent, so long that somebody should hear it.

overdue_since   since when: of a run in the queue, of one that waits for its teacher, of one that
                waits to go on by itself, and of a trainer that lives but has no heartbeat

How long it takes is measured with a clock that never jumps. Only what a run has waited before this
process first saw it is taken from the time of day.
"""

import time
from collections.abc import Callable
from typing import Any

from control_plane.runs.commands import RunCommands
from control_plane.runs.queries import Lasting, Runs
from control_plane.runs.record import MOVING
from lectern_common.run.status import RunState

LOOK_SECONDS = 5.0
SILENT_SECONDS = 60.0
WAITING_MINUTES = 60.0


class Overdue:
    """Compares how long runs have been waiting or silent with the limits, and records it.

    Args:
        runs: reads the rows.
        commands: changes them, and makes the alerts.
        waiting_minutes: how long a run may wait.
        clock: Unix seconds.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        runs: Runs,
        commands: RunCommands,
        waiting_minutes: float = WAITING_MINUTES,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = runs
        self._commands = commands
        self._waiting_seconds = 60 * waiting_minutes
        self._clock = clock
        self._monotonic = monotonic
        # What lasts -> the monotonic time since which it does.
        self._since: dict[Lasting, float] = {}
        self._looked_at = float("-inf")

    def look(self) -> None:
        """Records every run that has become overdue, or no longer is; every few seconds."""
        now = self._monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        found: dict[str, tuple[RunState, dict[str, Any]]] = {
            run_id: (state, {"overdue_since": None}) for run_id, state in self._runs.heard_again()
        }
        lasting = self._runs.lasting()
        before, wall = self._since, self._clock()
        self._since = {}
        for one in lasting:
            since = before.get(one, now - max(0.0, wall - one.since))
            self._since[one] = since
            limit = SILENT_SECONDS if one.state in MOVING else self._waiting_seconds
            if now - since > limit:
                found[one.run_id] = one.state, {"overdue_since": one.since}
        self._commands.noticed(found)
