"""Retries: what counts as an outage, when it ends, how it is reported. With a fake clock."""

from collections.abc import Callable

import pytest

from lectern_common.errors import LecternError, Overloaded, TeacherError, TeacherUnavailable
from student_trainer.stop import Stop, StopRequested
from student_trainer.teacher.outage import Outage


class Time(Stop):
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.check()
        self.slept.append(seconds)
        self.now += seconds


def asked(*answers: Exception | str) -> tuple[Callable[[float | None], str], list[float | None]]:
    """Returns a function that gives each answer in turn, and the seconds left of each call."""
    calls: list[float | None] = []

    def ask(left: float | None) -> str:
        calls.append(left)
        answer = answers[len(calls) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask, calls


def gone() -> TeacherUnavailable:
    return TeacherUnavailable("no teacher at here")


def test_an_answer_is_returned_at_once() -> None:
    time, told = Time(), list[str | None]()
    ask, calls = asked("answer")
    assert Outage(10, time, told.append, lambda: time.now).until_answered(ask) == "answer"
    assert (calls, time.slept, told) == ([None], [], [])


def test_an_outage_is_reported_once_when_it_begins_and_once_when_it_ends() -> None:
    time, told = Time(), list[str | None]()
    ask, calls = asked(gone(), gone(), gone(), "answer")
    outage = Outage(10, time, told.append, lambda: time.now, wall_clock=lambda: 1_800_000_000.0)
    assert outage.until_answered(ask) == "answer"
    assert told == [
        "no teacher at here. The run waits for the teacher until 2027-01-15 08:00:10 UTC: "
        "teacher.outage_budget_seconds is 10",
        None,
    ]
    assert time.slept == pytest.approx([0.1, 0.2, 0.4])
    assert calls[0] is None
    assert calls[1:] == pytest.approx([10, 9.9, 9.7])


def test_an_outage_beyond_its_budget_ends_the_retries() -> None:
    time, told = Time(), list[str | None]()
    outage = Outage(2.5, time, told.append, lambda: time.now)
    ask, _ = asked(*[gone()] * 20)
    with pytest.raises(TeacherUnavailable, match=r"no teacher at here\. .* resume the run"):
        outage.until_answered(ask)
    assert sum(time.slept) == pytest.approx(2.5)
    assert len(told) == 1


def test_a_budget_of_zero_makes_no_retry() -> None:
    time = Time()
    ask, calls = asked(gone(), "answer")
    with pytest.raises(TeacherUnavailable):
        Outage(0, time, clock=lambda: time.now).until_answered(ask)
    assert len(calls) == 1


def test_only_continuous_absence_counts() -> None:
    time = Time()
    outage = Outage(1.0, time, clock=lambda: time.now)
    for _ in range(5):
        ask, _ = asked(gone(), gone(), "answer")
        assert outage.until_answered(ask) == "answer"
    assert sum(time.slept) == pytest.approx(1.5)


def test_an_overloaded_teacher_is_asked_again_when_it_says_and_is_no_outage() -> None:
    time, told = Time(), list[str | None]()
    busy = Overloaded("queue full", retry_after_seconds=7)
    ask, calls = asked(gone(), busy, busy, busy, "answer")
    assert Outage(5, time, told.append, lambda: time.now).until_answered(ask) == "answer"
    assert time.slept == pytest.approx([0.1, 7, 7, 7])
    assert (len(told), told[-1]) == (2, None)
    assert calls[2:] == [None, None, None]


@pytest.mark.parametrize("error", [TeacherError("bad bytes"), LecternError("what")])
def test_other_errors_are_raised_at_once(error: LecternError) -> None:
    time = Time()
    ask, calls = asked(error, "answer")
    with pytest.raises(type(error)):
        Outage(10, time, clock=lambda: time.now).until_answered(ask)
    assert len(calls) == 1


def test_a_stop_ends_the_retries() -> None:
    time = Time()

    def ask(left: float | None) -> str:
        time.request()
        raise gone()

    with pytest.raises(StopRequested):
        Outage(10, time, clock=lambda: time.now).until_answered(ask)
    assert time.slept == []


def test_one_answer_ends_the_outage_for_all() -> None:
    time, told = Time(), list[str | None]()
    outage = Outage(1.0, time, told.append, lambda: time.now)
    inner, _ = asked("answer")

    def ask(left: float | None) -> str:
        if time.now < 102:
            if time.slept and time.now > 100.8:
                outage.until_answered(inner)  # another thread's answer
            raise gone()
        return "answer"

    assert outage.until_answered(ask) == "answer"
    assert told[0] is not None
    assert told.count(None) >= 2


def test_the_time_away_is_counted_over_all_outages_and_while_one_lasts() -> None:
    time, seen = Time(), list[float]()
    outage = Outage(100, time, clock=lambda: time.now)
    assert outage.away_seconds == 0

    def ask(left: float | None) -> str:
        if left is None or left > 100 - 4:
            seen.append(outage.away_seconds)
            raise gone()
        return "answer"

    for _ in range(2):
        outage.until_answered(ask)
        time.sleep(50)
    assert seen[-1] > seen[1] > seen[0] == 0
    assert outage.away_seconds == sum(time.slept) - 2 * 50
