"""How long a run has still to go, by the steps that were seen."""

from dataclasses import dataclass


@dataclass
class Pace:
    """The steps seen since the run last began to move; a run that stands still has no pace."""

    _first: tuple[int, float] | None = None
    _last: tuple[int, float] | None = None

    def saw(self, step: int, now: float) -> None:
        """Takes how far the run is, at a time in seconds that never goes back."""
        if self._first is None or step < self._first[0]:
            self._first = self._last = step, now
        elif self._last is None or step != self._last[0]:
            self._last = step, now

    def stands_still(self) -> None:
        self._first = self._last = None

    def seconds_left(self, steps: int) -> float | None:
        """Returns the time that the steps up to `steps` take at the pace so far; None: not known,
        or none left.
        """
        if self._first is None or self._last is None or steps <= self._last[0]:
            return None
        made = self._last[0] - self._first[0]
        if made < 1:
            return None
        return (steps - self._last[0]) * (self._last[1] - self._first[1]) / made
