"""Server-sent events of changes, each with an id to resume from after a lost connection.

Each stream reads the store and the run folder at its own pace, so a slow client costs no memory and
loses nothing; `Changes` only tells it when to look.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from control_plane.runs.queries import Runs
from control_plane.runs.record import DeletedRun, Run
from lectern_common.errors import InvalidRequest, Overloaded
from lectern_common.json_lines import NewRecords, Position, read_after

PING_SECONDS = 15.0
POLL_SECONDS = 0.5  # metric files change without notice to the control plane
MAX_STREAMS = 256
_PING = b": still here\n\n"
_RETRY = b"retry: 1000\n\n"


class Changes:
    """Wakes every stream when something changed. `notify` may be called from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()
        self.closed = False
        self.streams = 0

    def start(self) -> None:
        """Binds to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def notify(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Ends every stream."""
        self.closed = True
        self.notify()

    def next(self) -> asyncio.Event:
        """Returns the event of the next change: take it before looking, wait for it after."""
        return self._event

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def require_room(self) -> None:
        """Raises Overloaded if MAX_STREAMS streams are open."""
        if self.streams >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} event streams are open; close one, or try again later")


@dataclass(frozen=True)
class RunPosition:
    """How far a client of one run's stream has read: changes of state, and metrics."""

    history_seq: int = 0
    metrics: Position = field(default_factory=Position)

    def __str__(self) -> str:
        return f"{self.history_seq}-{self.metrics}"

    @classmethod
    def parse(cls, text: str) -> "RunPosition":
        """Returns the position of an event id. Raises InvalidRequest."""
        seq, _, metrics = text.partition("-")
        if not (seq.isascii() and seq.isdigit()) or len(seq) > 18:
            raise InvalidRequest(
                f"{text[:60]!r} is not an event id of a run", field="Last-Event-ID"
            )
        return cls(int(seq), Position.parse(metrics))


async def list_events(
    runs: Runs, changes: Changes, view: Callable[[list[Run]], list[BaseModel]], after: int | None
) -> AsyncIterator[bytes]:
    """Yields a `run` event for each run that changed, with its revision as id, and a `deleted`
    event with the run's id for each run that is gone.

    A run that changed several times while the client was away is sent once, as it is now. `rewind`
    means that the store went back (a restored backup): fetch the whole list again.

    Args:
        after: revision to continue from; None begins with the next change.
    """
    newest = await asyncio.to_thread(runs.newest_revision)
    revision = newest if after is None else after
    yield _RETRY
    if revision > newest:
        revision = newest
        yield _event("rewind", {}, str(revision))
    with _counted(changes):
        while not changes.closed:
            changed = changes.next()
            found = await asyncio.to_thread(runs.changed_since, revision)
            if not found:
                if not await _set_within(changed, PING_SECONDS):
                    yield _PING
                continue
            shown = await asyncio.to_thread(view, [run for run in found if isinstance(run, Run)])
            models = iter(shown)
            revision = found[-1].revision
            yield b"".join(
                _event("deleted", {"id": run.id}, str(run.revision))
                if isinstance(run, DeletedRun)
                else _event("run", next(models).model_dump(mode="json"), str(run.revision))
                for run in found
            )


async def run_events(
    runs: Runs, changes: Changes, run_id: str, metrics_path: Path, position: RunPosition
) -> AsyncIterator[bytes]:
    """Yields `state` and `metrics` events of one run, from `position` on, each exactly once.

    `rewind` means that the trainer went back to a checkpoint: all earlier metric records are void,
    and the file follows from its start. `deleted` is the last event: the run is gone.
    """
    yield _RETRY
    signature: tuple[int, int, int] | None = None
    silent_seconds = 0.0
    with _counted(changes):
        while not changes.closed:
            changed = changes.next()
            parts: list[bytes] = []
            for entry in await asyncio.to_thread(runs.history, run_id, position.history_seq):
                position = RunPosition(entry["seq"], position.metrics)
                state = {key: entry[key] for key in _STATE_KEYS}
                parts.append(_event("state", state, str(position)))
            now = _signature(metrics_path)
            if now is None and not await asyncio.to_thread(runs.names, [run_id]):
                parts.append(_event("deleted", {"id": run_id}, str(position)))
                yield b"".join(parts)
                return
            if now != signature:
                new = await asyncio.to_thread(read_after, metrics_path, position.metrics)
                signature = None if new.more else now
                position = _add_metrics(parts, position, new)
            if parts:
                silent_seconds = 0.0
                yield b"".join(parts)
            elif not await _set_within(changed, POLL_SECONDS):
                silent_seconds += POLL_SECONDS
                if silent_seconds >= PING_SECONDS:
                    silent_seconds = 0.0
                    yield _PING


_STATE_KEYS = ("at", "state", "wanted", "reason", "message", "attempt")


def _add_metrics(parts: list[bytes], position: RunPosition, new: NewRecords) -> RunPosition:
    seq = position.history_seq
    if new.rewound:
        parts.append(_event("rewind", {}, str(RunPosition(seq))))
    for record, after in new.records:
        parts.append(_event("metrics", record, str(RunPosition(seq, after))))
    return RunPosition(seq, new.end)


class _counted:
    """Counts a stream while it is open."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def __enter__(self) -> None:
        self._changes.streams += 1

    def __exit__(self, *_: object) -> None:
        self._changes.streams -= 1


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Returns a value that changes whenever the file does."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _event(kind: str, data: dict[str, Any], event_id: str) -> bytes:
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return f"id: {event_id}\nevent: {kind}\ndata: {text}\n\n".encode()
