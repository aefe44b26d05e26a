"""Makes an alert when the disk becomes too full: once, however often it is looked at."""

import time
from collections.abc import Callable

from control_plane.runs.alerts import AlertKind, Alerts

CLEAR_SECONDS = 600.0


class DiskAlert:
    """Follows what `GET /disk` warns of.

    The warning is over after CLEAR_SECONDS without it: as checkpoints come and go, a disk that is
    nearly full may be below the limit and above it every few minutes.
    """

    def __init__(self, alerts: Alerts, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._alerts = alerts
        self._monotonic = monotonic
        self._clear_since: float | None = None

    def seen(self, warning: str | None) -> None:
        """Takes the warning of a look at the disk; None means that there is room."""
        now = self._monotonic()
        if warning is not None:
            self._clear_since = None
            self._alerts.condition(AlertKind.DISK, warning)
        elif self._clear_since is None:
            self._clear_since = now
        elif now - self._clear_since >= CLEAR_SECONDS:
            self._alerts.condition(AlertKind.DISK, None)
