"""What a trainer is doing, for how long without progress, and how long that usually takes.

The heartbeat has a thread of its own and beats on while the training loop is stuck; these times are
what tells the two apart. They are measured with a clock that never jumps.
"""

import time
from collections import deque
from collections.abc import Callable
from statistics import median

STARTING = "starting"
STEP = "step"
EVALUATION = "evaluation"
CHECKPOINT = "checkpoint"
EXPORT = "export"

_RECENT = 20  # durations of each activity that its median is taken of


class Activity:
    """The present activity of the training loop. Not thread-safe: guard it with a lock.

    Args:
        clock: returns seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._durations: dict[str, deque[float]] = {}
        self._began = self._progressed = clock()
        self.name = STARTING

    def begin(self, name: str) -> None:
        """Starts another activity; if it is the present one, this is progress in it.

        The time of the one before counts as its duration, unless it is a step: the loop times them.
        """
        self.progressed()
        if name == self.name:
            return
        if self.name != STEP:
            self.took(self.name, self._progressed - self._began)
        self.name, self._began = name, self._progressed

    def took(self, name: str, seconds: float) -> None:
        """Records how long an activity took."""
        self._durations.setdefault(name, deque(maxlen=_RECENT)).append(seconds)

    def progressed(self) -> None:
        """Starts the time without progress anew."""
        self._progressed = self._clock()

    @property
    def seconds(self) -> float:
        """Seconds since it began or last progressed."""
        return self._clock() - self._progressed

    @property
    def usual_seconds(self) -> float | None:
        """Median duration of the present activity; None before its first end."""
        durations = self._durations.get(self.name)
        return median(durations) if durations else None
