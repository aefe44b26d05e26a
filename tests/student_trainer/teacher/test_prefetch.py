"""Prefetched answers: order, errors, waiting, stopping."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from lectern_common.errors import TeacherError
from student_trainer.batch import Batch
from student_trainer.stop import Stop, StopRequested
from student_trainer.targets import IGNORE_INDEX, DenseTargets, TeacherTargets
from student_trainer.teacher.prefetch import MAX_THREADS, Prefetch

DEADLINE = 20.0


class Steps:
    """Step s is two sequences of two tokens; its first token is s."""

    def __init__(self, ignored: bool = False) -> None:
        self.asked_for: list[int] = []
        self._ignored = ignored

    def batch_at(self, step: int) -> Batch:
        self.asked_for.append(step)
        inputs = np.array([[step, 1], [step, 2]])
        labels = inputs + 10
        if self._ignored:
            labels[1] = IGNORE_INDEX
        return Batch(inputs, labels)


def marked(batch: Batch) -> DenseTargets:
    return DenseTargets(
        torch.tensor([[float(batch.inputs_BS[0, 0]), float(batch.inputs_BS[0, 1])]])
    )


def prefetch(
    ask: Callable[[Batch], TeacherTargets] | None,
    *,
    tell: Callable[[Batch, int], None] = lambda batch, step: None,
    ahead: int = 2,
    end: int = 6,
    stop: Stop | None = None,
    cancel: Callable[[], None] = lambda: None,
    batches: Steps | None = None,
) -> Prefetch:
    def told(batch: Batch, step: int) -> TeacherTargets:
        tell(batch, step)
        assert ask is not None
        return ask(batch)

    return Prefetch(
        batches or Steps(),
        None if ask is None else told,
        micro_batch_sequences=1,
        prefetch_steps=ahead,
        end=end,
        stop=stop or Stop(),
        cancel=cancel,
    )


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_every_micro_batch_gets_its_own_answer_in_order(ahead: int) -> None:
    with prefetch(marked, ahead=ahead) as answers:
        for step in range(6):
            parts = answers.take(step)
            assert [part.batch.inputs_BS.tolist() for part in parts] == [[[step, 1]], [[step, 2]]]
            for part in reversed(parts):
                assert part.answer is not None
                targets = part.answer()
                assert isinstance(targets, DenseTargets)
                assert targets.logits_NV.tolist() == part.batch.inputs_BS.astype(float).tolist()


def test_coming_steps_are_requested_while_the_first_is_computed() -> None:
    asked: list[int] = []
    all_in = threading.Event()

    def ask(batch: Batch) -> TeacherTargets:
        asked.append(int(batch.inputs_BS[0, 0]))
        if len(asked) == 6:
            all_in.set()
        return marked(batch)

    with prefetch(ask, ahead=2) as answers:
        answers.take(0)
        # No answer is taken, but those of steps 0, 1 and 2 still come in.
        assert all_in.wait(DEADLINE)
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("ahead", [0, 3])
def test_ask_is_called_with_the_step_of_the_rows(ahead: int) -> None:
    told: list[tuple[int, int]] = []

    def tell(batch: Batch, step: int) -> None:
        told.append((int(batch.inputs_BS[0, 0]), step))

    with prefetch(marked, ahead=ahead, tell=tell) as answers:
        for step in range(6):
            for part in answers.take(step):
                assert part.answer is not None
                part.answer()
    assert sorted(told) == [(step, step) for step in range(6) for _ in range(2)]


def test_nothing_is_requested_beyond_the_end_and_no_step_twice() -> None:
    batches = Steps()
    with prefetch(marked, ahead=4, end=3, batches=batches) as answers:
        for step in range(3):
            for part in answers.take(step):
                assert part.answer is not None
                part.answer()
    assert batches.asked_for == [0, 1, 2]


def test_zero_steps_ahead_asks_in_the_callers_thread_when_needed() -> None:
    threads: list[int] = []

    def ask(batch: Batch) -> TeacherTargets:
        threads.append(threading.get_ident())
        return marked(batch)

    with prefetch(ask, ahead=0) as answers:
        first, second = answers.take(0)
        assert threads == []
        assert first.answer is not None
        assert second.answer is not None
        first.answer()
        second.answer()
    assert threads == [threading.get_ident()] * 2


def test_without_a_teacher_there_are_no_answers() -> None:
    with prefetch(None) as answers:
        assert [part.answer for part in answers.take(0)] == [None, None]


def test_a_micro_batch_without_a_valid_position_is_not_requested() -> None:
    asked: list[Batch] = []

    def ask(batch: Batch) -> TeacherTargets:
        asked.append(batch)
        return marked(batch)

    with prefetch(ask, ahead=0, batches=Steps(ignored=True)) as answers:
        first, second = answers.take(0)
        assert first.answer is not None
        first.answer()
        assert second.answer is None
    assert len(asked) == 1


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_where_its_answer_is_taken(ahead: int) -> None:
    def ask(batch: Batch) -> TeacherTargets:
        if batch.inputs_BS[0, 0] == 1:
            raise TeacherError("no good")
        return marked(batch)

    with prefetch(ask, ahead=ahead) as answers:
        for part in answers.take(0):
            assert part.answer is not None
            part.answer()
        part = answers.take(1)[0]
        assert part.answer is not None
        with pytest.raises(TeacherError, match="no good"):
            part.answer()


def test_waiting_is_measured() -> None:
    ready = threading.Event()

    def ask(batch: Batch) -> TeacherTargets:
        ready.wait(DEADLINE)
        return marked(batch)

    with prefetch(ask, ahead=1) as answers:
        part = answers.take(0)[0]
        assert answers.waited_seconds == 0
        threading.Timer(0.05, ready.set).start()
        assert part.answer is not None
        part.answer()
        assert answers.waited_seconds > 0


def test_a_stop_ends_the_wait_for_an_answer_and_cancels_the_requests() -> None:
    stop, cancelled = Stop(), threading.Event()

    def ask(batch: Batch) -> TeacherTargets:
        assert cancelled.wait(DEADLINE)
        raise StopRequested

    with prefetch(ask, ahead=3, stop=stop, cancel=cancelled.set) as answers:
        part = answers.take(0)[0]
        threading.Timer(0.05, stop.request).start()
        assert part.answer is not None
        with pytest.raises(StopRequested):
            part.answer()
    assert cancelled.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch-")]


def test_at_most_a_few_requests_are_in_flight() -> None:
    lock, release = threading.Lock(), threading.Event()
    running = most = 0
    full = threading.Event()

    def ask(batch: Batch) -> TeacherTargets:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == MAX_THREADS:
                full.set()
        release.wait(DEADLINE)
        with lock:
            running -= 1
        return marked(batch)

    with prefetch(ask, ahead=6, end=20) as answers:
        answers.take(0)
        assert full.wait(DEADLINE)
        release.set()
    assert most == MAX_THREADS


class LateFuture(Future[TeacherTargets]):
    """A future that is answered just after a wait for it timed out."""

    def result(self, timeout: float | None = None) -> TeacherTargets:
        if not self.done():
            self.set_result(DenseTargets(torch.zeros(1, 2)))
            raise TimeoutError
        return super().result(timeout)


def test_an_answer_that_comes_as_the_wait_times_out_is_not_an_error() -> None:
    with prefetch(marked) as ahead:
        assert len(ahead._asking.wait_for(LateFuture())) == 1
