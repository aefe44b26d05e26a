"""The queue's policy, with an engine that waits for permits. No gRPC, no torch."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lectern_common.errors import (
    Overloaded,
    TeacherError,
    TeacherOutOfMemory,
    TeacherUnavailable,
)
from lectern_common.wire.formats import Representation
from teacher_server.engine.seam import ComputedRows, DeviceLost, ScoringRequest, SequenceAsk
from teacher_server.scheduling import requests
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.admission import Admission, Quotas
from teacher_server.scheduling.batcher import Batcher
from teacher_server.scheduling.cache import Cache
from teacher_server.scheduling.fair_share import FairShare
from teacher_server.scheduling.requests import Ticket
from teacher_server.scheduling.scheduler import Scheduler
from tests.support.engines import BreakingEngine, GatedEngine, HiddenEngine

DENSE = Representation("dense")
V = 97


HIDDEN = Representation("hidden")


def asks(
    *first_tokens: int, length: int = 2, run: str = "run-1", kind: Representation = DENSE
) -> ScoringRequest:
    """One sequence for each first token."""
    sequences = [
        SequenceAsk(np.full(length, token, np.uint32), np.ones(length, bool), V, kind, 1.0)
        for token in first_tokens
    ]
    return ScoringRequest(run, "", sequences, 4 * V)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue_of(
    engine,
    model_thread,
    accounting: Accounting,
    size: int,
    *,
    batch_tokens: int = 1,
    fair_share: FairShare | None = None,
    quotas: Quotas | None = None,
    **settings,
) -> Batcher:
    admission = Admission(size, accounting, quotas)
    scheduler = Scheduler(engine.facts, fair_share, batch_tokens)
    return Batcher(engine, model_thread, accounting, admission, scheduler, **settings)


@contextlib.asynccontextmanager
async def running(
    engine, size: int = 8, clock: Clock | None = None, **settings
) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1, thread_name_prefix="model") as model_thread:
        clock = clock or Clock()
        queue = queue_of(engine, model_thread, Accounting(clock), size, clock=clock, **settings)
        loop = asyncio.create_task(queue.run())
        try:
            yield queue
        finally:
            if isinstance(engine, GatedEngine | HiddenEngine):
                engine.allow(1000)
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def everything(queue: Batcher, ticket: Ticket) -> list[ComputedRows]:
    return [rows async for rows in queue.answers(ticket)]


async def through(queue: Batcher, request: ScoringRequest) -> list[ComputedRows]:
    with queue.admitted(request, None) as ticket:
        return await everything(queue, ticket)


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
            assert queue.queued_tokens == 2 * 6  # what is not answered yet
            engine.allow(6)
            answers = await asyncio.gather(*calls)
        assert engine.begun == [1, 2, 3, 4, 5, 6]
        assert [len(answer) for answer in answers] == [3, 1, 2]
        assert len(engine.threads) == 1 and engine.threads.pop().startswith("model")

    run(scenario())


def test_rows_are_yielded_as_soon_as_their_sequence_is_done() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine) as queue:
            with queue.admitted(asks(1, 2), None) as ticket:
                answers = queue.answers(ticket)
                engine.allow(1)
                first = np.frombuffer((await anext(answers)).payload, "<f4").reshape(2, V)
                assert first.argmax(-1).tolist() == [1, 1]
                await until(lambda: engine.begun == [1, 2])
                engine.allow(1)
                assert (
                    np.frombuffer((await anext(answers)).payload, "<f4").reshape(2, V)[0].argmax()
                    == 2
                )

    run(scenario())


def test_a_full_queue_refuses_at_once_and_says_when_to_retry() -> None:
    async def scenario() -> None:
        engine = GatedEngine()
        async with running(engine, size=2) as queue:
            first = asyncio.create_task(through(queue, asks(1)))
            second = asyncio.create_task(through(queue, asks(2, run="run-2")))
            await until(lambda: engine.begun == [1])
            with (
                pytest.raises(Overloaded, match="2 requests") as caught,
                queue.admitted(asks(3, run="run-3"), None),
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
            second = asyncio.create_task(through(queue, asks(2, 3, run="run-2")))
            await until(lambda: engine.begun == [1])
            second.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await second
            assert queue.queued_requests == 0
            third = asyncio.create_task(through(queue, asks(4, run="run-3")))
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
                    await everything(queue, late)
                await everything(queue, in_time)
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
                    await everything(queue, ticket)
        assert engine.begun == [1]

    run(scenario())


def test_an_error_in_one_request_does_not_touch_the_others() -> None:
    async def scenario() -> None:
        async with running(BreakingEngine(RuntimeError("boom"))) as queue:
            calls = [through(queue, asks(*tokens)) for tokens in ((1, 2), (5, 13, 6), (7,))]
            before, broken, after = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(before, list) and isinstance(after, list)
            assert len(before) == 2 and len(after) == 1
            assert isinstance(broken, RuntimeError) and str(broken) == "boom"
            assert queue.running_requests == queue.queued_requests == 0

    run(scenario())


def test_a_slow_reader_holds_up_nobody_and_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_UNREAD_BYTES", 3 * 2 * 4 * V)

    async def scenario() -> None:
        engine = GatedEngine()
        engine.allow(100)
        async with running(engine) as queue:
            with queue.admitted(asks(*range(10)), None) as slow:
                await until(lambda: engine.begun == [0, 1, 2])
                assert len(await through(queue, asks(50))) == 1
                assert engine.begun == [0, 1, 2, 50]
                assert len(await everything(queue, slow)) == 10
        assert engine.begun == [0, 1, 2, 50, *range(3, 10)]

    run(scenario())


def test_time_in_the_queue_and_in_the_model_is_counted() -> None:
    async def scenario() -> None:
        clock = Clock()

        class TwoSeconds(GatedEngine):
            def score(self, asks):
                rows = super().score(asks)
                clock.now += 2.0
                return rows

        engine = TwoSeconds()
        async with running(engine, clock=clock) as queue:
            first = asyncio.create_task(through(queue, asks(1)))
            await until(lambda: engine.begun == [1])
            with queue.admitted(asks(2, 3), None) as ticket:
                engine.allow(3)
                await first
                await everything(queue, ticket)
                assert ticket.queue_seconds == 2.0
                assert ticket.compute_seconds == 4.0

    run(scenario())


def test_a_lost_device_ends_the_queue_and_the_request_may_be_retried() -> None:
    async def scenario() -> None:
        with ThreadPoolExecutor(1) as model_thread:
            engine = BreakingEngine(DeviceLost("CUDA error"))
            queue = queue_of(engine, model_thread, Accounting(), 8)
            loop = asyncio.create_task(queue.run())
            with pytest.raises(TeacherUnavailable, match="device"):
                await through(queue, asks(13))
            with pytest.raises(DeviceLost):
                await loop

    run(scenario())


# ---- sharing: one forward for all who wait for it --------------------------------------------


def test_equal_sequences_asked_at_once_are_computed_once_and_charged_in_equal_parts() -> None:
    async def scenario() -> None:
        engine, accounting = HiddenEngine(gated=True), Accounting()
        with ThreadPoolExecutor(1) as thread:
            queue = queue_of(engine, thread, accounting, 32)
            loop = asyncio.create_task(queue.run())
            first = asyncio.create_task(through(queue, asks(90, kind=HIDDEN, run="blocker")))
            await until(lambda: engine.forwards == [[90]])
            calls = [
                asyncio.create_task(through(queue, asks(5, length=12, kind=kind, run=run)))
                for run, kind in (("run-a", HIDDEN), ("run-b", DENSE), ("run-c", HIDDEN))
            ]
            await until(lambda: queue.queued_requests == 3)
            engine.allow(2)
            hidden_a, dense_b, hidden_c = await asyncio.gather(*calls)
            await first
            loop.cancel()
        assert engine.forwards == [[90], [5]]
        assert hidden_a[0].payload == hidden_c[0].payload
        expected = np.stack([np.full(12, 5), np.arange(12)], axis=1).astype(np.float32)
        assert (np.frombuffer(hidden_a[0].payload, "<f4").reshape(12, 2) == expected).all()
        assert (
            np.frombuffer(dense_b[0].payload, "<f4").reshape(12, V).argmax(-1).tolist() == [5] * 12
        )
        shares = {run: accounting.runs[run].tokens for run in ("run-a", "run-b", "run-c")}
        assert shares == {"run-a": 4, "run-b": 4, "run-c": 4}
        hits = [accounting.runs[run].cache_hits for run in ("run-a", "run-b", "run-c")]
        assert sorted(hits) == [0, 1, 1]
        asked = [accounting.runs[run].asked_tokens for run in ("run-a", "run-b", "run-c")]
        assert asked == [12, 12, 12]

    run(scenario())


def test_a_request_during_the_forward_gets_the_same_rows() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(gated=True)
        async with running(engine, size=32) as queue:
            first = asyncio.create_task(through(queue, asks(5, kind=HIDDEN)))
            await until(lambda: engine.forwards == [[5]])
            second = asyncio.create_task(through(queue, asks(5, kind=HIDDEN, run="run-2")))
            await until(lambda: len(queue._tickets) == 2)
            engine.allow(1)
            one, other = await asyncio.gather(first, second)
        assert one[0].payload == other[0].payload
        assert engine.forwards == [[5]]

    run(scenario())


def test_a_waiter_that_leaves_does_not_end_the_forward_of_the_others() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(gated=True)
        async with running(engine, size=32) as queue:
            calls = [
                asyncio.create_task(through(queue, asks(5, kind=HIDDEN, run=run)))
                for run in ("run-1", "run-2")
            ]
            await until(lambda: engine.forwards == [[5]])
            calls[0].cancel()
            engine.allow(1)
            assert len(await calls[1]) == 1
        assert engine.forwards == [[5]]

    run(scenario())


def test_a_second_epoch_comes_from_the_cache_in_every_representation() -> None:
    async def scenario() -> None:
        engine = HiddenEngine()
        async with running(engine, size=32, cache=Cache(1 << 20)) as queue:
            await through(queue, asks(1, 2, 3, kind=HIDDEN))
            assert [len(f) for f in engine.forwards] == [1, 1, 1]
            with queue.admitted(asks(3, 2, 1, kind=HIDDEN, run="run-2"), None) as ticket:
                again = await everything(queue, ticket)
                assert ticket.cache_hits == 3
            dense = await through(queue, asks(1, 2, kind=DENSE, run="run-3"))
        assert sum(len(f) for f in engine.forwards) == 3
        firsts = [np.frombuffer(rows.payload, "<f4")[0] for rows in again]
        assert firsts == [3, 2, 1]
        assert [np.frombuffer(rows.payload, "<f4")[:V].argmax() for rows in dense] == [1, 2]
        assert (queue.cache.hits, queue.cache.misses) == (5, 3)

    run(scenario())


def once(request: ScoringRequest) -> ScoringRequest:
    return replace(request, comes_once=True)


def test_texts_that_come_once_neither_fill_nor_empty_the_cache() -> None:
    async def scenario() -> None:
        engine = HiddenEngine()
        cache = Cache(3 << 10)  # room for three sequences
        async with running(engine, size=64, cache=cache) as queue:
            kept = await through(queue, asks(1, 2, 3, kind=HIDDEN))
            before = (cache.used_bytes, cache.evictions)
            for token in range(10, 30):
                await through(queue, once(asks(token, kind=HIDDEN, run="run-2")))
            assert (cache.used_bytes, cache.evictions) == before
            forwards = len(engine.forwards)
            again = await through(queue, asks(1, 2, 3, kind=HIDDEN))
            assert len(engine.forwards) == forwards
            assert [rows.payload for rows in again] == [rows.payload for rows in kept]
            # Asked again nevertheless, they are computed again, and answered the same.
            (first,) = await through(queue, once(asks(1, kind=HIDDEN, run="run-2")))
            assert len(engine.forwards) == forwards + 1
            assert first.payload == kept[0].payload

    run(scenario())


@pytest.mark.parametrize("once_first", [True, False])
def test_a_text_that_another_run_asks_for_too_is_kept(once_first: bool) -> None:
    async def scenario() -> None:
        engine = HiddenEngine(gated=True)
        cache = Cache(1 << 20)
        async with running(engine, size=32, cache=cache) as queue:
            both = [once(asks(7, kind=HIDDEN, run="run-2")), asks(7, kind=HIDDEN)]
            calls = [
                asyncio.create_task(through(queue, request))
                for request in (both if once_first else both[::-1])
            ]
            await until(lambda: engine.forwards == [[7]])
            engine.allow(1)
            first, second = await asyncio.gather(*calls)
            assert first[0].payload == second[0].payload
            assert len(await through(queue, asks(7, kind=HIDDEN, run="run-3"))) == 1
        assert engine.forwards == [[7]]

    run(scenario())


def test_texts_that_come_once_are_charged_as_others_are() -> None:
    async def scenario(comes_once: bool) -> tuple[float, int, int]:
        engine = HiddenEngine()
        accounting = Accounting(Clock())
        with ThreadPoolExecutor(1) as model_thread:
            queue = queue_of(engine, model_thread, accounting, 32, cache=Cache(1 << 20))
            loop = asyncio.create_task(queue.run())
            request = replace(asks(1, 2, 3, kind=HIDDEN), comes_once=comes_once)
            await through(queue, request)
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop
        account = accounting.runs["run-1"]
        return account.tokens, account.cache_misses, account.cache_hits

    assert asyncio.run(scenario(True)) == asyncio.run(scenario(False)) == (6, 3, 0)


def test_a_cached_answer_does_not_wait_for_the_forward_that_is_running() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(gated=True)
        async with running(engine, size=32, cache=Cache(1 << 20)) as queue:
            engine.allow(1)
            await through(queue, asks(1, kind=HIDDEN))
            busy = asyncio.create_task(through(queue, asks(2, kind=HIDDEN)))
            await until(lambda: engine.forwards == [[1], [2]])
            assert len(await through(queue, asks(1, kind=HIDDEN, run="run-2"))) == 1
            assert not busy.done()

    run(scenario())


def test_masked_positions_are_cut_from_the_same_forward() -> None:
    async def scenario() -> None:
        engine = HiddenEngine()
        ids, asked = np.arange(6, dtype=np.uint32), np.array([0, 1, 0, 0, 1, 1], bool)
        ask = SequenceAsk(ids, asked, V, HIDDEN, 1.0)
        async with running(engine, size=32, cache=Cache(1 << 20)) as queue:
            (rows,) = await through(queue, ScoringRequest("run-1", "", [ask], 8))
        table = np.frombuffer(rows.payload, "<f4").reshape(-1, 2)
        assert table.tolist() == [[1, 1], [4, 4], [5, 5]]

    run(scenario())


def test_rows_that_are_not_finite_are_refused_if_asked_and_never_cached() -> None:
    class Broken(HiddenEngine):
        def score(self, asks):
            return [
                ComputedRows(rows.payload, None, first_bad_row=2) for rows in super().score(asks)
            ]

    async def scenario() -> None:
        engine = Broken()
        ids = np.arange(4, dtype=np.uint32)
        early, late = np.array([1, 1, 0, 0], bool), np.array([0, 0, 0, 1], bool)
        async with running(engine, size=32, cache=Cache(1 << 20)) as queue:
            for asked, right in ((early, True), (late, False)):
                request = ScoringRequest("run-1", "", [SequenceAsk(ids, asked, V, HIDDEN, 1.0)], 8)
                if right:
                    assert len(await through(queue, request)) == 1
                else:
                    with pytest.raises(TeacherError, match="not finite from position 2"):
                        await through(queue, request)
        assert len(engine.forwards) == 2

    run(scenario())


# ---- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("independent", [[10, 10], [11], [30]]), ("throughput", [[10, 10], [11], [30]])],
)
def test_each_mode_batches_by_its_own_rule(mode: str, expected: list[list[int]]) -> None:
    async def scenario() -> None:
        engine = HiddenEngine(mode=mode, gated=True)
        async with running(engine, size=32, batch_tokens=100) as queue:
            blocker = asyncio.create_task(through(queue, asks(90, kind=HIDDEN, run="blocker")))
            await until(lambda: engine.forwards == [[90]])
            calls = [
                asyncio.create_task(
                    through(queue, asks(token, length=length, kind=HIDDEN, run=f"run-{token}"))
                )
                for token, length in enumerate((10, 30, 11, 10))
            ]
            await until(lambda: queue.queued_requests == 4)
            engine.allow(10)
            await asyncio.gather(blocker, *calls)
        assert sorted(engine.lengths[1:]) == expected

    run(scenario())


def test_throughput_computes_near_lengths_together() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(mode="throughput", gated=True)
        async with running(engine, size=32, batch_tokens=1000) as queue:
            blocker = asyncio.create_task(through(queue, asks(90, kind=HIDDEN, run="blocker")))
            await until(lambda: engine.forwards == [[90]])
            calls = [
                asyncio.create_task(
                    through(queue, asks(token, length=length, kind=HIDDEN, run=f"run-{token}"))
                )
                for token, length in enumerate((200, 100, 199, 198, 101))
            ]
            await until(lambda: queue.queued_requests == 5)
            engine.allow(10)
            answers = await asyncio.gather(blocker, *calls)
        assert sorted(sorted(lengths) for lengths in engine.lengths[1:]) == [
            [100, 101],
            [198, 199, 200],
        ]
        assert [len(answer[0].payload) // 8 for answer in answers[1:]] == [200, 100, 199, 198, 101]

    run(scenario())


def test_a_batch_that_runs_out_of_memory_is_split_and_only_the_too_long_one_is_refused() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(mode="throughput", gated=True, memory_tokens=220)
        async with running(engine, size=64, batch_tokens=1000) as queue:
            blocker = asyncio.create_task(through(queue, asks(90, kind=HIDDEN, run="blocker")))
            await until(lambda: engine.forwards == [[90]])
            calls = [
                asyncio.create_task(
                    through(queue, asks(token, length=100, kind=HIDDEN, run=f"run-{token}"))
                )
                for token in range(4)
            ]
            too_long = asyncio.create_task(
                through(queue, asks(50, length=221, kind=HIDDEN, run="long"))
            )
            await until(lambda: queue.queued_requests == 5)
            engine.allow(20)
            await asyncio.gather(blocker, *calls)
            with pytest.raises(TeacherOutOfMemory):
                await too_long
            # Batches stay as small as fitted, and grow again.
            assert 200 <= queue._scheduler._fitting_tokens < 220
        assert [len(forward) for forward in engine.forwards[1:4]] == [4, 2, 2]

    run(scenario())


def test_a_sequence_that_breaks_the_model_does_not_take_its_batch_with_it() -> None:
    class Picky(HiddenEngine):
        def score(self, asks):
            if any(ask.token_ids_S[0] == 13 for ask in asks):
                self.forwards.append([0])
                raise RuntimeError("boom")
            return super().score(asks)

    async def scenario() -> None:
        engine = Picky(mode="throughput", gated=True)
        async with running(engine, size=64, batch_tokens=1000) as queue:
            blocker = asyncio.create_task(through(queue, asks(90, kind=HIDDEN, run="blocker")))
            await until(lambda: engine.forwards == [[90]])
            calls = [
                asyncio.create_task(through(queue, asks(token, kind=HIDDEN, run=f"run-{token}")))
                for token in (11, 12, 13, 14)
            ]
            await until(lambda: queue.queued_requests == 4)
            engine.allow(20)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            await blocker
        assert [isinstance(answer, RuntimeError) for answer in answers] == [
            False,
            False,
            True,
            False,
        ]

    run(scenario())


def test_one_small_batch_out_of_memory_does_not_shrink_batches_forever() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(mode="throughput", memory_tokens=3)
        async with running(engine, size=64, batch_tokens=1600) as queue:
            await through(queue, asks(1, 2, kind=HIDDEN))  # 4 tokens
            assert queue._scheduler._fitting_tokens == 100
            engine.memory_tokens = 1 << 20
            for token in range(300):
                await through(queue, asks(token, 90, length=400, kind=HIDDEN))
            assert queue._scheduler._fitting_tokens == 1600

    run(scenario())


def test_a_slow_reader_in_a_shared_batch_still_gets_its_next_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "MAX_UNREAD_BYTES", 2 * 100 * 8)

    async def scenario() -> None:
        engine = HiddenEngine(gated=True)
        async with running(engine, size=64, batch_tokens=800) as queue:
            blocker = asyncio.create_task(through(queue, asks(90, kind=HIDDEN, run="blocker")))
            await until(lambda: engine.forwards == [[90]])
            leading = asyncio.create_task(
                through(queue, asks(1, 2, length=100, kind=HIDDEN, run="a"))
            )
            await until(lambda: queue.queued_requests == 1)
            own = asks(50, length=30, kind=HIDDEN).asks
            company = asks(51, 52, 53, 54, 55, length=100, kind=HIDDEN).asks
            request = ScoringRequest("b", "", [*own, *company], 8)
            slow = asyncio.create_task(through(queue, request))
            await until(lambda: queue.queued_requests == 2)
            engine.allow(100)
            await asyncio.gather(blocker, leading)
            assert len(await slow) == 6

    run(scenario())


def test_a_batch_of_more_rows_than_a_reader_may_leave_unread_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "MAX_UNREAD_BYTES", 3 * 100 * 8)

    async def scenario() -> None:
        engine, accounting = HiddenEngine(), Accounting()
        with ThreadPoolExecutor(1) as thread:
            queue = queue_of(engine, thread, accounting, 32, batch_tokens=1600)
            loop = asyncio.create_task(queue.run())
            assert len(await through(queue, asks(*range(16), length=100, kind=HIDDEN))) == 16
            loop.cancel()
        assert [len(forward) for forward in engine.forwards] == [16]
        account = accounting.runs["run-1"]
        assert (account.tokens, account.cache_misses, account.cache_hits) == (1600, 16, 0)

    run(scenario())


def test_equal_asks_of_a_forward_share_one_answer() -> None:
    async def scenario() -> None:
        engine = HiddenEngine()
        async with running(engine, size=32) as queue:
            answers = await through(queue, asks(*[5] * 40, length=10))
            assert len(engine.forwards) == engine.derivations == 1
            assert len({id(answer) for answer in answers}) == 1 and len(answers) == 40

    run(scenario())


# ---- fairness --------------------------------------------------------------------------------


def test_a_run_that_floods_the_queue_leaves_places_and_half_the_turns_to_another() -> None:
    async def scenario() -> None:
        engine = HiddenEngine(gated=True)
        async with running(engine, size=8) as queue:
            flood = [
                asyncio.create_task(through(queue, asks(*range(50), length=1000, kind=HIDDEN)))
                for _ in range(8)
            ]
            await until(lambda: engine.forwards == [[0]])
            refused = [call for call in flood if call.done()]
            assert len(refused) == 4 and all(
                isinstance(call.exception(), Overloaded) for call in refused
            )
            others = asks(*range(50, 90), length=1000, kind=HIDDEN, run="run-2")
            other = asyncio.create_task(through(queue, others))
            await until(lambda: queue.queued_requests >= 1)
            engine.allow(81)
            await other
        served = [forward[0] for forward in engine.forwards[:80]]
        assert 36 <= sum(token >= 50 for token in served) <= 40

    run(scenario())


@pytest.mark.parametrize("mode", ["independent", "throughput"])
def test_joining_batches_does_not_take_another_runs_turns(mode: str) -> None:
    """A modest run, with one batch's worth in flight, against a flood of equal lengths."""

    async def scenario() -> None:
        engine, accounting = HiddenEngine(mode=mode, gated=True), Accounting()
        with ThreadPoolExecutor(1) as thread:
            queue = queue_of(engine, thread, accounting, 64, batch_tokens=4096)
            loop = asyncio.create_task(queue.run())
            tokens = iter(range(1 << 20))

            async def client(run_id: str, count: int) -> None:
                while True:
                    some = [next(tokens) for _ in range(count)]
                    await through(queue, asks(*some, length=512, kind=HIDDEN, run=run_id))

            def has_begun(turn: int) -> bool:
                return len(engine.forwards) > turn

            calls = [asyncio.create_task(client("flood", 32)) for _ in range(16)]
            calls += [asyncio.create_task(client("modest", 8)) for _ in range(4)]
            await until(lambda: queue.queued_requests + queue.running_requests == 20)
            for turn in range(1, 200):
                engine.allow(1)
                await until(partial(has_begun, turn))
            for call in calls:
                call.cancel()
            loop.cancel()
            engine.allow(1000)
        share = accounting.runs["modest"].tokens / accounting.scored_tokens
        assert 0.45 <= share <= 0.55

    run(scenario())


