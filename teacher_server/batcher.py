"""The queue between many clients and one model: who waits, who is next, who is turned away.

1. A request is admitted, and each of its sequences joins the flight of its base ask (flights.py):
   one that is waiting or being computed, else a new one.
2. The run whose turn it is (fair_share.py) leads with its oldest sequence; those of its own and of
   other runs with credit that fit it in length (batch_shapes.py) are computed with it.
3. The rows are kept (cache.py), turned into what each waiter asked for, and charged to their runs
   in equal parts.

Policy apart from execution: an Engine computes, and no torch is imported here. Everything but the
engine's calls runs on the event loop, so nothing is locked.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from lectern_common.errors import Overloaded, TeacherOutOfMemory, TeacherUnavailable
from teacher_server.accounting import Accounting
from teacher_server.batch_shapes import NearLengths, equal_lengths
from teacher_server.cache import Cache
from teacher_server.engine import (
    ComputedRows,
    DeviceLost,
    Engine,
    NoLongerWanted,
    ScoringRequest,
    base_ask,
    selected,
)
from teacher_server.fair_share import FairShare
from teacher_server.flights import Flight, Flights
from teacher_server.quotas import Quotas
from teacher_server.tickets import Ticket

log = structlog.get_logger()

_Result = TypeVar("_Result")

_MIN_PUSHBACK_SECONDS, _MAX_PUSHBACK_SECONDS = 0.1, 10.0
# Sequences of one request that are looked at to fill a batch.
_WINDOW = 128
# After a batch that ran out of memory batches are smaller, but no smaller than this part of what
# was set, and grow again by this part of themselves with each that is full and fits.
_SMALLEST_PART, _GROWTH = 1 / 16, 1 / 64


class Batcher:
    """A bounded queue and the loop that empties it.

    Args:
        engine: the model; its `score` and `derived` run on `model_thread`, one call at a time.
        model_thread: an executor with a single thread.
        accounting: is told of every forward.
        max_queued_requests: requests waiting, running or being read, before more are refused. A
            run may have as many of them as are left free, so that another always finds a place.
        batch_tokens: tokens of a forward, padding included; a longer sequence is computed alone.
        cache: rows that were computed before.
        fair_share: whose turn it is.
        quotas: how much a run may ask for.
        clock: seconds, rising.
    """

    def __init__(
        self,
        engine: Engine,
        model_thread: Executor,
        accounting: Accounting,
        max_queued_requests: int,
        *,
        batch_tokens: int = 1,
        cache: Cache | None = None,
        fair_share: FairShare | None = None,
        quotas: Quotas | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache = cache or Cache(0)
        self.fair_share = fair_share or FairShare()
        self.batch_tokens = batch_tokens
        self._engine = engine
        self._model_thread = model_thread
        self._accounting = accounting
        self._max_queued_requests = max_queued_requests
        self._quotas = quotas or Quotas()
        self._clock = clock
        self._fitting_tokens = batch_tokens  # what memory has room for, as far as is known
        self._near_lengths = NearLengths()
        self._tickets: list[Ticket] = []
        self._flights = Flights()
        self._changed = asyncio.Event()

    @property
    def queued_requests(self) -> int:
        return sum(not ticket.started for ticket in self._tickets)

    @property
    def running_requests(self) -> int:
        return sum(ticket.started for ticket in self._tickets)

    @property
    def queued_tokens(self) -> int:
        """Tokens of sequences that are not answered yet."""
        return sum(ticket.waiting_tokens for ticket in self._tickets)

    @contextlib.contextmanager
    def admitted(self, request: ScoringRequest, timeout_seconds: float | None) -> Iterator[Ticket]:
        """Yields the ticket of a request; on leaving, whatever waits of it is dropped.

        So a client that goes away frees its place at once, and no forward runs for it alone.

        Raises:
            Overloaded: the queue is full, or the run's part of it, or its quota is used up; says
                when to ask again. Nothing was queued.
        """
        self._require_place(request.run_id)
        self._quotas.take(request.run_id, request.num_tokens)
        now = self._clock()
        deadline = None if timeout_seconds is None else now + timeout_seconds
        ticket = Ticket(request, now, deadline, on_read=self._changed.set)
        for index, ask in enumerate(request.asks):
            base = base_ask(ask, self._engine.facts)
            if self._flights.join(ticket, index, base, base.key).running:
                ticket.start(now)
        self._tickets.append(ticket)
        self._changed.set()
        try:
            yield ticket
        finally:
            ticket.gone = True
            self._flights.leave_all(ticket)
            self._tickets.remove(ticket)

    async def answers(self, ticket: Ticket) -> AsyncIterator[ComputedRows]:
        """Yields the rows of one sequence after the other, as they are ready.

        Raises:
            LecternError: or whatever else ended the request.
        """
        for index in range(len(ticket.request.asks)):
            await self._answer_from_cache(ticket, index)
            yield await ticket.answer(index)

    async def run(self) -> None:
        """Computes what is queued, for ever; cancel to end it.

        Raises:
            DeviceLost: as Engine.score; the process had better end.
        """
        while True:
            self._drop_expired()
            batch = self._next_batch()
            if batch:
                await self._serve(batch)
            else:
                self._changed.clear()
                await self._changed.wait()
            # What comes from memory alone would keep the loop, and health with it, to itself.
            await asyncio.sleep(0)

    # ---- who is next ---------------------------------------------------------------------------

    def _next_batch(self) -> list[Flight]:
        """Returns the flights to compute now, the leader first; none where nothing can run."""
        heads: dict[str, Flight] = {}
        for ticket in self._tickets:
            if ticket.request.run_id not in heads:
                head = next(ticket.next_flights(_WINDOW), None)
                if head is not None:
                    heads[ticket.request.run_id] = head
        if not heads:
            return []
        run_id = self.fair_share.next(heads)
        leader = heads[run_id]
        facts = self._engine.facts
        if not facts.offers_hidden or self._fitting_tokens <= leader.base.num_tokens:
            return [leader]
        flights = {leader.key: leader}
        for ticket in self._tickets:
            company = ticket.request.run_id
            if company == run_id or self.fair_share.has_credit(company):
                flights.update((flight.key, flight) for flight in ticket.next_flights(_WINDOW))
        waiting = list(flights.values())
        lengths = [flight.base.num_tokens for flight in waiting]
        choose = equal_lengths if facts.mode == "independent" else self._near_lengths
        return [waiting[index] for index in choose(lengths, 0, self._fitting_tokens)]

    def _drop_expired(self) -> None:
        now = self._clock()
        for ticket in self._tickets:
            if ticket.pending and ticket.deadline is not None and ticket.deadline <= now:
                self._fail(ticket, TeacherUnavailable("the call's deadline passed in the queue"))

    # ---- forwards ------------------------------------------------------------------------------

    async def _serve(self, batch: list[Flight]) -> None:
        """Computes flights, or finds their rows, and answers all who wait for them."""
        now = self._clock()
        for flight in batch:
            self._flights.begin(flight)
            for ticket in flight.payers:
                ticket.start(now)
        kept = await self.cache.find_each([flight.key for flight in batch])
        missing = []
        for flight, rows in zip(batch, kept, strict=True):
            if rows is None:
                missing.append(flight)
            else:
                await self._finish(flight, rows, 0.0, from_cache=True)
        await self._forward(missing)

    async def _forward(self, flights: list[Flight]) -> None:
        """Computes flights together; where that fails in halves, and each alone in the end."""
        for flight in flights:
            if not flight.waiters:
                self._flights.drop(flight)
        flights = [flight for flight in flights if flight.waiters]
        if not flights:
            return
        began = self._clock()
        lengths = [flight.base.num_tokens for flight in flights]
        computed_tokens = len(lengths) * max(lengths)
        try:
            all_rows = await self._on_model_thread(
                lambda: self._engine.score([flight.base for flight in flights])
            )
        except DeviceLost:
            for flight in flights:
                self._fail_all(flight, TeacherUnavailable("the teacher's device has failed"))
            raise
        except Exception as error:
            if len(flights) == 1:  # it is theirs who asked; the servicer says what it was
                self._fail_all(flights[0], error)
                return
            if isinstance(error, TeacherOutOfMemory):
                self._make_batches_smaller(computed_tokens)
            half = len(flights) // 2
            await self._forward(flights[:half])
            await self._forward(flights[half:])
            return
        self._let_batches_grow(computed_tokens)
        seconds = self._clock() - began
        self._accounting.forward(sum(lengths), len(flights), computed_tokens, seconds)
        for flight, rows, length in zip(flights, all_rows, lengths, strict=True):
            self.cache.put(flight.key, rows)
            await self._finish(flight, rows, seconds * length / sum(lengths), from_cache=False)

    def _make_batches_smaller(self, failed_tokens: int) -> None:
        smallest = max(1, int(self.batch_tokens * _SMALLEST_PART))
        self._fitting_tokens = max(smallest, min(self._fitting_tokens, failed_tokens) // 2)
        log.warning("out of memory", tokens=failed_tokens, batch_tokens=self._fitting_tokens)

    def _let_batches_grow(self, fitted_tokens: int) -> None:
        if fitted_tokens >= self._fitting_tokens // 2:
            larger = self._fitting_tokens + max(1, int(self._fitting_tokens * _GROWTH))
            self._fitting_tokens = min(self.batch_tokens, larger)

    async def _finish(
        self, flight: Flight, rows: ComputedRows, seconds: float, from_cache: bool
    ) -> None:
        """Charges a flight to those who take its rows, and answers them.

        Args:
            flight: is over afterwards.
            rows: of its base ask.
            seconds: of the forward, or this flight's part of it.
            from_cache: there was no forward.
        """
        self._charge(flight, seconds, from_cache)
        takers = self._flights.end(flight)
        derived: dict[bytes, ComputedRows] = {}  # by ask: equal ones have one answer
        for ticket, index in takers:
            began = self._clock()
            try:
                answer = await self._answer(flight, rows, ticket, index, derived)
            except NoLongerWanted:
                continue
            except DeviceLost:
                self._fail_all(flight, TeacherUnavailable("the teacher's device has failed"))
                raise
            except Exception as error:
                self._fail(ticket, error)
                continue
            derived_seconds = self._clock() - began
            ticket.compute_seconds += derived_seconds
            self._accounting.derived(ticket.request.run_id, derived_seconds)
            if index in ticket.pending:
                ticket.deliver(index, answer)

    async def _answer(
        self,
        flight: Flight,
        rows: ComputedRows,
        ticket: Ticket,
        index: int,
        derived: dict[bytes, ComputedRows],
    ) -> ComputedRows:
        ask = ticket.request.asks[index]
        if ask.representation.kind == flight.base.representation.kind:
            return selected(rows, flight.base, ask)
        key = ask.key
        if key in derived:
            return derived[key]

        def wanted() -> bool:  # on the model thread
            expired = ticket.deadline is not None and ticket.deadline <= self._clock()
            return not (ticket.gone or ticket.failed or expired)

        answer = await self._on_model_thread(lambda: self._engine.derived(rows, ask, wanted))
        derived[key] = answer
        return answer

    async def _answer_from_cache(self, ticket: Ticket, index: int) -> None:
        """Answers at once what needs nothing of the model."""
        flight = ticket.pending.get(index)
        ask = ticket.request.asks[index]
        if flight is None or ask.representation.kind != flight.base.representation.kind:
            return
        rows = await self.cache.find(flight.key)
        if rows is None or ticket.pending.get(index) is not flight or flight.running:
            return
        ticket.start(self._clock())
        self._flights.leave(ticket, index)
        self._count_hit(ticket)
        ticket.deliver(index, selected(rows, flight.base, ask))

    def _charge(self, flight: Flight, seconds: float, from_cache: bool) -> None:
        """Charges tokens and seconds in equal parts; all payers but one had a hit, or all."""
        tokens = flight.base.num_tokens
        for number, ticket in enumerate(flight.payers):
            part = 1 / len(flight.payers)
            run_id = ticket.request.run_id
            ticket.compute_seconds += part * seconds
            self.fair_share.charge(run_id, part * tokens)
            if not from_cache:
                self._accounting.charged(run_id, part * tokens, part * seconds)
            if from_cache or number > 0:
                self._count_hit(ticket)
            else:
                self.cache.misses += 1
                self._accounting.cache_miss(run_id)

    def _count_hit(self, ticket: Ticket) -> None:
        ticket.cache_hits += 1
        self.cache.hits += 1
        self._accounting.cache_hit(ticket.request.run_id)

    async def _on_model_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        ticket.fail(error)
        self._flights.leave_all(ticket)

    def _fail_all(self, flight: Flight, error: Exception) -> None:
        self._flights.drop(flight)
        for ticket, _ in list(flight.waiters):
            self._fail(ticket, error)

    def _require_place(self, run_id: str) -> None:
        """Raises Overloaded where this run gets no place in the queue now."""
        free = self._max_queued_requests - len(self._tickets)
        held = sum(ticket.request.run_id == run_id for ticket in self._tickets)
        if free <= 0:
            what = (
                f"{len(self._tickets)} requests are waiting or running, the most this server takes"
            )
        elif held >= free and held > 0:
            what = f"{held} requests of run {run_id} are here; {free} places are left for others"
        else:
            return
        raise Overloaded(what, retry_after_seconds=self._pushback_seconds())

    def _pushback_seconds(self) -> float:
        """Returns about how long half of the queue takes."""
        tokens_per_second = self._accounting.tokens_per_second() or 1000.0
        seconds = self.queued_tokens / tokens_per_second / 2
        return min(max(seconds, _MIN_PUSHBACK_SECONDS), _MAX_PUSHBACK_SECONDS)
