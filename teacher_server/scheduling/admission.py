"""Admits requests to the queue while it has a place and the run has quota left.

A run with a quota has a token bucket. A request is admitted while the bucket is above zero, and may
take it below, so that a request larger than a minute's quota still gets through, once in as many
minutes.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from lectern_common.errors import Overloaded
from teacher_server.engine.seam import ScoringRequest
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.fair_share import first_match
from teacher_server.scheduling.requests import Ticket

# Run ids come from clients: beyond this many, the buckets idle longest are forgotten.
_MAX_RUNS = 1000
_MAX_QUOTA_PUSHBACK_SECONDS = 60.0
_MIN_PUSHBACK_SECONDS, _MAX_PUSHBACK_SECONDS = 0.1, 10.0


class Quotas:
    """Token buckets.

    Args:
        tokens_per_minute: shell pattern of run ids -> quota; the first match applies. Runs that
            match none have no quota.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        tokens_per_minute: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens_per_minute = dict(tokens_per_minute or {})
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, when)

    def take(self, run_id: str, tokens: int) -> None:
        """Counts a request against its run's quota.

        Raises:
            Overloaded: the quota is used up; says when there is room again. Nothing was counted.
        """
        quota = first_match(self._tokens_per_minute, run_id, math.inf)
        if quota == math.inf:
            return
        now = self._clock()
        left, when = self._buckets.get(run_id, (quota, now))
        left = min(quota, left + (now - when) * quota / 60)
        if left <= 0:
            raise Overloaded(
                f"run {run_id} has used its quota of {quota:g} tokens a minute",
                # No client should sleep through a change of quotas.
                retry_after_seconds=min(max(0.1, -left * 60 / quota), _MAX_QUOTA_PUSHBACK_SECONDS),
            )
        self._buckets[run_id] = (left - tokens, now)
        self._buckets.move_to_end(run_id)
        if len(self._buckets) > _MAX_RUNS:
            self._buckets.popitem(last=False)


class Admission:
    """Refuses requests that would wait too long.

    Args:
        max_queued_requests: requests waiting, running or being read, before more are refused. A
            run may have as many of them as are left free, so that others always find a place.
        accounting: knows how fast the queue empties.
        quotas: how much a run may ask for.
    """

    def __init__(
        self, max_queued_requests: int, accounting: Accounting, quotas: Quotas | None = None
    ) -> None:
        self._max_queued_requests = max_queued_requests
        self._accounting = accounting
        self._quotas = quotas or Quotas()

    def require(self, request: ScoringRequest, tickets: Sequence[Ticket]) -> None:
        """Raises unless there is a place for a request beside `tickets`.

        Raises:
            Overloaded: the queue is full, or the run's part of it, or its quota is used up; says
                when to retry. Nothing was counted.
        """
        self.require_place(request.run_id, tickets)
        self._quotas.take(request.run_id, request.num_tokens)

    def require_place(self, run_id: str, tickets: Sequence[Ticket]) -> None:
        """Raises Overloaded unless the queue has a place for the run now."""
        free = self._max_queued_requests - len(tickets)
        held = sum(ticket.request.run_id == run_id for ticket in tickets)
        if free <= 0:
            what = f"{len(tickets)} requests are waiting or running, the most this server accepts"
        elif held >= free and held > 0:
            what = f"run {run_id} already has {held} requests here; {free} places are for others"
        else:
            return
        raise Overloaded(what, retry_after_seconds=self._pushback_seconds(tickets))

    def _pushback_seconds(self, tickets: Sequence[Ticket]) -> float:
        """Returns roughly how long half of the queue takes."""
        tokens_per_second = self._accounting.tokens_per_second() or 1000.0
        seconds = sum(ticket.waiting_tokens for ticket in tickets) / tokens_per_second / 2
        return min(max(seconds, _MIN_PUSHBACK_SECONDS), _MAX_PUSHBACK_SECONDS)
