"""Forwards to come and under way, and who waits for each: at most one for a base ask.

Event loop only.
"""

from dataclasses import dataclass, field

from teacher_server.engine import SequenceAsk
from teacher_server.tickets import Ticket

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

    def drop(self, flight: Flight) -> None:
        """Forgets a flight; another one of the same key is left alone."""
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def _take(self, flight: Flight, ticket: Ticket, index: int) -> None:
        if ticket.takes(index):
            flight.waiters[ticket, index] = True
            flight.payers.append(ticket)
