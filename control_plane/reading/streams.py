"""Server-sent events of changes, each with an id to resume from after a lost connection.

Each stream sends at its own pace what the feeds keep for all of them, and reads the store and the
run folder itself only where it is behind that.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from control_plane.reading.events import event, event_body
from control_plane.reading.feed import RETRY_SECONDS, Feed
from control_plane.reading.run_feed import RunFeed
from control_plane.reading.wakes import set_within
from control_plane.runs.queries import Runs
from lectern_common.errors import InvalidRequest
from lectern_common.json_lines import Position, read_after
from lectern_common.logs import get_logger

PING_SECONDS = 15.0
MAX_PIECES = 500  # sent at once
MAX_STATES = 1000
PING = b": still here\n\n"
RETRY = b"retry: 1000\n\n"
_STATE_KEYS = ("at", "state", "wanted", "reason", "message", "attempt", "by")

_log = get_logger()


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


async def list_events(feed: Feed, newest: int, after: int | None) -> AsyncGenerator[bytes, None]:
    """Yields a `run` event for each run that changed, with its revision as id, and a `deleted`
    event with the run's id for each run that is gone, and an `alert` event for each alert; `task`
    and `deleted` for tasks alike.

    A run that changed several times while the client was away is sent once, as it is now. `rewind`
    means that the store went back (a restored backup): fetch the whole list again.

    Args:
        feed: keeps the last changes.
        newest: the store's newest revision.
        after: revision to continue from; None begins with the next change.
    """
    revision = newest if after is None else min(after, newest)
    yield RETRY
    if after is not None and after > newest:
        yield event("rewind", {}, str(revision))
    while not feed.closed:
        news = feed.news.next()
        kept = feed.after(revision)
        if kept is None:
            try:
                kept = await asyncio.to_thread(feed.read_after, revision)
            except SQLAlchemyError as error:  # busy or full: this client waits, it loses nothing
                _log.error("changes not read", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
        data, revision = kept
        if data:
            yield data
        elif not await set_within(news, PING_SECONDS):
            yield PING


async def run_events(
    feed: Feed, run_id: str, metrics_path: Path, position: RunPosition
) -> AsyncGenerator[bytes, None]:
    """Yields `state` and `metrics` events of one run, from `position` on, each exactly once.

    `rewind` means that the trainer went back to a checkpoint: all earlier metric records are void,
    and the file follows from its start. `deleted` is the last event: the run is gone.
    """
    yield RETRY
    with feed.of_run(run_id, metrics_path) as run:
        client = _RunClient(feed.runs, run, position)
        is_gone = not await asyncio.to_thread(feed.runs.names, [run_id])
        while not feed.closed:
            news = run.news.next()
            is_gone = is_gone or run.deleted
            try:
                data = await client.next()
            except (SQLAlchemyError, OSError) as error:
                _log.error("run not read", run=run_id, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if data:
                yield data
            elif is_gone:
                yield event("deleted", {"id": run_id}, str(client.position))
                return
            elif not await set_within(news, PING_SECONDS):
                client.looks_itself()
                yield PING


class _RunClient:
    """One client's place in the stream of a run."""

    def __init__(self, runs: Runs, feed: RunFeed, position: RunPosition) -> None:
        self._runs = runs
        self._feed = feed
        self._seq_seen = position.history_seq  # no change of state up to it is missing
        self._number: int | None = None  # of the feed's next piece; None: it reads the file
        self.position = position

    def looks_itself(self) -> None:
        """Has the next metrics read from the file."""
        self._number = None

    async def next(self) -> bytes:
        """Returns the next events, and moves on; b"" if there are none now."""
        parts: list[bytes] = []
        for entry in await self._states():
            self.position = RunPosition(entry["seq"], self.position.metrics)
            self._add(parts, event_body("state", {key: entry[key] for key in _STATE_KEYS}))
        await self._add_metrics(parts)
        return b"".join(parts)

    async def _states(self) -> list[dict[str, Any]]:
        begin = self._feed.states_begin
        found = self._feed.states_after(max(self._seq_seen, self.position.history_seq))
        if found is None:
            seq = self.position.history_seq
            found = await asyncio.to_thread(self._runs.history, self._feed.run_id, seq, MAX_STATES)
            if len(found) < MAX_STATES and begin is not None:
                self._seq_seen = begin
        return found

    async def _add_metrics(self, parts: list[bytes]) -> None:
        if self._number is None:
            self._number = self._feed.number_after(self.position.metrics)
        pieces = None
        if self._number is not None:
            pieces = self._feed.pieces_from(self._number, MAX_PIECES)
        if pieces is None:
            await self._read_metrics(parts)
            return
        for piece in pieces:
            self._move(piece.end or Position())
            self._add(parts, piece.body)
        self._number = (self._number or 0) + len(pieces)

    async def _read_metrics(self, parts: list[bytes]) -> None:
        """Adds the next records of the file, which the feed does not keep."""
        self._number = None
        path = self._feed.metrics_path
        more = True
        while more and not parts:
            new = await self._feed.read(read_after, path, self.position.metrics)
            if new.rewound:
                self._move(Position())
                self._add(parts, event_body("rewind", {}))
            for record, after in new.records:
                self._move(after)
                self._add(parts, event_body("metrics", record))
            self._move(new.end)
            more = new.more
        if not more:
            self._feed.reached_end(self.position.metrics)

    def _move(self, metrics: Position) -> None:
        self.position = RunPosition(self.position.history_seq, metrics)

    def _add(self, parts: list[bytes], body: bytes) -> None:
        parts.append(f"id: {self.position}\n".encode() + body)
