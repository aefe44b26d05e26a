"""The queue's policy, with an engine that waits for permits. No gRPC, no torch."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lectern_common.errors import Overloaded, TeacherUnavailable
from teacher_server import batcher as batcher_module
from teacher_server.accounting import Accounting
from teacher_server.batcher import Batcher, Ticket
from teacher_server.engine import DeviceLost, Representation, ScoringRequest, SequenceAsk
from tests.teacher_server.engines import BreakingEngine, GatedEngine

DENSE = Representation("dense")
V = 97


def asks(*first_tokens: int, length: int = 2) -> ScoringRequest:
    """One sequence for each first token."""
    sequences = [
        SequenceAsk(np.full(length, token, np.uint32), np.ones(length, bool), V, DENSE, 1.0)
        for token in first_tokens
    ]
    return ScoringRequest("run-1", "", sequences, 4 * V)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def running(engine, size: int = 8, clock: Clock | None = None) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1, thread_name_prefix="model") as model_thread:
        clock = clock or Clock()
        queue = Batcher(engine, model_thread, Accounting(clock), size, clock=clock)
        loop = asyncio.create_task(queue.run())
        try:
            yield queue
        finally:
            if isinstance(engine, GatedEngine):
                engine.allow(1000)
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def everything(ticket: Ticket) -> list[memoryview]:
    return [rows async for rows in ticket.answers()]


async def through(queue: Batcher, request: ScoringRequest) -> list[memoryview]:
    with queue.admitted(request, None) as ticket:
        return await everything(ticket)


def test_requests_are_served_in_order_of_arrival_one_sequence_a_forward() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine) as queue:
            calls = []
            for request in (asks(1, 2, 3), asks(4), asks(5, 6)):
                calls.append(asyncio.create_task(through(queue, request)))
                await asyncio.sleep(0)
            await until(lambda: engine.begun == [1])
            assert (queue.running_requests, queue.queued_requests) == (1, 2)
            assert queue.queued_tokens == 2 * 5
            engine.allow(6)
            answers = await asyncio.gather(*calls)
        assert engine.begun == [1, 2, 3, 4, 5, 6]
        assert [len(answer) for answer in answers] == [3, 1, 2]
        assert len(engine.threads) == 1 and engine.threads.pop().startswith("model")

    run(scenario())


def test_rows_come_as_their_sequence_is_done() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine) as queue:
            with queue.admitted(asks(1, 2), None) as ticket:
                answers = ticket.answers()
                engine.allow(1)
                first = np.frombuffer(await anext(answers), "<f4").reshape(2, V)
                assert first.argmax(-1).tolist() == [1, 1]
                await until(lambda: engine.begun == [1, 2])
                engine.allow(1)
                assert np.frombuffer(await anext(answers), "<f4").reshape(2, V)[0].argmax() == 2

    run(scenario())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine, size=2) as queue:
            first = asyncio.create_task(through(queue, asks(1)))
            second = asyncio.create_task(through(queue, asks(2)))
            await until(lambda: engine.begun == [1])
            with (
                pytest.raises(Overloaded, match="2 requests") as caught,
                queue.admitted(asks(3), None),
            ):
                pass
            assert 0.1 <= caught.value.retry_after_seconds <= 10
            engine.allow(3)
            await asyncio.gather(first, second)
            assert len(await through(queue, asks(4))) == 1
        assert 3 not in engine.begun

    run(scenario())


def test_a_request_that_is_cancelled_in_the_queue_gets_no_forward_and_frees_its_place() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine, size=2) as queue:
            first = asyncio.create_task(through(queue, asks(1)))
            second = asyncio.create_task(through(queue, asks(2, 3)))
            await until(lambda: engine.begun == [1])
            second.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await second
            assert queue.queued_requests == 0
            third = asyncio.create_task(through(queue, asks(4)))
            engine.allow(2)
            await asyncio.gather(first, third)
        assert engine.begun == [1, 4]

    run(scenario())


def test_a_request_that_is_cancelled_half_way_gets_no_further_forward() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine) as queue:
            first = asyncio.create_task(through(queue, asks(1, 2, 3)))
            await until(lambda: engine.begun == [1])
            first.cancel()
            second = asyncio.create_task(through(queue, asks(9)))
            engine.allow(2)
            await second
        assert engine.begun == [1, 9]

    run(scenario())


def test_a_request_whose_deadline_passed_in_the_queue_gets_no_forward() -> None:
    async def scenario() -> None:
        engine, clock = GatedEngine(), Clock()
        async with running(engine, clock=clock) as queue:
            first = asyncio.create_task(through(queue, asks(1)))
            await until(lambda: engine.begun == [1])
            with queue.admitted(asks(2), 5.0) as late, queue.admitted(asks(3), 50.0) as in_time:
                clock.now += 5.0
                engine.allow(2)
                await first
                with pytest.raises(TeacherUnavailable, match="deadline"):
                    await everything(late)
                await everything(in_time)
        assert engine.begun == [1, 3]

    run(scenario())


def test_a_deadline_between_two_sequences_ends_the_request_there() -> None:
    async def scenario() -> None:
        engine, clock = GatedEngine(), Clock()
        async with running(engine, clock=clock) as queue:
            with queue.admitted(asks(1, 2), 5.0) as ticket:
                await until(lambda: engine.begun == [1])
                clock.now += 6.0
                engine.allow(1)
                with pytest.raises(TeacherUnavailable):
                    await everything(ticket)
        assert engine.begun == [1]

    run(scenario())


def test_an_error_in_one_request_does_not_touch_the_others() -> None:
    async def scenario() -> None:
        async with running(BreakingEngine(RuntimeError("boom"))) as queue:
            calls = [through(queue, asks(*tokens)) for tokens in ((1, 2), (5, 13, 6), (7,))]
            before, broken, after = await asyncio.gather(*calls, return_exceptions=True)
            assert len(before) == 2 and len(after) == 1
            assert isinstance(broken, RuntimeError) and str(broken) == "boom"
            assert queue.running_requests == queue.queued_requests == 0

    run(scenario())


def test_a_slow_reader_holds_up_nobody_and_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "MAX_UNREAD_BYTES", 3 * 2 * 4 * V)

    async def scenario() -> None:
        engine = GatedEngine()
        engine.allow(100)
        async with running(engine) as queue:
            with queue.admitted(asks(*range(10)), None) as slow:
                await until(lambda: engine.begun == [0, 1, 2])
                assert len(await through(queue, asks(50))) == 1
                assert engine.begun == [0, 1, 2, 50]
                assert len(await everything(slow)) == 10
        assert engine.begun == [0, 1, 2, 50, *range(3, 10)]

    run(scenario())


def test_time_in_the_queue_and_in_the_model_is_counted() -> None:
    async def scenario() -> None:
        clock = Clock()

        class TwoSeconds(GatedEngine):
            def score(self, ask: SequenceAsk) -> memoryview:
                rows = super().score(ask)
                clock.now += 2.0
                return rows

        engine = TwoSeconds()
        async with running(engine, clock=clock) as queue:
            first = asyncio.create_task(through(queue, asks(1)))
            await until(lambda: engine.begun == [1])
            with queue.admitted(asks(2, 3), None) as ticket:
                engine.allow(3)
                await first
                await everything(ticket)
                assert ticket.queue_seconds == 2.0
                assert ticket.compute_seconds == 4.0

    run(scenario())


def test_another_policy_can_replace_the_order_of_arrival() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        with ThreadPoolExecutor(1) as model_thread:
            queue = Batcher(
                engine,
                model_thread,
                Accounting(),
                8,
                next_ticket=lambda tickets: next(
                    (t for t in reversed(tickets) if t.runnable), None
                ),
            )
            calls = [asyncio.create_task(through(queue, asks(token))) for token in (1, 2, 3)]
            await asyncio.sleep(0)
            loop = asyncio.create_task(queue.run())
            engine.allow(3)
            await asyncio.gather(*calls)
            loop.cancel()
        assert engine.begun == [3, 2, 1]

    run(scenario())


def test_a_lost_device_ends_the_queue_and_the_request_may_be_made_again() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as model_thread:
            engine = BreakingEngine(DeviceLost("CUDA error"))
            queue = Batcher(engine, model_thread, Accounting(), 8)
            loop = asyncio.create_task(queue.run())
            with pytest.raises(TeacherUnavailable, match="device"):
                await through(queue, asks(13))
            with pytest.raises(DeviceLost):
                await loop

    run(scenario())
