"""Large replies to clients that read slowly, or not at all."""

import concurrent.futures
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from lectern_common import http_server
from lectern_common.errors import Overloaded
from lectern_common.teacher.channel import TeacherChannel
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.http.sending import Replies
from tests.support.servers import TeacherThread, http_teacher, wait_for

V = 97
TOKENS = 1500  # about 7 MB of JSON, more than the kernel takes of it


def connections(teacher: TeacherThread) -> list[Any]:
    return list(teacher._http._server.server_state.connections)  # type: ignore[union-attr]


def asked(teacher: TeacherThread) -> socket.socket:
    """Returns a connection on which a large reply was asked, and nothing of it is read."""
    parts = urlsplit(teacher.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((parts.hostname or "", parts.port or 0))
    body = json.dumps(
        {"prompt": [index % V for index in range(TOKENS)], "max_tokens": 0, "prompt_logprobs": V}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    wait_for(lambda: any(one.unsent for one in connections(teacher)))
    return client


def read(client: socket.socket) -> bytes:
    """Returns the body of a reply."""
    stream = client.makefile("rb")
    assert b" 200 " in stream.readline()
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    assert length
    return stream.read(length)


def test_a_slow_reader_gets_all_of_it_and_only_then_it_counts() -> None:
    with (
        http_teacher(FixtureEngine(V)) as teacher,
        TeacherChannel(teacher.address) as channel,
        asked(teacher) as client,
    ):
        (one,) = connections(teacher)
        assert one.unsent <= 300 << 10 and not one.waits
        assert [run.requests for run in channel.get_stats().runs if run.requests] == []
        (choice,) = json.loads(read(client))["choices"]
        assert len(choice["prompt_logprobs"]) == TOKENS
        wait_for(lambda: [run.requests for run in channel.get_stats().runs] == [1])
        wait_for(lambda: one.waits)


def test_a_client_that_takes_nothing_is_cut_off_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "STALLED_SECONDS", 0.5)
    with (
        http_teacher(FixtureEngine(V)) as teacher,
        TeacherChannel(teacher.address) as channel,
        asked(teacher),
    ):
        wait_for(lambda: not connections(teacher))
        assert [run.requests for run in channel.get_stats().runs if run.requests] == []
        assert teacher.drain()


def test_a_drain_waits_for_the_reader() -> None:
    teacher = TeacherThread(http=True)
    try:
        teacher.open(FixtureEngine(V))
        with asked(teacher) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
            drained = pool.submit(teacher.drain)
            health = f"{teacher.url}/health"
            wait_for(lambda: httpx.get(health, trust_env=False).status_code == 503)
            assert not drained.done()
            assert json.loads(read(client))["usage"]["total_tokens"] == TOKENS
            assert drained.result()
    finally:
        teacher.close()


def test_what_all_replies_hold_is_bounded_and_given_back_once() -> None:
    replies = Replies(100)
    give_back = replies.take(60)
    with pytest.raises(Overloaded, match="too many large replies"):
        replies.take(41)
    replies.take(40)
    give_back()
    give_back()
    assert replies.held == 40
