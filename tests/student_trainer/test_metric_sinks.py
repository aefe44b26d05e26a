"""Sinks slower than the loop: what waits, what is dropped, what is said."""

import threading
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from lectern_common.errors import DiskFull
from student_trainer.metric_sinks import Metrics, QueuedSink
from student_trainer.stopping import Stop


class Slow:
    """A sink that writes when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.steps: list[int] = []

    def write(self, step: int, metrics: Metrics) -> None:
        self.go.wait(20)
        self.steps.append(step)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_a_sink_slower_than_the_loop_drops_and_counts_and_never_blocks() -> None:
    slow = Slow()
    sink = QueuedSink(slow, limit=5)
    for step in range(50):
        sink.put(step, {})
    assert sink.dropped >= 44
    slow.go.set()
    sink.close()
    assert len(slow.steps) + sink.dropped == 50
    assert slow.steps == sorted(slow.steps)


class Patience:
    """Waits like `threading.Event.wait`, but is over at once the first `impatient` times."""

    def __init__(self, impatient: int, then: Callable[[], None] = lambda: None) -> None:
        self._impatient = impatient
        self._then = then
        self.asked: list[float] = []

    def __call__(self, event: threading.Event, seconds: float) -> bool:
        self.asked.append(seconds)
        if len(self.asked) <= self._impatient:
            return False
        self._then()
        return event.wait(20)


def test_a_stalled_disk_is_waited_for_and_said_each_half_minute() -> None:
    slow = Slow()
    sink = QueuedSink(slow, wait=Patience(3, slow.go.set))
    for step in range(4):
        sink.put(step, {})
    with capture_logs() as logs:
        sink.flush(Stop())
    assert slow.steps == [0, 1, 2, 3]
    assert [(entry["event"], entry["seconds"], entry["lines"]) for entry in logs] == [
        ("disk_stalled", 30.0, 4),
        ("disk_stalled", 60.0, 4),
        ("disk_stalled", 90.0, 4),
    ]
    sink.close()


def test_a_full_queue_is_flushed_too() -> None:
    slow = Slow()
    sink = QueuedSink(slow, limit=2, wait=Patience(1, slow.go.set))
    for step in range(9):
        sink.put(step, {})
    sink.flush(Stop())
    assert len(slow.steps) + sink.dropped == 9
    sink.close()


def test_a_stop_during_a_stall_ends_the_wait_with_an_error() -> None:
    slow, stop = Slow(), Stop()
    sink = QueuedSink(slow, wait=Patience(2))
    sink.put(0, {})
    stop.request()
    with pytest.raises(DiskFull, match="took no line for 30 s") as caught:
        sink.flush(stop)
    assert (caught.value.reason, caught.value.retryable) == ("disk_stalled", True)
    assert slow.steps == []
    slow.go.set()
    sink.close()


def test_what_is_left_when_the_end_cannot_wait_is_counted_and_said() -> None:
    slow = Slow()
    sink = QueuedSink(slow, wait=Patience(1))
    for step in range(5):
        sink.put(step, {})
    with capture_logs() as logs:
        sink.close()
    assert sink.dropped == 5
    assert [(entry["log_level"], entry["lines_lost"]) for entry in logs] == [("error", 5)]
    slow.go.set()
    sink._thread.join()


def test_a_place_that_may_fail_never_keeps_the_loop_waiting() -> None:
    """S14: it is not waited for at a checkpoint, and its lines drop where it is too slow."""
    slow = Slow()
    sink = QueuedSink(slow, limit=3, may_fail=True)
    for step in range(20):
        sink.put(step, {})
    sink.flush(Stop())
    assert sink.dropped >= 16
    assert sink.problem is None
    slow.go.set()
    sink.close()
    assert len(slow.steps) + sink.dropped == 20


class Failing(Slow):
    """Writes once, then fails."""

    def write(self, step: int, metrics: Metrics) -> None:
        super().write(step, metrics)
        if step > 0:
            raise ConnectionError("no network")


def test_a_place_that_may_fail_and_does_costs_its_own_lines_alone() -> None:
    failing = Failing()
    sink = QueuedSink(failing, may_fail=True)
    with capture_logs() as logs:
        for step in range(5):
            sink.put(step, {})
        failing.go.set()
        sink.close()
        sink.put(5, {})  # raises nothing
    assert failing.steps == [0, 1]
    assert sink.dropped == 4
    assert sink.problem == "ConnectionError: no network"
    assert [entry["event"] for entry in logs] == ["sink_failed"]


def test_a_place_that_may_not_fail_ends_the_loop_with_its_error() -> None:
    failing = Failing()
    failing.go.set()
    sink = QueuedSink(failing)
    for step in range(2):
        sink.put(step, {})
    sink.flush(Stop())
    with pytest.raises(ConnectionError):
        sink.put(2, {})
    sink.close()
