"""Being asked to stop: a flag that every wait of the trainer looks at."""

import time

# How soon a wait notices.
SLICE_SECONDS = 0.1


class StopRequested(Exception):
    """Raised out of a wait or a computation, up to the last step boundary. Not an error."""


class Stop:
    """Set once, by a signal handler or another thread; never cleared.

    A plain attribute, looked at in short sleeps: a handler that runs while its own thread holds the
    lock of a threading.Event would wait for itself.
    """

    def __init__(self) -> None:
        self._requested = False

    def request(self) -> None:
        self._requested = True

    @property
    def requested(self) -> bool:
        return self._requested

    def check(self) -> None:
        """Raises StopRequested once a stop was requested."""
        if self._requested:
            raise StopRequested

    def sleep(self, seconds: float) -> None:
        """Returns after `seconds`. Raises StopRequested soon after a stop is requested."""
        end = time.monotonic() + seconds
        self.check()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))
            self.check()
