"""Retries requests until the teacher answers or its outage has lasted too long.

    Overloaded            the teacher is up: wait as long as it says, then retry
    TeacherUnavailable    an outage begins or continues: retry until its budget is spent
    any other error       a retry would not help: raised at once

All threads that ask one teacher share one Outage: it begins with the first failure of any of them
and ends with the first answer.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from lectern_common.errors import Overloaded, TeacherUnavailable
from lectern_common.logs import get_logger
from student_trainer.stop import Stop

_log = get_logger()
_Answer = TypeVar("_Answer")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


class Outage:
    """Measures how long the teacher has been away, and reports when that changes.

    Args:
        budget_seconds: an outage of this length ends the retries.
        stop: ends the retries at once.
        on_change: called when an outage begins, with the error and how long the run will wait, and
            with None when it is over; from the thread that noticed, never from two at once.
        clock: monotonic seconds.
        wall_clock: Unix seconds, for messages.
    """

    def __init__(
        self,
        budget_seconds: float,
        stop: Stop,
        on_change: Callable[[str | None], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._budget_seconds = budget_seconds
        self._stop = stop
        self._on_change = on_change
        self._clock = clock
        self._wall_clock = wall_clock
        self._began: float | None = None
        self._past_seconds = 0.0  # of the outages that are over
        self._lock = threading.Lock()

    @property
    def away_seconds(self) -> float:
        """Seconds that the teacher has been away so far, over all outages."""
        with self._lock:
            now = self._clock() - self._began if self._began is not None else 0.0
            return self._past_seconds + now

    def until_answered(self, ask: Callable[[float | None], _Answer]) -> _Answer:
        """Returns what `ask` returns, with retries as the module's docstring says.

        Args:
            ask: makes the whole request once. Called with None at first, then with the seconds left
                of the budget, in which it may also wait for a connection.

        Raises:
            TeacherUnavailable: the budget is spent.
            StopRequested: a stop was requested meanwhile.
            LecternError: any other error of `ask`.
        """
        pause = _FIRST_PAUSE_SECONDS
        left: float | None = None
        while True:
            self._stop.check()
            try:
                answer = ask(left)
            except Overloaded as error:
                self._over()
                left = None
                _log.info("teacher_overloaded", retry_after_seconds=error.retry_after_seconds)
                self._stop.sleep(error.retry_after_seconds)
            except TeacherUnavailable as error:
                self._stop.check()
                left = self._left(error)
                self._stop.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self._over()
                return answer

    def _left(self, error: TeacherUnavailable) -> float:
        """Returns the seconds left of the outage that `error` begins or belongs to."""
        with self._lock:
            now = self._clock()
            if self._began is None:
                self._began = now
                _log.warning("teacher_away", error=str(error))
                self._on_change(f"{error}. {self._patience()}")
            away = now - self._began
        if away >= self._budget_seconds:
            raise TeacherUnavailable(
                f"{error}. The teacher has been away for {away:.0f} seconds, and teacher."
                f"outage_budget_seconds is {self._budget_seconds:g}; start the same teacher again "
                "and resume the run"
            )
        return self._budget_seconds - away

    def _patience(self) -> str:
        """Returns a sentence on how long an outage that begins now may last."""
        end = datetime.fromtimestamp(self._wall_clock() + self._budget_seconds, UTC)
        return (
            f"The run waits for the teacher until {end:%Y-%m-%d %H:%M:%S} UTC: "
            f"teacher.outage_budget_seconds is {self._budget_seconds:g}"
        )

    def _over(self) -> None:
        with self._lock:
            if self._began is None:
                return
            away = self._clock() - self._began
            _log.info("teacher_back", away_seconds=round(away, 3))
            self._past_seconds += away
            self._began = None
            self._on_change(None)
