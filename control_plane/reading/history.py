"""The history of a run: changes of its state and events of its trainer, merged by time."""

from collections.abc import Iterator, Sequence
from typing import Any

from control_plane.reading.log import valid_unicode
from control_plane.views import HistoryView
from lectern_common.json_lines import last_json_lines
from lectern_common.run_folder import RunFolder

MAX_ENTRIES = 200
MAX_EVENT_BYTES = 128 * 1024
# The control plane records changes of state itself, with what was wanted.
_RECORDED_HERE = frozenset({"state"})


def run_history(changes: Sequence[dict[str, Any]], folder: RunFolder) -> list[HistoryView]:
    """Returns the last MAX_ENTRIES entries, oldest first.

    Args:
        changes: changes of state, as runs.queries.Runs.history returns them.
        folder: its events.jsonl holds the trainer's events.
    """
    states = [
        HistoryView(kind="state", **{key: change[key] for key in _KEYS}) for change in changes
    ]
    dated = [*_rising(states), *_rising(_trainer_events(folder))]
    dated.sort(key=lambda pair: pair[0])
    return [entry for _, entry in dated][-MAX_ENTRIES:]


_KEYS = ("at", "state", "wanted", "attempt", "reason", "message")


def _rising(entries: Sequence[HistoryView]) -> Iterator[tuple[float, HistoryView]]:
    """Yields each with a time that never falls, so that a clock set back keeps their order."""
    latest = float("-inf")
    for entry in entries:
        latest = max(latest, entry.at)
        yield latest, entry


def _trainer_events(folder: RunFolder) -> list[HistoryView]:
    """Returns the last events of events.jsonl; invalid lines are left out."""
    found = []
    for line in last_json_lines(folder.events_path, MAX_EVENT_BYTES):
        try:
            event = valid_unicode(line)
            at, kind = float(event.pop("time")), str(event.pop("kind"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        message = event.pop("message", None)
        if kind not in _RECORDED_HERE:
            text = None if message is None else str(message)
            found.append(HistoryView(at=at, kind=kind, message=text, details=event))
    return found[-MAX_ENTRIES:]
