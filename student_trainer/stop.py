"""A request to stop: a flag that every wait of the trainer checks."""

import time

# A wait notices a stop within this time.
SLICE_SECONDS = 0.1


class StopRequested(Exception):
    """Unwinds a wait or a computation to the last step boundary. Not an error."""


class Stop:
    """Set once, by a signal handler or another thread; never cleared.

    A plain attribute, polled: a signal handler that interrupts its own thread while that holds the
    lock of a threading.Event would deadlock.
    """

    def __init__(self) -> None:
        self._requested = False

    def request(self) -> None:
        self._requested = True

    @property
    def requested(self) -> bool:
        return self._requested

    def check(self) -> None:
        """Raises StopRequested if a stop was requested."""
        if self._requested:
            raise StopRequested

    def sleep(self, seconds: float) -> None:
        """Sleeps `seconds`. Raises StopRequested soon after a stop is requested."""
        end = time.monotonic() + seconds
        self.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))
            self.check()
