"""Requests on their way through the queue, and the forwards that they wait for. Event loop only.

A Ticket is one accepted request; a Flight is one forward's worth of work: a base ask (engine.py)
and every ticket that waits for it, of whatever run.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from teacher_server.engine import Rows, ScoringRequest, SequenceAsk

# Answered bytes that a client has not taken yet, beyond which nothing more is computed for it: a
# slow reader costs this much memory and one sequence's rows, and holds up nobody.
MAX_UNREAD_BYTES = 16 << 20


@dataclass(eq=False)
class Flight:
    """A base ask, and who waits for its rows: (ticket, index of the ticket's ask), oldest first."""

    key: bytes
    base: SequenceAsk
    waiters: list[tuple["Ticket", int]] = field(default_factory=list)
    running: bool = False


class Ticket:
    """One accepted request. Made by Batcher.admitted alone.

    Attributes:
        pending: index of each ask that is not answered yet -> the flight that it waits for.
        waiting_tokens: of those.
        queue_seconds: from arrival until the first of its sequences was begun.
        compute_seconds: its share of forwards, and what was derived for it.
        cache_hits: sequences answered without a forward of their own.
    """

    def __init__(
        self,
        request: ScoringRequest,
        arrived: float,
        deadline: float | None,
        on_read: Callable[[], None],
    ) -> None:
        self.request = request
        self.deadline = deadline  # on the batcher's clock
        self.pending: dict[int, Flight] = {}
        self.waiting_tokens = request.num_tokens
        self.started = False
        self.gone = False
        self.queue_seconds = 0.0
        self.compute_seconds = 0.0
        self.cache_hits = 0
        self._arrived = arrived
        self._on_read = on_read  # reading may make it runnable again
        self._answers: dict[int, Rows] = {}
        self._next_index = 0
        self._unread_bytes = 0
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        return self._unread_bytes < MAX_UNREAD_BYTES

    @property
    def failed(self) -> bool:
        return self._error is not None

    def takes(self, index: int) -> bool:
        """Returns whether an answer may be delivered: there is room, or it is read next."""
        return index in self.pending and (self.has_room or index == self._next_index)

    def start(self, now: float) -> None:
        """Counts the wait, once."""
        if not self.started:
            self.started = True
            self.queue_seconds = now - self._arrived

    def deliver(self, index: int, rows: Rows) -> None:
        del self.pending[index]
        self.waiting_tokens -= self.request.asks[index].num_tokens
        self._answers[index] = rows
        self._unread_bytes += rows.num_bytes
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Ends it with an error; what waits of it is to be dropped."""
        self._error = error
        self._changed.set()

    async def answer(self, index: int) -> Rows:
        """Returns the rows of one ask when they are there; asks are read in rising order.

        Raises:
            LecternError: or whatever else ended the request.
        """
        while index not in self._answers and self._error is None:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        rows = self._answers.pop(index)
        self._unread_bytes -= rows.num_bytes
        self._next_index = index + 1
        self._on_read()
        return rows
