"""A run's time left, estimated from the steps seen so far."""

from dataclasses import dataclass


@dataclass
class Pace:
    """The steps seen since the run last started to progress; a stalled run has no pace."""

    _first: tuple[int, float] | None = None
    _last: tuple[int, float] | None = None

    def saw(self, step: int, now: float) -> None:
        """Records the run's step at `now`, in seconds of a clock that never goes back."""
        if self._first is None or step < self._first[0]:
            self._first = self._last = step, now
        elif self._last is None or step != self._last[0]:
            self._last = step, now

    def stands_still(self) -> None:
        """Forgets the pace: the run is not progressing."""
        self._first = self._last = None

    def seconds_left(self, steps: int) -> float | None:
        """Returns the time left until step `steps` at the pace so far; None if it is unknown or
        that step is done.
        """
        if self._first is None or self._last is None or steps <= self._last[0]:
            return None
        done = self._last[0] - self._first[0]
        if done < 1:
            return None
        return (steps - self._last[0]) * (self._last[1] - self._first[1]) / done
