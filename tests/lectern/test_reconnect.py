"""Commands that wait outlive a restart of the control plane, for as long as they say."""

from collections.abc import Callable, Generator
from typing import Any

import httpx
import pytest

from lectern.client import Client
from lectern.reconnect import (
    ControlPlaneUnavailable,
    Reconnecting,
    ServerEvent,
    events_of,
    followed,
)
from lectern_common.errors import Conflict, LecternError, Overloaded


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def reconnecting(said: list[str], limit: float = 10.0, **options: Any) -> Reconnecting:
    clock = Clock()
    return Reconnecting(
        said.append, limit, sleep=clock.sleep, monotonic=lambda: clock.now, **options
    )


def answering(*answers: Exception | str) -> Callable[[], str]:
    coming = iter(answers)

    def call() -> str:
        answer = next(coming)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


AWAY = ControlPlaneUnavailable("no control plane at http://127.0.0.1:1")


@pytest.mark.parametrize("error", [AWAY, Overloaded("starting")])
def test_a_control_plane_that_comes_back_is_waited_for_and_both_are_said_once(error):
    said: list[str] = []
    outlasting = reconnecting(said)
    call = answering("before", error, error, error, "after")
    assert [outlasting.ask(call), outlasting.ask(call)] == ["before", "after"]
    assert said == [
        f"{error}; trying again for up to 10 s",
        "the control plane answers again",
    ]


def test_one_that_stays_away_is_given_up_after_the_limit():
    said: list[str] = []
    outlasting = reconnecting(said, has_answered=True)
    with pytest.raises(ControlPlaneUnavailable, match=r"no answer for 10 s.*runs are not affected"):
        outlasting.ask(answering(*[AWAY] * 20))
    assert len(said) == 1


def test_one_that_never_answered_is_not_waited_for():
    said: list[str] = []
    with pytest.raises(ControlPlaneUnavailable):
        reconnecting(said).ask(answering(AWAY, "later"))
    assert said == []


def test_other_errors_are_raised_at_once():
    outlasting = reconnecting([], has_answered=True)
    with pytest.raises(Conflict):
        outlasting.ask(answering(Conflict("no"), "later"))


def test_what_the_server_calls_retryable_is_asked_again():
    body = {"reason": "database_unavailable", "detail": "locked", "retryable": True, "errors": []}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json=body)

    with (
        Client("http://127.0.0.1", token="", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(LecternError) as caught,
    ):
        client.get_run("a")
    assert (caught.value.reason, caught.value.retryable) == ("database_unavailable", True)


def test_wait_outlives_a_restart():
    run = {"id": "a", "name": "a", "state": "running"}
    coming = iter([200, 503, 503, 200])
    said: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        status = next(coming)
        if status == 503:
            return httpx.Response(503, json={"reason": "overloaded", "detail": "starting"})
        answered = dict(run)
        run["state"] = "succeeded"
        return httpx.Response(200, json=answered)

    with Client("http://127.0.0.1", token="", transport=httpx.MockTransport(answer)) as client:
        [ended] = client.wait(["a"], poll_seconds=0, say=said.append)
    assert ended.state == "succeeded"
    assert said[-1] == "the control plane answers again"


def test_the_token_of_this_machine_is_sent_to_this_machine_only(tmp_path, monkeypatch):
    monkeypatch.setenv("LECTERN_HOME", str(tmp_path))
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "control-plane").write_text("the-token-of-this-machine\n")

    def sent(url: str, token: str | None = None) -> str | None:
        with Client(url, token=token) as client:
            value: str | None = client._transport.http.headers.get("authorization")
            return value

    for own in ("http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:2"):
        assert sent(own) == "Bearer the-token-of-this-machine"
        assert sent(own, "") is None
        assert sent(own, "another") == "Bearer another"
    for other in ("http://control-plane:8080", "http://192.0.2.1", "https://127.0.0.1.example"):
        assert sent(other) is None


def stream(*lines: str) -> list[ServerEvent]:
    return list(events_of(lines))


def test_a_stream_is_read_as_the_standard_has_it():
    assert stream("retry: 1000", "", "id: 7", "", ": still here", "", "event: log", "id:8", "") == [
        ServerEvent("", {}, "7"),
        ServerEvent("log", {}, "8"),
    ]
    assert stream("id: 9", 'data: {"text": "a: b\\n"}', "event: log", "") == [
        ServerEvent("log", {"text": "a: b\n"}, "9")
    ]
    assert stream("event: log", 'data: {"text": "not ended"}') == []


@pytest.mark.parametrize("data", ["{", "[1]", "3", "null", ""])
def test_an_event_that_is_no_object_is_the_fault_of_the_other_side(data):
    with pytest.raises(ControlPlaneUnavailable):
        stream("event: log", f"data: {data}", "")


def test_a_stream_that_breaks_off_goes_on_after_the_last_event():
    asked: list[str | None] = []
    said: list[str] = []
    parts: list[list[ServerEvent | Exception]] = [
        [ServerEvent("", {}, "0"), ServerEvent("log", {"n": 1}, "3"), AWAY],
        [AWAY],
        [Overloaded("starting")],
        [ServerEvent("", {}, "3"), ServerEvent("log", {"n": 2}, "5")],  # then it ends
        [ServerEvent("", {}, "5"), ServerEvent("", {}, "6"), AWAY],
        [ServerEvent("log", {"n": 3}, "9"), Conflict("no")],
    ]

    def opened(last: str | None) -> Generator[ServerEvent]:
        asked.append(last)
        for one in parts.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one

    events = followed(opened, reconnecting(said))
    assert [next(events).data["n"] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(Conflict):
        next(events)
    assert asked == [None, "3", "3", "3", "5", "6"]
    assert said.count("the control plane answers again") == 3


def test_a_stream_that_never_began_is_not_waited_for():
    def opened(last: str | None) -> Generator[ServerEvent]:
        raise AWAY
        yield

    with pytest.raises(ControlPlaneUnavailable, match="no control plane at"):
        next(followed(opened, reconnecting([])))


def test_a_stream_that_is_left_is_closed():
    closed: list[bool] = []

    def opened(last: str | None) -> Generator[ServerEvent]:
        try:
            yield ServerEvent("log", {}, "1")
        finally:
            closed.append(True)

    events = followed(opened, reconnecting([]))
    next(events)
    events.close()
    assert closed == [True]
