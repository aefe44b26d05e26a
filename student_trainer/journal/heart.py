"""Publishes the status of this process every second, with room kept for it on the disk."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lectern_common.run.processes import identity_of
from lectern_common.run.status import HEARTBEAT_SECONDS, attempt_of_environment
from student_trainer.journal.disk_full import Reserve


class Heart:
    """Calls `publish` every second, in its own thread, between `start` and `stop`.

    Args:
        folder: of the run or task; its reserve lies there.
        publish: writes the status; must not raise.
        pid: the process that the status is about; None means this one.
        seconds: between two calls.

    Attributes:
        reserve: lets the status be written although the disk is full.
        process: which process the status is about, and which attempt: fields of a status.
    """

    def __init__(
        self,
        folder: Path,
        publish: Callable[[], None],
        pid: int | None = None,
        seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.reserve = Reserve(folder / ".reserve")
        pid = pid or os.getpid()
        identity = identity_of(pid)
        self.process: dict[str, Any] = {
            "pid": pid,
            "boot_id": None if identity is None else identity.boot_id,
            "start_ticks": None if identity is None else identity.start_ticks,
            "attempt": attempt_of_environment(),
        }
        self._publish = publish
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def start(self) -> None:
        """Takes the reserve, and publishes for the first time."""
        self.reserve.take()
        self._publish()
        self._thread.start()

    def stop(self) -> None:
        """Returns once nothing is published any more; the reserve stays."""
        self._ended.set()
        self._thread.join()

    def end(self) -> None:
        """Publishes for the last time, after `stop`, and gives up the reserve."""
        self._publish()
        self.reserve.give_up()

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds):
            self._publish()
