"""Requests in the queue, and the forwards that they wait for. Event loop only.

A ticket is one accepted request. A flight is a base ask that is to be computed, or is being
computed, with every ticket that waits for it. There is at most one flight for a base ask.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from teacher_server.engine.seam import ComputedRows, ScoringRequest, SequenceAsk

# Answered bytes that a client has not read yet. Beyond this many, only the forward whose answer it
# reads next is begun for it: a slow reader costs this much memory and one batch's rows, and holds
# up nobody.
MAX_UNREAD_BYTES = 16 << 20


class Ticket:
    """One accepted request; made only by Batcher.admitted.

    Attributes:
        pending: index of each ask that is not answered yet -> the flight that it waits for; in
            rising order.
        waiting_tokens: tokens of the asks that are not answered yet.
        queue_seconds: from arrival until the first of its sequences was begun.
        compute_seconds: its share of forwards, and the time to derive its answers.
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
        """Returns whether the client still waits; also called on the model thread."""
        return not (self.gone or self.failed or self.expired(now))

    def takes(self, index: int) -> bool:
        """Returns whether there is room for an answer, or it is the next to be read."""
        return self._unread_bytes < MAX_UNREAD_BYTES or index == self._next_index

    def next_flights(self, most: int) -> Iterator["Flight"]:
        """Yields the flights that may begin for it now, in order, among its first `most`."""
        if self._unread_bytes < MAX_UNREAD_BYTES:
            flights = itertools.islice(self.pending.values(), most)
            yield from (flight for flight in flights if not flight.running)
        elif (flight := self.pending.get(self._next_index)) is not None and not flight.running:
            yield flight

    def sort_pending(self) -> None:
        """Restores the rising order of `pending`."""
        self.pending = dict(sorted(self.pending.items()))

    def start(self, now: float) -> None:
        """Records the time in the queue, once."""
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
        """Ends it with an error; the caller drops what it waits for."""
        self._error = error
        self._changed.set()

    async def answer(self, index: int) -> ComputedRows:
        """Waits for the rows of one ask and returns them; asks are read in rising order.

        Raises:
            LecternError: or any other exception that ended the request.
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
    """A base ask to compute, and every ticket that waits for it.

    Attributes:
        waiters: in order of arrival -> whether it takes the answer, known once the forward runs; a
            waiter without room when the forward begins has to wait for another one.
        payers: the tickets that take the answer, even if they have gone since.
    """

    key: bytes
    base: SequenceAsk
    waiters: dict[Waiter, bool] = field(default_factory=dict)
    payers: list[Ticket] = field(default_factory=list)
    running: bool = False

    @property
    def comes_again(self) -> bool:
        """Whether its rows belong in the cache: not if every waiter says that they come once."""
        waiting = [ticket for ticket, _ in self.waiters]
        return not all(ticket.request.comes_once for ticket in (*waiting, *self.payers))


class Flights:
    """All flights, by the key of their base ask."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Flight] = {}

    def join(self, ticket: Ticket, index: int, base: SequenceAsk, key: bytes) -> Flight:
        """Makes one ask of a ticket wait for the flight of its base ask; returns the flight."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = Flight(key, base)
        ticket.pending[index] = flight
        flight.waiters[ticket, index] = False
        if flight.running:
            self._take(flight, ticket, index)
        return flight

    def begin(self, flight: Flight) -> None:
        """Marks its forward as running: waiters with room for the answer take it and pay for it."""
        flight.running = True
        for ticket, index in flight.waiters:
            self._take(flight, ticket, index)

    def end(self, flight: Flight) -> list[Waiter]:
        """Returns the waiters that take the answer; the others wait for a new flight."""
        self.drop(flight)
        for (ticket, index), takes in list(flight.waiters.items()):
            if not takes:
                self.join(ticket, index, flight.base, flight.key)
                ticket.sort_pending()
        return [waiter for waiter, takes in flight.waiters.items() if takes]

    def leave(self, ticket: Ticket, index: int) -> None:
        """Removes a ticket from one of its flights; the ask stays pending."""
        flight = ticket.pending[index]
        flight.waiters.pop((ticket, index), None)
        if not flight.waiters and not flight.running:
            self.drop(flight)

    def leave_all(self, ticket: Ticket) -> None:
        """Removes a ticket from all of its flights; nothing of it is pending any more."""
        for index in ticket.pending:
            self.leave(ticket, index)
        ticket.pending.clear()

    def fail(self, ticket: Ticket, error: Exception) -> None:
        """Ends a ticket with an error and removes it from all of its flights."""
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
