"""Requests the teacher's answers while the student computes: in threads, and for coming steps.

The requests and their order are the same for any number of threads or steps ahead, so answers, and
with them losses, do not depend on timing.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lectern_common.logs import get_logger
from student_trainer.batch import Batch
from student_trainer.stop import SLICE_SECONDS, Stop
from student_trainer.targets import TeacherTargets

_log = get_logger()

MAX_THREADS = 4
_JOIN_SECONDS = 5.0

Answer = Callable[[], TeacherTargets]


class Asking:
    """Makes requests in threads, in the order in which they are given.

    Args:
        name: of the threads.
        num_threads: 0 means that each request is made when its answer is needed, in the caller's
            thread.
        stop: ends every wait.
        cancel: makes requests in flight end soon.
    """

    def __init__(
        self, name: str, num_threads: int, stop: Stop, cancel: Callable[[], None] = lambda: None
    ) -> None:
        self._stop = stop
        self._cancel = cancel
        self._jobs: queue.SimpleQueue[tuple[Answer, Future[TeacherTargets]] | None] = (
            queue.SimpleQueue()
        )
        self._waited_seconds = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waited_seconds(self) -> float:
        """Seconds that callers have waited for answers so far."""
        return self._waited_seconds

    def answer_of(self, ask: Answer) -> Answer:
        """Requests an answer; returns a function that waits for it.

        The function raises what the request raises, and StopRequested on a stop.
        """
        if not self._threads:
            return lambda: self._timed(ask)
        future: Future[TeacherTargets] = Future()
        self._jobs.put((ask, future))
        return _Awaited(self, future)

    def close(self, unanswered: Iterable[Answer] = ()) -> None:
        """Ends the threads and drops these answers. Returns within a few seconds."""
        for _ in self._threads:
            self._jobs.put(None)
        for answer in unanswered:
            if isinstance(answer, _Awaited):
                answer.future.cancel()
        if self._threads:
            self._cancel()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [thread.name for thread in self._threads if thread.is_alive()]
        if left:
            _log.warning("prefetch_threads_left", threads=",".join(left))
        self._threads = []

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            ask, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(ask())
            except BaseException as error:  # re-raised in the loop
                future.set_exception(error)

    def _timed(self, wait: Answer) -> TeacherTargets:
        began = time.perf_counter()
        try:
            return wait()
        finally:
            self._waited_seconds += time.perf_counter() - began

    def wait_for(self, future: "Future[TeacherTargets]") -> TeacherTargets:
        """Returns the future's result or raises its error; raises StopRequested on a stop."""

        def wait() -> TeacherTargets:
            while True:
                self._stop.check()
                try:
                    return future.result(timeout=SLICE_SECONDS)
                except FutureTimeout:
                    # The answer may have come by now, or an error, even another TimeoutError.
                    if future.done():
                        return future.result()

        return self._timed(wait)


@dataclass(frozen=True)
class _Awaited:
    asking: Asking
    future: "Future[TeacherTargets]"

    def __call__(self) -> TeacherTargets:
        return self.asking.wait_for(self.future)


class TrainingBatches(Protocol):
    """Training data by step; called from one thread."""

    def batch_at(self, step: int) -> Batch:
        """Returns the rows of optimizer step `step`; equal steps give equal rows."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """Rows computed at one time; `answer()` returns the teacher's targets at their valid positions.

    `answer` is None without a teacher, or if no position is valid. With several sources there are
    `shares` instead, by rising source, which together are all rows.
    """

    batch: Batch
    answer: Answer | None
    shares: "tuple[Share, ...]" = field(default=(), kw_only=True)

    def answered(self) -> "MicroBatch":
        """Waits for the answer; returns the micro-batch with it. Raises what `answer` raises."""
        shares = tuple(replace(share, answer=_waited_for(share.answer)) for share in self.shares)
        return replace(self, answer=_waited_for(self.answer), shares=shares)


@dataclass(frozen=True)
class Share:
    """The rows of a micro-batch that are of one source; `answer` is its teacher's about them."""

    source: int
    rows: npt.NDArray[np.int64]
    answer: Answer | None


def _waited_for(answer: Answer | None) -> Answer | None:
    if answer is None:
        return None
    targets = answer()
    return lambda: targets


