"""Requests on their way through the queue. Event loop only."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from teacher_server.engine import ComputedRows, ScoringRequest

if TYPE_CHECKING:
    from teacher_server.flights import Flight

# Answered bytes that a client has not taken yet, beyond which no forward is begun for it, but for
# the one that it waits for: a slow reader costs this much memory and one batch's rows, and holds up
# nobody.
MAX_UNREAD_BYTES = 16 << 20


class Ticket:
    """One accepted request. Made by Batcher.admitted alone.

    Attributes:
        pending: index of each ask that is not answered yet -> the flight that it waits for; in
            rising order.
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
        self._answers: dict[int, ComputedRows] = {}
        self._next_index = 0
        self._unread_bytes = 0
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def takes(self, index: int) -> bool:
        """Returns whether an answer may come: there is room, or it is the next to be read."""
        return self._unread_bytes < MAX_UNREAD_BYTES or index == self._next_index

    def next_flights(self, most: int) -> Iterator["Flight"]:
        """Yields the flights that may be begun for it now, in order; looks at `most` at most."""
        if self._unread_bytes < MAX_UNREAD_BYTES:
            flights = itertools.islice(self.pending.values(), most)
            yield from (flight for flight in flights if not flight.running)
        elif (flight := self.pending.get(self._next_index)) is not None and not flight.running:
            yield flight

    def sort_pending(self) -> None:
        """Puts `pending` in rising order again."""
        self.pending = dict(sorted(self.pending.items()))

    def start(self, now: float) -> None:
        """Counts the wait, once."""
        if not self.started:
            self.started = True
            self.queue_seconds = now - self._arrived

    def deliver(self, index: int, rows: ComputedRows) -> None:
        del self.pending[index]
        self.waiting_tokens -= self.request.asks[index].num_tokens
        self._answers[index] = rows
        self._unread_bytes += rows.num_bytes
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Ends it with an error; what waits of it is to be dropped."""
        self._error = error
        self._changed.set()

    async def answer(self, index: int) -> ComputedRows:
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