def test_a_forward_whose_waiters_have_gone_is_still_charged_to_their_run() -> None:
    async def scenario() -> None:
        engine, accounting = HiddenEngine(gated=True), Accounting()
        with ThreadPoolExecutor(1) as thread:
            queue = queue_of(engine, thread, accounting, 32)
            loop = asyncio.create_task(queue.run())
            call = asyncio.create_task(through(queue, asks(1, length=100, kind=HIDDEN, run="bad")))
            await until(lambda: engine.forwards == [[1]])
            credit = queue.fair_share._credit["bad"]
            call.cancel()
            engine.allow(1)
            await until(lambda: accounting.scored_tokens == 100)
            assert queue.fair_share._credit["bad"] == credit - 100
            loop.cancel()
        assert accounting.runs["bad"].tokens == 100

    run(scenario())


def test_a_run_over_its_quota_is_told_when_to_retry() -> None:
    async def scenario() -> None:
        clock = Clock()
        quotas = Quotas({"run-*": 60}, clock)
        async with running(HiddenEngine(), clock=clock, quotas=quotas) as queue:
            await through(queue, asks(1, length=70, kind=HIDDEN))
            with (
                pytest.raises(Overloaded, match="60 tokens a minute") as caught,
                queue.admitted(asks(2, kind=HIDDEN), None),
            ):
                pass
            assert caught.value.retry_after_seconds == 10.0
            clock.now += 10.1
            await through(queue, asks(2, kind=HIDDEN))

    run(scenario())