class Prefetch:
    """The micro-batches of each step, with teacher answers requested `prefetch_steps` ahead.

    Use as a context manager. Take steps in rising order.

    Args:
        batches: training data.
        ask: asks the teacher for one micro-batch of a step, blocking; called from up to MAX_THREADS
            threads. None means there is no teacher.
        micro_batch_sequences: rows of a micro-batch.
        prefetch_steps: 0 means to ask when the answer is needed, in the caller's thread.
        end: one past the last step; nothing is requested for it or later steps.
        stop: ends every wait.
        cancel: makes calls of `ask` in flight end soon.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        ask: Callable[[Batch, int], TeacherTargets] | None,
        *,
        micro_batch_sequences: int,
        prefetch_steps: int,
        end: int,
        stop: Stop,
        cancel: Callable[[], None] = lambda: None,
    ) -> None:
        self._batches = batches
        self._ask = ask
        self._micro_batch_sequences = micro_batch_sequences
        self._prefetch_steps = prefetch_steps if ask is not None else 0
        self._end = end
        self._asking = Asking("prefetch", min(MAX_THREADS, self._prefetch_steps), stop, cancel)
        self._ready: dict[int, list[MicroBatch]] = {}

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waited_seconds(self) -> float:
        """Seconds that callers of `answer` have waited so far."""
        return self._asking.waited_seconds

    def take(self, step: int) -> list[MicroBatch]:
        """Returns the micro-batches of `step`; first requests those of the coming steps too."""
        for coming in range(step, min(step + self._prefetch_steps, self._end - 1) + 1):
            if coming not in self._ready:
                self._ready[coming] = self._asked(coming)
        return self._ready.pop(step)

    def close(self) -> None:
        """Ends the threads and drops answers not yet taken. Returns within a few seconds."""
        micro_batches = [part for parts in self._ready.values() for part in parts]
        self._ready.clear()
        self._asking.close([part.answer for part in micro_batches if part.answer is not None])

    def _asked(self, step: int) -> list[MicroBatch]:
        parts = self._batches.batch_at(step).micro_batches(self._micro_batch_sequences)
        return [MicroBatch(part, self._answer_for(part, step)) for part in parts]

    def _answer_for(self, batch: Batch, step: int) -> Answer | None:
        ask = self._ask
        if ask is None or batch.num_valid == 0:
            return None
        return self._asking.answer_of(lambda: ask(batch, step))


@dataclass(frozen=True)
class AskedTeacher:
    """How one of several teachers is asked about the rows of its sources.

    Attributes:
        request: returns what asks about rows of one source (an index) of a step, blocking; it is
            called in the caller's thread, and what it returns in others.
        prefetch_steps: 0 means to ask when the answer is needed, in the caller's thread.
        cancel: makes requests in flight end soon.
    """

    request: Callable[[Batch, int, int], Answer]
    prefetch_steps: int
    cancel: Callable[[], None]


class MixedPrefetch:
    """The micro-batches of each step of several sources, each teacher asked its own steps ahead.

    Use as a context manager. Take steps in rising order. Each teacher has its own threads, so that
    a slow one holds up no other's answers.

    Args:
        batches: training data, with the source of each row.
        teachers: by name.
        teacher_of: the name of the teacher of each source; None for a source without one.
        micro_batch_sequences: rows of a micro-batch.
        end: one past the last step; nothing is requested for it or later steps.
        stop: ends every wait.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        teachers: Mapping[str, AskedTeacher],
        teacher_of: Mapping[int, str | None],
        *,
        micro_batch_sequences: int,
        end: int,
        stop: Stop,
    ) -> None:
        self._batches = batches
        self._teachers = teachers
        self._teacher_of = teacher_of
        self._micro_batch_sequences = micro_batch_sequences
        self._end = end
        self._asking = {
            name: Asking(f"prefetch-{name}", min(MAX_THREADS, one.prefetch_steps), stop, one.cancel)
            for name, one in teachers.items()
        }
        self._parts: dict[int, list[Batch]] = {}
        self._answers: dict[tuple[int, int, int], Answer] = {}  # by step, micro-batch, source
        self._asked = dict.fromkeys(teachers, -1)  # the last step that each was asked about

    def __enter__(self) -> "MixedPrefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waited_seconds(self) -> float:
        """Seconds that callers of `answer` have waited so far, for all teachers."""
        return sum(self.waited_seconds_by_teacher.values())

    @property
    def waited_seconds_by_teacher(self) -> dict[str, float]:
        """The same for each teacher, by name."""
        return {name: asking.waited_seconds for name, asking in self._asking.items()}

    def take(self, step: int) -> list[MicroBatch]:
        """Returns the micro-batches of `step`; first requests those of the coming steps too."""
        for name, teacher in self._teachers.items():
            last = min(step + teacher.prefetch_steps, self._end - 1)
            for coming in range(max(step, self._asked[name] + 1), last + 1):
                self._request(name, coming)
            self._asked[name] = max(self._asked[name], last)
        parts = self._parts_of(step)
        del self._parts[step]
        return [
            MicroBatch(part, None, shares=tuple(self._shares(part, step, index)))
            for index, part in enumerate(parts)
        ]

    def close(self) -> None:
        """Ends the threads and drops answers not yet taken. Returns within a few seconds."""
        for asking in self._asking.values():
            asking.close(self._answers.values())
        self._answers.clear()
        self._parts.clear()

    def _parts_of(self, step: int) -> list[Batch]:
        if step not in self._parts:
            batch = self._batches.batch_at(step)
            self._parts[step] = batch.micro_batches(self._micro_batch_sequences)
        return self._parts[step]

    def _request(self, name: str, step: int) -> None:
        """Asks a teacher about the rows of its sources in a step."""
        for index, part in enumerate(self._parts_of(step)):
            for source, rows in rows_by_source(part):
                batch = part.rows(rows)
                if self._teacher_of[source] == name and batch.num_valid:
                    self._answers[step, index, source] = self._asking[name].answer_of(
                        self._teachers[name].request(batch, step, source)
                    )

    def _shares(self, part: Batch, step: int, index: int) -> Iterable[Share]:
        for source, rows in rows_by_source(part):
            yield Share(source, rows, self._answers.pop((step, index, source), None))


def rows_by_source(batch: Batch) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Returns the rows of each source that a batch has any of, by rising source."""
    if batch.sources_B is None:
        raise ValueError("the batch does not say of which source its rows are")
    return [
        (int(source), np.flatnonzero(batch.sources_B == source))
        for source in np.unique(batch.sources_B)
    ]
