"""Requests made again, outages, and many at once, with a clock that is set by hand."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lectern_common.errors import TeacherUnavailable, Unauthenticated
from lectern_data.asking.answer import Answer, RefusedError, TryAgainError
from lectern_data.asking.pool import MAX_TRIES, Asking
from lectern_data.asking.requests import Request

ANSWER = Answer(None, "hi", "stop", 1, "m")
FAILED = TryAgainError("answers 500")
BUSY = TryAgainError("answers 429", "busy")
AWAY = TryAgainError("answers 502", "away")
GONE = TryAgainError("cannot reach it", "unreached")


class Scripted:
    """Answers as told, a list for each key; then with ANSWER. Time passes only in `sleep`."""

    def __init__(self, **script: list[Exception]) -> None:
        self.script = script
        self.made: list[str] = []
        self.slept: list[float] = []
        self.said: list[str] = []
        self.now = 100.0
        self.under_way = self.most = 0

    async def ask(self, request: Request) -> Answer:
        self.made.append(request.key)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        if self.script.get(request.key):
            raise self.script[request.key].pop(0)
        return ANSWER

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def asking(self, outage_seconds: float = 60.0) -> Asking:
        return Asking(
            self.ask, outage_seconds, self.said.append, clock=lambda: self.now, sleep=self.sleep
        )


def request(key: str) -> Request:
    return Request(key, 0, "text", {})


def answered(server: Scripted, key: str = "a", **settings: Any) -> Answer:
    return asyncio.run(server.asking(**settings).answer(request(key)))


def test_a_failed_request_is_made_again_after_growing_pauses() -> None:
    server = Scripted(a=[FAILED, FAILED, FAILED])
    assert answered(server) == ANSWER
    assert server.made == ["a"] * 4 and server.slept == [0.5, 1.0, 2.0] and server.said == []


def test_a_request_that_keeps_failing_is_given_up() -> None:
    server = Scripted(a=[FAILED] * 99)
    with pytest.raises(TryAgainError, match="answers 500"):
        answered(server)
    assert len(server.made) == MAX_TRIES


def test_a_busy_server_is_waited_for_however_often_it_says_so() -> None:
    server = Scripted(a=[BUSY] * 9)
    assert answered(server, outage_seconds=1000.0) == ANSWER
    assert server.slept[-1] == 30.0 and max(server.slept) == 30.0
    assert server.said == [
        "answers 429; trying again for up to 1000 s",
        "the server answers again",
    ]


def test_a_server_that_says_how_long_to_wait_is_heard() -> None:
    server = Scripted(a=[TryAgainError("busy", "busy", 17.0)])
    assert answered(server) == ANSWER
    assert server.slept == [17.0]


def test_a_server_that_is_away_is_waited_for() -> None:
    server = Scripted(a=[AWAY] * 9)
    assert answered(server, outage_seconds=1000.0) == ANSWER


def test_a_request_of_which_the_server_dies_each_time_is_given_up() -> None:
    """Others are answered in between, so it is not the server that is away."""
    for error in (AWAY, GONE):
        server = Scripted(a=[error] * 99)
        asking = server.asking(10_000.0)

        async def both(asking: Asking = asking) -> None:
            await asking.answer(request("first"))
            others = asyncio.ensure_future(
                asking.every(iter([request("b")] * 500), 1, lambda *_: None, lambda *_: None)
            )
            with pytest.raises(TryAgainError):
                await asking.answer(request("a"))
            await others

        asyncio.run(both())
        # During the first try, nothing else has been answered yet.
        assert server.made.count("a") in (MAX_TRIES, MAX_TRIES + 1)


def test_an_outage_ends_the_requests_once_its_time_is_over() -> None:
    server = Scripted(a=[BUSY] * 999)
    with pytest.raises(TeacherUnavailable, match=r"answers 429. No reply for 60 s"):
        answered(server)
    assert 60 <= sum(server.slept) < 60 + 30


class Slow(Scripted):
    """As Scripted, but a failure takes as long as an outage may last."""

    async def ask(self, request: Request) -> Answer:
        try:
            return await super().ask(request)
        except TryAgainError:
            self.now += 60.0
            raise


def test_one_request_that_always_takes_too_long_is_given_up_and_the_others_are_answered() -> None:
    for keys, at_once in (("abcd", 1), ("abcd", 4), ("bcda", 1), ("a", 1)):
        server = Slow(a=[TryAgainError("no answer in 60 s")] * 99)
        some, none = every(server, keys, at_once, outage_seconds=60.0)
        assert none == ["a"] and sorted(some) == sorted(set(keys) - {"a"})
        assert server.made.count("a") == MAX_TRIES


def test_a_server_that_answers_no_request_in_time_is_away() -> None:
    slow: list[Exception] = [TryAgainError("no answer in 60 s")]
    server = Slow(**dict.fromkeys("abcd", slow * 99))
    with pytest.raises(TeacherUnavailable, match=r"no answer in 60 s. No reply for 60 s"):
        every(server, "abcd", 2, outage_seconds=60.0)
    assert len(server.made) < 2 * MAX_TRIES


def test_an_address_at_which_nothing_has_ever_answered_is_not_waited_for() -> None:
    server = Scripted(a=[GONE])
    with pytest.raises(TeacherUnavailable, match="is the server running"):
        answered(server)
    assert server.made == ["a"]


def test_a_server_that_answered_before_is_waited_for_when_it_is_gone() -> None:
    server = Scripted(b=[GONE] * 8)
    asking = server.asking(1000.0)

    async def both() -> None:
        await asking.answer(request("a"))
        await asking.answer(request("b"))

    asyncio.run(both())
    assert asking.retries == 8 and server.said[-1] == "the server answers again"


def test_a_refusal_is_a_reply_and_is_not_asked_again() -> None:
    server = Scripted(a=[RefusedError("too long")], b=[GONE])
    asking = server.asking()

    async def both() -> None:
        with pytest.raises(RefusedError):
            await asking.answer(request("a"))
        await asking.answer(request("b"))

    asyncio.run(both())
    assert server.made == ["a", "b", "b"]


def every(
    server: Scripted, keys: str, at_once: int = 2, outage_seconds: float = 10_000.0
) -> tuple[list[str], list[str]]:
    """Returns the keys with an answer and those without one, in the order in which they came."""
    some, none = list[str](), list[str]()
    asyncio.run(
        server.asking(outage_seconds).every(
            iter([request(key) for key in keys]),
            at_once,
            lambda one, _: some.append(one.key),
            lambda one, _: none.append(one.key),
        )
    )
    return some, none


@pytest.mark.parametrize("at_once", [1, 3, 26, 99])
def test_so_many_requests_are_under_way_and_each_is_made_once(at_once: int) -> None:
    server, keys = Scripted(), "abcdefghijklmnopqrstuvwxyz"
    some, none = every(server, keys, at_once)
    assert sorted(some) == sorted(server.made) == sorted(keys) and none == []
    assert server.most == min(at_once, len(keys))


def test_one_that_fails_or_is_refused_does_not_stop_the_others() -> None:
    server = Scripted(b=[FAILED] * 99, d=[RefusedError("no")])
    some, none = every(server, "abcde")
    assert sorted(some) == ["a", "c", "e"] and sorted(none) == ["b", "d"]


@pytest.mark.parametrize("error", [Unauthenticated("which key?"), RuntimeError("a bug")])
def test_an_error_that_concerns_all_stops_them_at_once(error: Exception) -> None:
    server = Scripted(c=[error])
    with pytest.raises(type(error), match=str(error)):
        every(server, "abcdefghijklmnop")
    assert len(server.made) < 9


def test_what_receives_an_answer_may_end_it_all() -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    taken: Callable[..., None] = full
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(Scripted().asking().every(iter([request("a")] * 9), 2, taken, taken))
