"""The queue between many clients and one model, and the loop that empties it.

1. A request is admitted (admission.py), and each of its sequences joins the flight of its base ask
   (requests.py): one that is waiting or being computed, else a new one.
2. The run whose turn it is (scheduler.py, fair_share.py) leads with its oldest sequence; its other
   sequences, and those of other runs with credit, join if they fit in length (batch_shapes.py).
3. The rows are cached (cache.py) unless their text never comes again, turned into what each waiter
   asked for, and charged to their runs in equal parts.

Policy is separate from execution: an Engine computes, and no torch is imported here. Everything but
the engine's calls runs on the event loop, so nothing needs a lock.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

from lectern_common.errors import TeacherOutOfMemory, TeacherUnavailable
from teacher_server.engine.seam import (
    ComputedRows,
    DeviceLost,
    Engine,
    NoLongerWanted,
    ScoringRequest,
    base_ask,
    selected,
)
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.cache import Cache
from teacher_server.scheduling.requests import Flight, Flights, Ticket
from teacher_server.scheduling.scheduler import Scheduler

_Result = TypeVar("_Result")


def _device_failed() -> TeacherUnavailable:
    return TeacherUnavailable("the teacher's device has failed")


class Batcher:
    """A bounded queue and the loop that empties it.

    Args:
        engine: the model; its `score` and `derived` run on `model_thread`, one call at a time.
        model_thread: an executor with a single thread.
        accounting: counts every forward.
        admission: decides which requests enter the queue.
        scheduler: decides what is computed next.
        cache: rows that were computed before.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        model_thread: Executor,
        accounting: Accounting,
        admission: Admission,
        scheduler: Scheduler,
        cache: Cache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache = cache or Cache(0)
        self.fair_share = scheduler.fair_share
        self._engine = engine
        self._model_thread = model_thread
        self._accounting = accounting
        self._admission = admission
        self._scheduler = scheduler
        self._clock = clock
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
        """Yields the ticket of a request; on exit, drops what of it still waits.

        So a client that disconnects frees its place at once, and no forward runs only for it.

        Raises:
            Overloaded: as Admission.require. Nothing was queued.
        """
        self._admission.require(request, self._tickets)
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
        """Yields the rows of each sequence in order, as they are ready.

        Raises:
            LecternError: or any other exception that ended the request.
        """
        for index in range(len(ticket.request.asks)):
            await self._answer_from_cache(ticket, index)
            yield await ticket.answer(index)

    async def run(self) -> None:
        """Computes what is queued until cancelled.

        Raises:
            DeviceLost: as Engine.score; the process should end.
        """
        while True:
            self._drop_expired()
            batch = self._scheduler.next_batch(self._tickets)
            if batch:
                await self._serve(batch)
            else:
                self._changed.clear()
                await self._changed.wait()
            # Answers from memory never yield: the event loop, and health checks, would starve.
            await asyncio.sleep(0)

    def give_up(self, error: Exception) -> None:
        """Ends every request that still waits for an answer with an error."""
        for ticket in list(self._tickets):
            self._flights.fail(ticket, error)

    def _drop_expired(self) -> None:
        now = self._clock()
        for ticket in self._tickets:
            if ticket.pending and ticket.expired(now):
                late = TeacherUnavailable("the call's deadline passed in the queue")
                self._flights.fail(ticket, late)

    # ---- forwards ------------------------------------------------------------------------------

    async def _serve(self, batch: list[Flight]) -> None:
        """Computes flights, or finds their rows in the cache, and answers their waiters."""
        now = self._clock()
        for flight in batch:
            self._flights.begin(flight)
            for ticket in flight.payers:
                ticket.start(now)
        missing = [flight for flight in batch if not flight.comes_again]
        others = [flight for flight in batch if flight.comes_again]
        kept = await self.cache.find_each([flight.key for flight in others])
        for flight, rows in zip(others, kept, strict=True):
            if rows is None:
                missing.append(flight)
            else:
                await self._finish(flight, rows, 0.0, from_cache=True)
        await self._forward(missing)

    async def _forward(self, flights: list[Flight]) -> None:
        """Computes flights together; after a failure in halves, in the end one by one."""
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
                self._flights.fail_all(flight, _device_failed())
            raise
        except Exception as error:
            if len(flights) == 1:  # its waiters get the error; the servicer logs it
                self._flights.fail_all(flights[0], error)
                return
            if isinstance(error, TeacherOutOfMemory):
                self._scheduler.ran_out_of_memory(computed_tokens)
            half = len(flights) // 2
            await self._forward(flights[:half])
            await self._forward(flights[half:])
            return
        self._scheduler.fitted(computed_tokens)
        seconds = self._clock() - began
        self._accounting.forward(sum(lengths), len(flights), computed_tokens, seconds)
        for flight, rows, length in zip(flights, all_rows, lengths, strict=True):
            if flight.comes_again:
                self.cache.put(flight.key, rows)
            await self._finish(flight, rows, seconds * length / sum(lengths), from_cache=False)

    async def _finish(
        self, flight: Flight, rows: ComputedRows, seconds: float, from_cache: bool
    ) -> None:
        """Ends a flight: charges its part of the forward's seconds, and answers the waiters."""
        self._charge(flight, seconds, from_cache)
        takers = self._flights.end(flight)
        derived: dict[bytes, ComputedRows] = {}  # by key of the ask: equal asks share an answer
        for ticket, index in takers:
            began = self._clock()
            try:
                answer = await self._answer(flight, rows, ticket, index, derived)
            except NoLongerWanted:
                continue
            except DeviceLost:
                self._flights.fail_all(flight, _device_failed())
                raise
            except Exception as error:
                self._flights.fail(ticket, error)
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
        answer = await self._on_model_thread(
            lambda: self._engine.derived(rows, ask, lambda: ticket.wanted(self._clock()))
        )
        derived[key] = answer
        return answer

    async def _answer_from_cache(self, ticket: Ticket, index: int) -> None:
        """Answers an ask at once if its rows are cached and need no work of the model."""
        flight = ticket.pending.get(index)
        ask = ticket.request.asks[index]
        if flight is None or ask.representation.kind != flight.base.representation.kind:
            return
        if ticket.request.comes_once:
            return
        rows = await self.cache.find(flight.key)
        if rows is None or ticket.pending.get(index) is not flight or flight.running:
            return
        ticket.start(self._clock())
        self._flights.leave(ticket, index)
        self._count_hit(ticket, ask.num_tokens)
        ticket.deliver(index, selected(rows, flight.base, ask))

    def _charge(self, flight: Flight, seconds: float, from_cache: bool) -> None:
        """Charges payers equally; all but the first had a cache hit, or all if `from_cache`."""
        tokens = flight.base.num_tokens
        for number, ticket in enumerate(flight.payers):
            part = 1 / len(flight.payers)
            run_id = ticket.request.run_id
            ticket.compute_seconds += part * seconds
            self.fair_share.charge(run_id, part * tokens)
            if not from_cache:
                self._accounting.charged(run_id, part * tokens, part * seconds)
            if from_cache or number > 0:
                self._count_hit(ticket, tokens)
            else:
                self.cache.misses += 1
                self._accounting.cache_miss(run_id, tokens)

    def _count_hit(self, ticket: Ticket, num_tokens: int) -> None:
        ticket.cache_hits += 1
        self.cache.hits += 1
        self._accounting.cache_hit(ticket.request.run_id, num_tokens)

    async def _on_model_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work)
