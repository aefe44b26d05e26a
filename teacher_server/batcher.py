"""The queue between many clients and one model: who waits, who is next, who is turned away.

Policy apart from execution: `next_ticket` decides, an Engine computes, and no torch is imported
here. Everything but the engine's `score` runs on the event loop, so nothing is locked.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor

from lectern_common.errors import Overloaded, TeacherUnavailable
from teacher_server.accounting import Accounting
from teacher_server.engine import DeviceLost, Engine, ScoringRequest, SequenceAsk

# Answered bytes that a client has not taken yet, beyond which nothing more is computed for it: a
# slow reader costs this much memory and one sequence's rows, and holds up nobody.
MAX_UNREAD_BYTES = 16 << 20

_MIN_PUSHBACK_SECONDS, _MAX_PUSHBACK_SECONDS = 0.1, 10.0


class Ticket:
    """One accepted request on its way through the queue. Made by Batcher.admitted alone."""

    def __init__(
        self,
        request: ScoringRequest,
        arrived: float,
        deadline: float | None,
        on_read: Callable[[], None],
    ) -> None:
        self.request = request
        self.deadline = deadline  # on the batcher's clock
        self.queue_seconds = 0.0
        self.compute_seconds = 0.0
        self._arrived = arrived
        self._on_read = on_read  # reading may make it runnable again
        self._waiting = deque(request.asks)
        self._answers: deque[memoryview] = deque()
        self._error: Exception | None = None
        self._unread_bytes = 0
        self._changed = asyncio.Event()

    @property
    def started(self) -> bool:
        """Has a forward of it begun."""
        return len(self._waiting) < len(self.request.asks)

    @property
    def waiting_tokens(self) -> int:
        return sum(len(ask.token_ids_S) for ask in self._waiting)

    @property
    def runnable(self) -> bool:
        """May its next sequence be computed now."""
        return bool(self._waiting) and self._unread_bytes < MAX_UNREAD_BYTES

    def take(self, now: float) -> SequenceAsk:
        """Returns its next sequence and counts the wait for the first."""
        if not self.started:
            self.queue_seconds = now - self._arrived
        return self._waiting.popleft()

    def deliver(self, rows: memoryview, compute_seconds: float) -> None:
        self.compute_seconds += compute_seconds
        self._answers.append(rows)
        self._unread_bytes += len(rows)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Ends it with an error; what waits of it is dropped."""
        self._waiting.clear()
        self._error = error
        self._changed.set()

    async def answers(self) -> AsyncIterator[memoryview]:
        """Yields the rows of one sequence after the other, as they are ready.

        Raises:
            LecternError: or whatever else ended the request.
        """
        for _ in range(len(self.request.asks)):
            while not self._answers and self._error is None:
                self._changed.clear()
                await self._changed.wait()
            if self._error is not None:
                raise self._error
            rows = self._answers.popleft()
            self._unread_bytes -= len(rows)
            self._on_read()
            yield rows


def first_come(tickets: Sequence[Ticket]) -> Ticket | None:
    """Returns the oldest request that can run; all of its sequences come before the next one's."""
    return next((ticket for ticket in tickets if ticket.runnable), None)


class Batcher:
    """A bounded queue and the loop that empties it, one sequence a forward.

    Args:
        engine: the model; its `score` runs on `model_thread`, one call at a time.
        model_thread: an executor with a single thread.
        accounting: is told of every forward.
        max_queued_requests: requests waiting, running or being read, before more are refused.
        next_ticket: the policy; tickets come in order of arrival.
        clock: seconds, rising.
    """

    def __init__(
        self,
        engine: Engine,
        model_thread: Executor,
        accounting: Accounting,
        max_queued_requests: int,
        next_ticket: Callable[[Sequence[Ticket]], Ticket | None] = first_come,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._model_thread = model_thread
        self._accounting = accounting
        self._max_queued_requests = max_queued_requests
        self._next_ticket = next_ticket
        self._clock = clock
        self._tickets: list[Ticket] = []
        self._changed = asyncio.Event()

    @property
    def queued_requests(self) -> int:
        return sum(not ticket.started for ticket in self._tickets)

    @property
    def running_requests(self) -> int:
        return sum(ticket.started for ticket in self._tickets)

    @property
    def queued_tokens(self) -> int:
        return sum(ticket.waiting_tokens for ticket in self._tickets)

    @contextlib.contextmanager
    def admitted(self, request: ScoringRequest, timeout_seconds: float | None) -> Iterator[Ticket]:
        """Yields the ticket of a request; on leaving, whatever waits of it is dropped.

        So a client that goes away frees its place at once, and no forward runs for it.

        Raises:
            Overloaded: the queue is full; says when to ask again. Nothing was queued.
        """
        if len(self._tickets) >= self._max_queued_requests:
            raise Overloaded(
                f"{len(self._tickets)} requests are waiting or running, the most this server takes",
                retry_after_seconds=self._pushback_seconds(),
            )
        now = self._clock()
        deadline = None if timeout_seconds is None else now + timeout_seconds
        ticket = Ticket(request, now, deadline, on_read=self._changed.set)
        self._tickets.append(ticket)
        self._changed.set()
        try:
            yield ticket
        finally:
            self._tickets.remove(ticket)

    async def run(self) -> None:
        """Computes what is queued, for ever; cancel to end it.

        Raises:
            DeviceLost: as Engine.score; the process had better end.
        """
        while True:
            self._drop_expired()
            ticket = self._next_ticket(self._tickets)
            if ticket is None:
                await self._wait_for_change()
            else:
                await self._compute_one(ticket)

    async def _compute_one(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        ask = ticket.take(self._clock())
        try:
            rows, seconds = await loop.run_in_executor(self._model_thread, self._score, ask)
        except DeviceLost:
            ticket.fail(TeacherUnavailable("the teacher's device has failed; the server ends"))
            raise
        except Exception as error:  # belongs to this request alone; the servicer says what it was
            ticket.fail(error)
            return
        ticket.deliver(rows, seconds)
        self._accounting.scored(ticket.request.run_id, len(ask.token_ids_S), seconds)

    def _score(self, ask: SequenceAsk) -> tuple[memoryview, float]:
        started = self._clock()
        rows = self._engine.score(ask)
        return rows, self._clock() - started

    def _drop_expired(self) -> None:
        now = self._clock()
        for ticket in self._tickets:
            if ticket.runnable and ticket.deadline is not None and ticket.deadline <= now:
                ticket.fail(TeacherUnavailable("the call's deadline passed in the queue"))

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _pushback_seconds(self) -> float:
        """Returns about how long half of the queue takes."""
        tokens_per_second = self._accounting.tokens_per_second() or 1000.0
        seconds = self.queued_tokens / tokens_per_second / 2
        return min(max(seconds, _MIN_PUSHBACK_SECONDS), _MAX_PUSHBACK_SECONDS)
