"""The history of a run: changes of its state and events of its trainer, merged by time.

Both are read from their ends, a page at a time, and each page continues both where the last one
ended. Each source keeps its own order, so a clock that was set back neither loses nor doubles.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from control_plane.reading.logs.tail import valid_unicode
from control_plane.runs.queries import Runs
from control_plane.views.runs import HistoryView
from lectern_common.errors import InvalidRequest
from lectern_common.files import opened_regular
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

RECENT_ENTRIES = 200
RECENT_STATES = 100
RECENT_OF_A_KIND = 50
MAX_EVENT_BYTES = 512 * 1024  # of events.jsonl, read for one page
STATE = "state"  # the control plane records changes of state itself, with what was wanted
# But an outage that began or ended while it was down, only the trainer has recorded.
TEACHER_AWAY, TEACHER_BACK = "teacher_away", "teacher_back"
_STATE_OF = {TEACHER_AWAY: RunState.WAITING_FOR_TEACHER, TEACHER_BACK: RunState.RUNNING}
_WAITING = str(RunState.WAITING_FOR_TEACHER)
NOTICED_SECONDS = 15.0  # within this it has recorded a change that it was up for
_KEYS = ("at", "state", "wanted", "attempt", "reason", "message", "by")


@dataclass(frozen=True)
class HistoryPosition:
    """How far back a history was read; None means the end of each source.

    Attributes:
        seq: of the earliest change of state that was read.
        offset: where the earliest event that was read begins in events.jsonl.
    """

    seq: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        return ".".join("" if part is None else str(part) for part in (self.seq, self.offset))

    @classmethod
    def parse(cls, text: str) -> "HistoryPosition":
        """Returns the position that `str` wrote. Raises InvalidRequest if it is not one."""
        parts = text.split(".")
        if len(parts) != 2 or not all(
            part == "" or (part.isascii() and part.isdigit() and len(part) <= 18) for part in parts
        ):
            raise InvalidRequest(f"{text[:40]!r} is not a position in a history", field="cursor")
        return cls(*(int(part) if part else None for part in parts))


@dataclass(frozen=True)
class _Event:
    entry: HistoryView
    offset: int


def history_page(
    runs: Runs,
    folder: RunFolder,
    position: HistoryPosition = HistoryPosition(),
    limit: int = 50,
    kind: str | None = None,
) -> tuple[list[HistoryView], HistoryPosition | None]:
    """Returns entries before a position, newest first, and the position of the rest.

    Reads at most MAX_EVENT_BYTES of events.jsonl, so a page may be short although there are more.

    Args:
        runs: has the changes of state.
        folder: its events.jsonl holds the trainer's events.
        position: where the page before ended.
        limit: of entries.
        kind: only entries of this kind.

    Returns:
        The entries, and where the next page starts; None if there is none.
    """
    rows: list[dict[str, Any]] = []
    events: list[_Event]
    if kind in (None, STATE):
        rows = runs.newest_history(folder.run_id, limit + 1, position.seq)
    events, begin, offset = [], 0, 0
    if kind != STATE:
        events, begin, offset = _events_before(folder, position.offset, kind)
        events = [event for event in events if not _is_recorded(runs, folder, event.entry)]
    seq = rows[0]["seq"] + 1 if rows else position.seq
    entries: list[HistoryView] = []
    while len(entries) < limit and (events or rows):
        if not events and begin > 0:
            break  # earlier events may be younger than the next change of state
        if events and (not rows or events[0].entry.at > rows[0]["at"]):
            event = events.pop(0)
            entries.append(event.entry)
            offset = event.offset
        else:
            seq = rows[0]["seq"]
            entries.append(_of_state(rows.pop(0)))
    if not events:
        offset = begin
    more = bool(rows or events) or begin > 0
    return entries, HistoryPosition(seq, offset) if more else None


def recent_history(runs: Runs, folder: RunFolder) -> list[HistoryView]:
    """Returns the last RECENT_ENTRIES entries, oldest first.

    So that no kind crowds out the others, at most RECENT_STATES of them are changes of state, and
    RECENT_OF_A_KIND of each other kind.
    """
    states = [_of_state(row) for row in runs.newest_history(folder.run_id, RECENT_STATES)]
    counts: Counter[str] = Counter()

    def is_recent(entry: HistoryView) -> bool:
        counts[entry.kind] += 1
        return counts[entry.kind] <= RECENT_OF_A_KIND

    found = (event.entry for event in _events_before(folder, None, None)[0])
    fresh = (entry for entry in found if not _is_recorded(runs, folder, entry))
    events = list(islice(filter(is_recent, fresh), RECENT_ENTRIES - len(states)))
    return list(_newest_first(states, events))[::-1]


def _newest_first(
    states: Sequence[HistoryView], events: Sequence[HistoryView]
) -> Iterator[HistoryView]:
    """Yields the entries of two lists, each newest first, without changing the order of either."""
    first, second = list(states), list(events)
    while first or second:
        takes_event = second and (not first or second[0].at > first[0].at)
        yield (second if takes_event else first).pop(0)


def _is_recorded(runs: Runs, folder: RunFolder, entry: HistoryView) -> bool:
    """Returns whether the control plane has recorded the change of state that an event is of."""
    state = _STATE_OF.get(entry.kind)
    return state is not None and runs.entered(
        folder.run_id, state, entry.at - 1, entry.at + NOTICED_SECONDS
    )


def _of_state(row: dict[str, Any]) -> HistoryView:
    return HistoryView(kind=STATE, **{key: row[key] for key in _KEYS})


def _events_before(
    folder: RunFolder, end: int | None, kind: str | None
) -> tuple[list[_Event], int, int]:
    """Returns the events that end at or before an offset of events.jsonl, newest first.

    Reads one block before that offset; returns with the events where the first whole line of the
    block begins, 0 at the beginning of the file, and where the block ends. Lines that are no events
    are left out.
    """
    try:
        with opened_regular(folder.events_path) as file:
            size = file.seek(0, 2)
            end = size if end is None else min(end, size)
            start = max(0, end - MAX_EVENT_BYTES)
            file.seek(start)
            block = file.read(end - start)
    except FileNotFoundError:
        return [], 0, 0
    if start > 0:
        # The first line lacks its start, unless no line ends here: then it is passed over.
        cut = block.find(b"\n") + 1
        if cut < len(block):
            start, block = start + cut, block[cut:]
    events: list[_Event] = []
    at = start
    is_away = False
    for line in block.split(b"\n")[:-1]:
        entry = _event(line)
        if entry is not None and entry.kind == STATE:
            was_away, is_away = is_away, entry.details.get("state") == _WAITING
            entry = _of_outage(entry, began=is_away, ended=was_away and not is_away)
        if entry is not None and kind in (None, entry.kind):
            events.append(_Event(entry, at))
        at += len(line) + 1
    return events[::-1], start, end


def _of_outage(entry: HistoryView, *, began: bool, ended: bool) -> HistoryView | None:
    """Returns the entry of an outage that a change of the trainer's state begins or ends."""
    if began:
        return HistoryView(at=entry.at, kind=TEACHER_AWAY, message=entry.message)
    if ended and entry.details.get("state") == str(RunState.RUNNING):
        return HistoryView(at=entry.at, kind=TEACHER_BACK, message="the teacher answers again")
    return None


def _event(line: bytes) -> HistoryView | None:
    """Returns the event of a line; None if it is none."""
    try:
        # Numbers that are not finite cannot be answered as JSON.
        event = valid_unicode(json.loads(line, parse_constant=lambda _: None, parse_float=_finite))
        at, kind = float(event.pop("time")), str(event.pop("kind"))
        message = event.pop("message", None)
        if not math.isfinite(at):
            return None
        text = None if message is None else str(message)
        return HistoryView(at=at, kind=kind, message=text, details=event)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
