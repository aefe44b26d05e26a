"""Requests on their way through the queue, and the forwards that they wait for. Event loop only.

A ticket is one accepted request. A flight is one forward's worth of work, to come or under way: a
base ask, and every ticket that waits for it. There is at most one flight for a base ask.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from teacher_server.engine.seam import ComputedRows, ScoringRequest, SequenceAsk

# Answered bytes that a client has not taken yet, beyond which no forward is begun for it, but for
# the one that it waits for: a slow reader costs this much memory and one batch's rows, and holds up
# nobody.
MAX_UNREAD_BYTES = 16 << 20


class Ticket:
    """One accepted request; only Batcher.admitted makes one.

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

    def expired(self, now: float) -> bool:
        return self.deadline is not None and self.deadline <= now

    def wanted(self, now: float) -> bool:
        """Returns whether an answer is still waited for; also called on the model thread."""
        return not (self.gone or self.failed or self.expired(now))

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


Waiter = tuple[Ticket, int]  # a ticket, and the index of its ask


@dataclass(eq=False)
class Flight:
    """One forward's worth of work: a base ask, and every ticket that waits for it.

    Attributes:
        waiters: in order of arrival; once it runs, whether each takes the answer: one without room
            for it when the forward began is to wait for another.
        payers: those who take, or would have, had they not gone since.
    """

    key: bytes
    base: SequenceAsk
    waiters: dict[Waiter, bool] = field(default_factory=dict)
    payers: list[Ticket] = field(default_factory=list)
    running: bool = False


class Flights:
    """All flights, by the key of their base ask."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Flight] = {}

    def join(self, ticket: Ticket, index: int, base: SequenceAsk, key: bytes) -> Flight:
        """Makes one ask of a ticket wait for the flight of its base ask, and returns that."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = Flight(key, base)
        ticket.pending[index] = flight
        flight.waiters[ticket, index] = False
        if flight.running:
            self._take(flight, ticket, index)
        return flight

    def begin(self, flight: Flight) -> None:
        """From now on its forward runs: those with room for the answer take it, and pay for it."""
        flight.running = True
        for ticket, index in flight.waiters:
            self._take(flight, ticket, index)

    def end(self, flight: Flight) -> list[Waiter]:
        """Returns who takes the answer; those without room wait for a new flight."""
        self.drop(flight)
        for (ticket, index), takes in list(flight.waiters.items()):
            if not takes:
                self.join(ticket, index, flight.base, flight.key)
                ticket.sort_pending()
        return [waiter for waiter, takes in flight.waiters.items() if takes]

    def leave(self, ticket: Ticket, index: int) -> None:
        """Takes a ticket off one of its flights; the ask stays pending."""
        flight = ticket.pending[index]
        flight.waiters.pop((ticket, index), None)
        if not flight.waiters and not flight.running:
            self.drop(flight)

    def leave_all(self, ticket: Ticket) -> None:
        """Takes a ticket off all of its flights; nothing of it is pending any more."""
        for index in ticket.pending:
            self.leave(ticket, index)
        ticket.pending.clear()

    def fail(self, ticket: Ticket, error: Exception) -> None:
        """Ends a ticket with an error; nothing of it is waited for any more."""
        ticket.fail(error)
        self.leave_all(ticket)

    def fail_all(self, flight: Flight, error: Exception) -> None:
        """Ends every ticket that waits for a flight, and forgets the flight."""
        self.drop(flight)
        for ticket, _ in list(flight.waiters):
            self.fail(ticket, error)

    def drop(self, flight: Flight) -> None:
        """Forgets a flight; another one of the same key is left alone."""
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def _take(self, flight: Flight, ticket: Ticket, index: int) -> None:
        if ticket.takes(index):
            flight.waiters[ticket, index] = True
            flight.payers.append(ticket)
