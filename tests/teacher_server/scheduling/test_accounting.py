"""Counters, by hand."""

from collections import deque

from teacher_server.scheduling.accounting import MAX_RUNS, Accounting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_work_is_charged_to_the_run_and_to_the_server() -> None:
    clock = Clock()
    accounting = Accounting(clock)
    accounting.forward(150, 2, 160, 3.0)
    accounting.charged("a", 100.0, 2.0)
    accounting.charged("b", 50.0, 1.0)
    accounting.derived("a", 0.5)
    accounting.cache_hit("a", 70)
    accounting.cache_miss("a", 30)
    accounting.answered("a", 4000, 0.25)
    assert (accounting.scored_tokens, accounting.scored_sequences) == (150, 2)
    assert (accounting.forwards, accounting.padding_tokens) == (1, 10)
    assert (accounting.compute_seconds, accounting.sent_bytes) == (3.5, 4000)
    run = accounting.runs["a"]
    assert (run.requests, run.tokens, run.sent_bytes, run.cache_hits) == (1, 100, 4000, 1)
    assert (run.compute_seconds, run.queue_seconds) == (2.5, 0.25)
    assert (run.cache_misses, run.asked_tokens) == (1, 100)
    assert accounting.runs["b"].requests == 0


def test_the_rate_is_of_forward_time_over_the_last_minute() -> None:
    clock = Clock()
    accounting = Accounting(clock)
    assert accounting.tokens_per_second() == 0
    accounting.forward(100, 1, 100, 2.0)
    clock.now = 59.0
    accounting.forward(300, 1, 300, 2.0)
    assert accounting.tokens_per_second() == 100
    clock.now = 61.0
    assert accounting.tokens_per_second() == 150
    clock.now = 1000.0
    assert accounting.tokens_per_second() == 0
    assert accounting.uptime_seconds == 1000


def test_the_rate_is_exact_after_any_number_of_forwards() -> None:
    clock = Clock()
    accounting = Accounting(clock)
    for index in range(1000):
        clock.now += 1.0
        accounting.forward(index, 1, index, 0.1 + 1e-5 * index)
    # Those of the last minute: 939 to 999, at 940 to 1000 seconds.
    assert accounting.tokens_per_second() == sum(range(939, 1000)) / 6.69109


def test_reading_the_rate_does_not_scan_the_forwards() -> None:
    """It is read at every refusal, and a minute has tens of thousands of forwards."""

    class Unread(deque):
        def __iter__(self):
            raise AssertionError("read through")

    accounting = Accounting(Clock())
    accounting._recent = Unread()
    accounting.forward(100, 1, 100, 2.0)
    assert accounting.tokens_per_second() == 50


def test_run_ids_from_clients_do_not_fill_the_memory() -> None:
    accounting = Accounting(Clock())
    for index in range(MAX_RUNS):
        accounting.answered(f"run-{index}", 1, 0.0)
    accounting.charged("run-0", 1, 0.1)
    accounting.answered("another", 1, 0.0)
    assert len(accounting.runs) == MAX_RUNS
    assert "run-0" in accounting.runs and "run-1" not in accounting.runs
