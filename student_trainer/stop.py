"""Requests to stop: flags that every wait of the trainer, or the end of a checkpoint, checks."""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

# A wait notices a stop within this time.
SLICE_SECONDS = 0.1
FILE_SECONDS = 1.0  # between two looks for a file that stops at a checkpoint
_STDIN = 0


class StopRequested(Exception):
    """Unwinds a wait or a computation to the last step boundary. Not an error."""


class Stop:
    """Set once, by a signal handler or another thread; never cleared.

    A plain attribute, polled: a signal handler that interrupts its own thread while that holds the
    lock of a threading.Event would deadlock.
    """

    def __init__(self) -> None:
        self._requested = False
        self._at_checkpoint = False
        self.why = "stopped on request"

    def request(self, why: str | None = None) -> None:
        """Requests the stop; `why` is one sentence for people, of the first request with one."""
        if why is not None and not self._requested:
            self.why = why
        self._requested = True

    def request_at_checkpoint(self) -> None:
        """Requests to end right after the next checkpoint that is due anyway; no wait ends."""
        self._at_checkpoint = True

    @property
    def requested(self) -> bool:
        return self._requested

    @property
    def at_checkpoint(self) -> bool:
        return self._at_checkpoint

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


def stop_at_checkpoint_by_file(stop: Stop, path: Path) -> None:
    """Requests an end at the next checkpoint once there is a file at `path`."""

    def look() -> None:
        while not path.exists():
            time.sleep(FILE_SECONDS)
        stop.request_at_checkpoint()

    threading.Thread(target=look, daemon=True, name="stop-file").start()


def stop_at_end_of_input(stop: Stop) -> None:
    """Requests a stop once no process holds the other end of standard input any more."""

    def listen() -> None:
        # Not sys.stdin: a thread must not hold its lock while the interpreter shuts down.
        with suppress(OSError):
            while os.read(_STDIN, 1024):
                pass
        stop.request("stopped because the command that had started it was gone")

    threading.Thread(target=listen, daemon=True, name="parent").start()
