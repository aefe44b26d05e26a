"""Runs as plain text: the lines of a list, and one run with readable times."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lectern.console import inert

if TYPE_CHECKING:
    from lectern.client import RunStatus

_HEADER = ("run", "state", "step", "loss", "validation", "tokens/s", "why")
_LEFT = ("run", "state", "why")
_TIMES = frozenset(
    {
        *("at", "since", "created_at", "resumes_at", "checkpoint_at", "completed_at"),
        *("heartbeat", "stale_since", "stalled_since", "time"),
    }
)
_CUT = "..."


def list_lines(runs: Sequence["RunStatus"], width: int | None = None) -> list[str]:
    """Returns a header and one line per run.

    Args:
        width: longest line, in characters; longer ones are cut, but never inside the run id. None
            means uncut.
    """
    rows = [_HEADER, *(_row(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(size) if name in _LEFT else cell.rjust(size)
            for name, cell, size in zip(_HEADER, row, widths, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        if width is not None and len(line) > width:
            line = line[: max(width - len(_CUT), widths[0])] + _CUT
        lines.append(line)
    return lines


def _row(run: "RunStatus") -> tuple[str, ...]:
    speed = run.tokens_per_second
    return (
        run.id,
        str(run.state),
        f"{run.step}/{run.steps}",
        *(_number(run.latest.get(name)) for name in ("loss/total", "loss/val")),
        "" if speed is None else f"{speed:,.0f}",
        " ".join(inert(_why(run)).split()),
    )


def _why(run: "RunStatus") -> str:
    return condition(run.json) or message_of(run) or run.reason or ""


def history_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line for each entry of a run's history: when, what, why, and who asked for it."""
    lines = []
    for entry in entries:
        what = str(entry.get("state") or entry.get("kind"))
        stops = entry.get("wanted") == "stopped" and what not in ("stopping", "stopped")
        why = [
            "a stop was asked for" if stops else "",
            str(entry.get("message") or entry.get("reason") or ""),
            f"by {entry['by']}" if entry.get("by") else "",
        ]
        text = inert("; ".join(filter(None, why)))
        line = f"{_local(float(entry['at'])):%Y-%m-%d %H:%M:%S}  {what:<19}  {text}"
        lines.append(" ".join(line.split("\n")).rstrip())
    return lines


def message_of(run: "RunStatus") -> str | None:
    """Returns the run's message, and what has to come true before it resumes by itself."""
    if run.resumes_when is None:
        return run.message
    return f"{run.message or run.reason}; resumes by itself when {run.resumes_when}"


def condition(run: Mapping[str, Any]) -> str:
    """Returns what is wrong with a run whose state does not show it: "stalled since 14:05 ...".

    Returns "" if nothing is.

    Args:
        run: as the control plane answers.
    """
    if (silent := run.get("stale_since")) is not None:
        return f"no heartbeat from the trainer since {_clock_time(silent)}"
    if (stalled := run.get("stalled_since")) is not None:
        activity = run.get("activity")
        doing = "" if activity in (None, "step") else f" in {activity}"
        return f"stalled: alive, but no progress{doing} since {_clock_time(stalled)}"
    return ""


def _clock_time(seconds: float) -> str:
    """Returns the local time of Unix seconds, with the date unless it is today's."""
    then = _local(seconds)
    is_today = then.date() == datetime.now().astimezone().date()
    return f"{then:%H:%M:%S}" if is_today else f"{then:%Y-%m-%d %H:%M:%S}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def with_dates(value: Any) -> Any:
    """Returns a run's JSON with its Unix seconds as local dates and times."""
    if isinstance(value, Mapping):
        return {
            key: _local(inner)
            if key in _TIMES and isinstance(inner, int | float)
            else with_dates(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [with_dates(inner) for inner in value]
    return value


def _local(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone().replace(microsecond=0)
