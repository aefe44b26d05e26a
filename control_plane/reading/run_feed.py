"""What the streams of one run share: its last changes of state, and the ends of metrics and log.

The file is looked at once for all streams. A stream that is behind what is kept here reads the file
itself, until it finds a place that is.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from control_plane.reading.events import event_body
from control_plane.reading.logs.feed import LogFeed
from control_plane.reading.wakes import Wakes, signature
from lectern_common.json_lines import NewRecords, Position, read_after
from lectern_common.logs import get_logger

POLL_SECONDS = 0.5  # metric files change without notice to the control plane
MAX_KEPT_BYTES = 1 << 20
MAX_KEPT_STATES = 1000
_Read = TypeVar("_Read")

_log = get_logger()


@dataclass(frozen=True)
class Piece:
    """One event of the metrics: a record or, without `end`, the news that the file went back."""

    body: bytes
    end: Position | None


class RunFeed:
    """The last events of one run, encoded but for their ids. Belongs to one event loop.

    Args:
        run_id: of the run.
        metrics_path: its metrics.jsonl.
        begin: the `seq` after which every change of state will be added; None: not yet known.
        files: threads for reads of files, those of its log included, which hang as long as a disk
            does; None means those of the event loop.

    Attributes:
        news: wakes at changes of state, and for metrics.
        turns: wakes at changes of state.
        streams: how many share it.
        deleted: the run is gone.
    """

    def __init__(
        self, run_id: str, metrics_path: Path, begin: int | None, files: Executor | None = None
    ) -> None:
        self.run_id = run_id
        self.metrics_path = metrics_path
        self.news = Wakes()
        self.turns = Wakes()
        self.streams = 0
        self.deleted = False
        self.states_begin = begin
        self._files = files
        self._states: deque[tuple[int, dict[str, Any]]] = deque()
        self._pieces: deque[Piece] = deque()
        self._bytes = 0
        self._first = 0  # number of the first piece
        self._places: dict[Position, int] = {}  # number of the piece that follows a position
        self._placed: deque[tuple[Position, int]] = deque()
        self._end: Position | None = None
        self._poll: asyncio.Task[None] | None = None
        self._log: LogFeed | None = None

    def close(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
        if self._log is not None:
            self._log.close()

    def wake(self) -> None:
        """Wakes every stream."""
        self.turns.wake()
        self.news.wake()
        if self._log is not None:
            self._log.news.wake()

    def log(self, path: Path) -> LogFeed:
        """Returns the feed of the run's log."""
        if self._log is None:
            self._log = LogFeed(path, self.read)
        return self._log

    async def read(self, function: Callable[..., _Read], *arguments: Any) -> _Read:
        """Returns what a function that reads files returns, off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._files, function, *arguments)

    # ---- changes of state ----------------------------------------------------------------------

    def begin_states(self, seq: int) -> None:
        """Starts keeping changes of state after `seq`."""
        self.states_begin = seq
        self._states.clear()
        self._turned()

    def add_state(self, entry: dict[str, Any]) -> None:
        self._states.append((entry["seq"], entry))
        if len(self._states) > MAX_KEPT_STATES:
            self.states_begin = self._states.popleft()[0]
        self._turned()

    def set_deleted(self) -> None:
        self.deleted = True
        self._turned()

    def states_after(self, seq: int) -> list[dict[str, Any]] | None:
        """Returns the changes of state after `seq`; None if not all of them are kept."""
        if self.states_begin is None or seq < self.states_begin:
            return None
        return [entry for at, entry in self._states if at > seq]

    def _turned(self) -> None:
        self.turns.wake()
        self.news.wake()

    # ---- metrics -------------------------------------------------------------------------------

    def number_after(self, position: Position) -> int | None:
        """Returns the number of the piece that follows a position; None if it is not kept."""
        return self._places.get(position)

    def pieces_from(self, number: int, limit: int) -> list[Piece] | None:
        """Returns the pieces from a number on; None if they are no longer kept."""
        if number < self._first:
            return None
        begin = number - self._first
        return [self._pieces[index] for index in range(begin, len(self._pieces))[:limit]]

    def reached_end(self, position: Position) -> None:
        """Takes a position at the file's end, which a stream has read up to, to read on from."""
        if self._end is None:
            self._end = position
            self._place(position)
            self._poll = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Adds what is appended to the file, until cancelled."""
        seen: object = None
        while self._end is not None:
            now = await self.read(signature, self.metrics_path)
            if now != seen:
                try:
                    new = await self.read(read_after, self.metrics_path, self._end)
                except OSError as error:
                    _log.error("metrics not read", run=self.run_id, error=str(error))
                else:
                    if new.rewound and await self.read(signature, self.metrics_path) is None:
                        # No news: its run is being deleted, or its folder was removed.
                        await asyncio.sleep(POLL_SECONDS)
                        continue
                    seen = None if new.more else now
                    self._add(new)
                    if new.more:
                        continue
            await asyncio.sleep(POLL_SECONDS)

    def _add(self, new: NewRecords) -> None:
        pieces = [Piece(event_body("rewind", {}), None)] if new.rewound else []
        pieces += [Piece(event_body("metrics", record), end) for record, end in new.records]
        for piece in pieces:
            self._pieces.append(piece)
            self._bytes += len(piece.body)
            self._place(piece.end or Position())
        self._end = new.end
        self._place(new.end)
        while self._bytes > MAX_KEPT_BYTES:
            self._bytes -= len(self._pieces.popleft().body)
            self._first += 1
        while self._placed and self._placed[0][1] < self._first:
            position, number = self._placed.popleft()
            if self._places.get(position) == number:
                del self._places[position]
        if pieces:
            self.news.wake()

    def _place(self, position: Position) -> None:
        number = self._first + len(self._pieces)
        if self._places.get(position) != number:
            self._places[position] = number
            self._placed.append((position, number))
