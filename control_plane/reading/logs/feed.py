"""What the streams of one log share: its last pieces, read and encoded once."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from control_plane.reading.logs.pieces import Piece, next_piece
from control_plane.reading.wakes import Wakes, signature
from lectern_common.errors import CorruptData
from lectern_common.logs import get_logger

POLL_SECONDS = 0.5  # logs grow without notice to the control plane
MAX_KEPT_BYTES = 1 << 20

_log = get_logger()


class LogFeed:
    """The last pieces of a log. Belongs to one event loop.

    Args:
        path: the log.
        read: calls a function that reads files, off the event loop, and returns its result.

    Attributes:
        end: the position that has been read up to; None before a stream has reached the end.
    """

    def __init__(self, path: Path, read: Callable[..., Awaitable[Any]]) -> None:
        self.path = path
        self._read = read
        self.news = Wakes()
        self.end: int | None = None
        self._pieces: dict[int, Piece] = {}  # by where each begins, in order
        self._bytes = 0
        self._poll: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._poll is not None:
            self._poll.cancel()

    async def after(self, position: int) -> Piece | None:
        """Returns the piece that follows a position, from the file if it is not kept."""
        piece = self._pieces.get(position)
        if piece is None and position != self.end:
            # Not beyond what is kept, so that this stream, too, goes on with the next piece.
            stop = self.end if self.end is not None and self.end > position else None
            piece = await self.next_piece(position, stop)
            if piece is None and self.end is None:
                self.end = position
                self._poll = asyncio.create_task(self._follow())
        return piece

    async def next_piece(
        self, position: int, stop: int | None = None, *, whole: bool = False
    ) -> Piece | None:
        """Returns what `pieces.next_piece` does, read from the file."""
        found: Piece | None = await self._read(
            partial(next_piece, self.path, position, stop, whole=whole)
        )
        return found

    async def _follow(self) -> None:
        """Adds what is appended to the log, until cancelled."""
        seen: object = None
        while self.end is not None:
            now = await self._read(signature, self.path)
            if now != seen:
                try:
                    piece = await self.next_piece(self.end)
                except CorruptData as error:
                    _log.error("log not read", path=str(self.path), error=str(error))
                    piece = None
                if piece is not None:
                    self._add(piece)
                    continue
                seen = now
            await asyncio.sleep(POLL_SECONDS)

    def _add(self, piece: Piece) -> None:
        if piece.end < piece.begin:  # it is another log
            self._pieces.clear()
            self._bytes = 0
        self.end = piece.end
        self._pieces[piece.begin] = piece
        self._bytes += len(piece.events)
        while self._bytes > MAX_KEPT_BYTES:
            self._bytes -= len(self._pieces.pop(next(iter(self._pieces))).events)
        self.news.wake()
