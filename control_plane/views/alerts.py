"""Alerts, and what became of a test alert."""

from control_plane.runs.alerts import Alert
from control_plane.views.view import View


class AlertView(View):
    """Something that somebody should hear of. Times are Unix seconds."""

    seq: int
    """Rises with each alert; the webhook's `Lectern-Delivery`."""
    at: float
    kind: str
    """failed, diverged, finished, stalled, waiting or disk."""
    run_id: str | None
    """null for `disk`, as the next four fields."""
    name: str | None
    """Of an alert about a task, the task's id."""
    state: str | None
    """State, reason and step are those that the run had then."""
    reason: str | None
    step: int | None
    message: str
    """One sentence."""
    attempts: int
    """Times that the webhook's receiver was tried."""
    next_try_at: float | None
    """null if there is nothing more to deliver."""
    delivered_at: float | None
    last_error: str | None
    """What was wrong with the last attempt."""


class AlertsView(View):
    """The last alerts, newest first."""

    receiver: str | None
    """Scheme and host of the webhook; null if none is set."""
    alerts: list[AlertView]


class AlertTestView(View):
    """What became of a test alert."""

    receiver: str
    delivered: bool
    status: int | None
    """HTTP status of the answer; null if there was none."""
    said: str | None
    """The beginning of the answer's body."""
    error: str | None
    """What went wrong; null if it was delivered."""
    seconds: float


def alert_view(alert: Alert) -> AlertView:
    """Returns the view of an alert."""
    return AlertView(**{name: getattr(alert, name) for name in AlertView.model_fields})
