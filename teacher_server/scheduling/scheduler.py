"""Chooses the next batch: which run leads, which sequences join, how many fit.

Policy only: computes nothing, imports no torch, awaits nothing.
"""

from collections.abc import Sequence

from lectern_common.logs import get_logger
from teacher_server.engine.seam import ModelFacts
from teacher_server.scheduling.batch_shapes import NearLengths, equal_lengths
from teacher_server.scheduling.fair_share import FairShare
from teacher_server.scheduling.requests import Flight, Ticket

log = get_logger()

# Sequences of one request that are considered for a batch.
_WINDOW = 128
# After a batch that ran out of memory, batches shrink, but not below this part of the setting, and
# grow again by this part with each full batch that fits.
_SMALLEST_PART, _GROWTH = 1 / 16, 1 / 64


class Scheduler:
    """Chooses batches, as large as the setting and the memory allow.

    Args:
        facts: of the model.
        fair_share: decides which run leads.
        batch_tokens: tokens per forward, padding included; a longer sequence is computed alone.
    """

    def __init__(
        self, facts: ModelFacts, fair_share: FairShare | None = None, batch_tokens: int = 1
    ) -> None:
        self.fair_share = fair_share or FairShare()
        self._facts = facts
        self._batch_tokens = batch_tokens
        self._fitting_tokens = batch_tokens  # what fits into memory, as far as is known
        self._near_lengths = NearLengths()

    def next_batch(self, tickets: Sequence[Ticket]) -> list[Flight]:
        """Returns the flights to compute now, the leader first; empty if nothing can run."""
        heads: dict[str, Flight] = {}
        for ticket in tickets:
            if ticket.request.run_id not in heads:
                head = next(ticket.next_flights(_WINDOW), None)
                if head is not None:
                    heads[ticket.request.run_id] = head
        if not heads:
            return []
        run_id = self.fair_share.next(heads)
        leader = heads[run_id]
        if not self._facts.offers_hidden or self._fitting_tokens <= leader.base.num_tokens:
            return [leader]
        flights = {leader.key: leader}
        for ticket in tickets:
            other = ticket.request.run_id
            if other == run_id or self.fair_share.has_credit(other):
                flights.update((flight.key, flight) for flight in ticket.next_flights(_WINDOW))
        waiting = list(flights.values())
        lengths = [flight.base.num_tokens for flight in waiting]
        choose = equal_lengths if self._facts.mode == "independent" else self._near_lengths
        return [waiting[index] for index in choose(lengths, 0, self._fitting_tokens)]

    def ran_out_of_memory(self, failed_tokens: int) -> None:
        """Makes batches smaller than one that did not fit."""
        smallest = max(1, int(self._batch_tokens * _SMALLEST_PART))
        self._fitting_tokens = max(smallest, min(self._fitting_tokens, failed_tokens) // 2)
        log.warning("out of memory", tokens=failed_tokens, batch_tokens=self._fitting_tokens)

    def fitted(self, fitted_tokens: int) -> None:
        """Lets batches grow again if a full one fitted."""
        if fitted_tokens >= self._fitting_tokens // 2:
            larger = self._fitting_tokens + max(1, int(self._fitting_tokens * _GROWTH))
            self._fitting_tokens = min(self._batch_tokens, larger)
