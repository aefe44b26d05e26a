"""The HTTP face over a real socket: states, tokens, the shared queue, and clients that leave."""

import asyncio
import base64
import concurrent.futures
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from lectern_common.errors import Misconfigured, TeacherError
from lectern_common.teacher.channel import TeacherChannel
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.http.app import ANONYMOUS
from teacher_server.http.server import HttpServer
from teacher_server.rpc.gate import Gate
from teacher_server.rpc.limits import Limits
from teacher_server.scheduling.sharing import Sharing
from tests.support.asking import request, score
from tests.support.certificates import Authority
from tests.support.engines import BreakingEngine, GatedEngine
from tests.support.servers import (
    TeacherProcess,
    TeacherThread,
    http_teacher,
    teacher_process,
    wait_for,
)

TOKEN = "0123456789abcdef" * 2
V = 97


def body(*ids: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": list(ids), "max_tokens": 0, "prompt_logprobs": 1, **fields}


def post(url: str, ask: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json=ask, trust_env=False, timeout=60, **options)


def get(url: str, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"{url}{path}", trust_env=False, timeout=60, **options)


# ---- states ------------------------------------------------------------------------------------


def test_loading_then_serving_then_draining() -> None:
    server = TeacherThread(http=True)
    try:
        assert get(server.url, "/health").status_code == 503
        loading = post(server.url, body(1, 2))
        assert loading.status_code == 503 and loading.headers["retry-after"] == "1"
        assert loading.json()["error"]["type"] == "teacher_unavailable"
        server.open(FixtureEngine(V))
        health = get(server.url, "/health")
        assert (health.status_code, health.content) == (200, b"")
        (model,) = get(server.url, "/v1/models").json()["data"]
        assert (model["id"], model["object"]) == (f"fixture-{V}", "model")
        assert model["max_model_len"] == Limits().max_sequence_tokens
        assert post(server.url, body(1, 2, model=model["id"])).status_code == 200
        server.drain()
        assert get(server.url, "/health").status_code == 503
        assert post(server.url, body(1, 2)).status_code == 503
    finally:
        server.close()


def test_a_drain_lets_calls_in_flight_finish() -> None:
    engine = GatedEngine()
    server = TeacherThread(http=True)
    try:
        server.open(engine)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answer = pool.submit(post, server.url, body(5, 6))
            wait_for(lambda: engine.begun)
            drained = pool.submit(server.drain)
            wait_for(lambda: get(server.url, "/health").status_code == 503)
            assert not drained.done()
            engine.allow(1)
            assert answer.result().status_code == 200
            assert drained.result()
    finally:
        server.close()


# ---- who may call ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[TeacherThread]:
    with http_teacher(FixtureEngine(V), token=TOKEN) as teacher:
        yield teacher


def basic(name: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-token-of-some-length"},
        {"authorization": TOKEN},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Basic !!!"},
        {"authorization": f"Digest {TOKEN}"},
        basic(TOKEN, ""),
        basic("run-1", "wrong"),
        {"authorization": f"Basic {base64.b64encode(TOKEN.encode()).decode()}"},
    ],
)
def test_without_the_token_every_route_but_health_is_refused(
    guarded: TeacherThread, headers: dict[str, str]
) -> None:
    for reply in (
        get(guarded.url, "/v1/models", headers=headers),
        post(guarded.url, body(1, 2), headers=headers),
        get(guarded.url, "/nowhere", headers=headers),
    ):
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"].startswith("Bearer, Basic")
        assert reply.json()["error"]["type"] == "unauthenticated"
        assert TOKEN not in reply.text
    assert get(guarded.url, "/health", headers=headers).status_code == 200


def test_the_token_goes_as_bearer_or_as_the_password_of_a_url(guarded: TeacherThread) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert post(guarded.url, body(1, 2), headers=bearer).status_code == 200
    parts = urlsplit(guarded.url)
    assert post(f"http://coder-7:{TOKEN}@{parts.netloc}", body(1, 2)).status_code == 200


def test_two_authorizations_are_none(guarded: TeacherThread) -> None:
    parts = urlsplit(guarded.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.putrequest("GET", "/v1/models")
    connection.putheader("Authorization", "Bearer wrong-token-of-some-length")
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
)
def test_pages_of_browsers_are_refused(headers: dict[str, str]) -> None:
    with http_teacher(FixtureEngine(V)) as teacher:
        reply = post(teacher.url, body(1, 2), headers=headers)
    assert reply.status_code == 403


def test_a_bind_beyond_loopback_needs_a_token(tmp_path: Path) -> None:
    options = ("--engine", "fixture", "--vocab-size", "97", "--http", "0.0.0.0:0")
    with pytest.raises(RuntimeError, match=r"--http 0\.0\.0\.0:0 .*--token-file"):
        TeacherProcess(tmp_path, *options)


def test_a_taken_port_is_refused_by_the_name_of_its_option() -> None:
    async def start(port: int) -> None:
        await HttpServer("127.0.0.1", port, Gate()).start()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Misconfigured, match=f"127.0.0.1:{port}.*another --http"):
            asyncio.run(start(port))


def test_a_process_serves_http_with_tls_and_says_where(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("teacher", "localhost", "127.0.0.1")
    (tmp_path / "token").write_text(TOKEN)
    options = ("--engine", "fixture", "--vocab-size", "97", "--http", "127.0.0.1:0")
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with teacher_process(
        tmp_path, *options, *tls, "--token-file", str(tmp_path / "token")
    ) as teacher:
        assert teacher.process.stdout is not None
        lines = iter(teacher.process.stdout.readline, "")
        url = next(line.split()[1] for line in lines if line.split()[:1] == ["http"])
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(authority.path))
        headers = {"authorization": f"Bearer {TOKEN}"}
        reply = post(url, body(1, 2), headers=headers, verify=context)
        assert reply.status_code == 200
        status, _, errors = teacher.stop()
        assert status == 0, errors


# ---- the queue, shared with gRPC ---------------------------------------------------------------


def test_work_is_charged_to_header_else_user_name_else_user() -> None:
    with http_teacher(FixtureEngine(V)) as teacher, TeacherChannel(teacher.address) as channel:
        named = {**basic("by-name", "x"), "lectern-run-id": "by-header"}
        for ask, headers in (
            (body(1, 2, 3, user="by-body"), named),
            (body(1, 2, 4, user="by-body"), basic("by-name", "")),
            (body(1, 2, 5, user="by-body"), {}),
            (body(1, 2, 6), {}),
        ):
            reply = post(teacher.url, ask, headers=headers)
            assert reply.status_code == 200
        stats = channel.get_stats()
    runs = {run.run_id: run for run in stats.runs}
    assert set(runs) == {"by-header", "by-name", "by-body", ANONYMOUS}
    assert all((run.requests, run.tokens) == (1, 3) for run in runs.values())
    assert all(run.sent_bytes > 0 and run.asked_tokens == 3 for run in runs.values())


def test_a_run_id_that_is_none_is_refused() -> None:
    with http_teacher(FixtureEngine(V)) as teacher:
        reply = post(teacher.url, body(1, 2), headers={"lectern-run-id": "Not One"})
    assert reply.status_code == 422 and reply.json()["error"]["param"] == "lectern-run-id"


def test_a_quota_holds_over_http_and_grpc_together() -> None:
    sharing = Sharing(quotas={"greedy": 4.0})
    with http_teacher(FixtureEngine(V), sharing=sharing) as teacher:
        score(teacher.address, request([[1, 2, 3, 4, 5]], run_id="greedy"))
        refused = post(teacher.url, body(1, 2), headers={"lectern-run-id": "greedy"})
        other = post(teacher.url, body(1, 2), headers={"lectern-run-id": "modest"})
    assert refused.status_code == 503 and refused.json()["error"]["type"] == "overloaded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "quota" in refused.json()["error"]["message"] and other.status_code == 200


def test_a_full_queue_is_503_with_a_time_to_retry() -> None:
    engine = GatedEngine()
    with (
        http_teacher(engine, Limits(max_queued_requests=1)) as teacher,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(post, teacher.url, body(1, 2))
        wait_for(lambda: engine.begun)
        refused = post(teacher.url, body(3, 4))
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert get(teacher.url, "/health").status_code == 200
        engine.allow(1)
        assert first.result().status_code == 200


def test_a_client_that_leaves_frees_its_place_and_no_forward_runs_for_it() -> None:
    engine = GatedEngine()
    with (
        http_teacher(engine) as teacher,
        TeacherChannel(teacher.address) as channel,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(post, teacher.url, body(1, 2))
        wait_for(lambda: engine.begun == [1])
        parts = urlsplit(teacher.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        connection.request(
            "POST", "/v1/completions", b'{"prompt": [9, 9], "max_tokens": 0, "prompt_logprobs": 0}'
        )
        wait_for(lambda: channel.get_stats().queued_requests == 1)
        connection.close()
        wait_for(lambda: channel.get_stats().queued_requests == 0)
        engine.allow(2)
        assert first.result().status_code == 200
        assert post(teacher.url, body(2, 3)).status_code == 200
        stats = channel.get_stats()
    assert engine.begun == [1, 2]  # never 9
    assert (stats.refused_requests, stats.failed_requests) == (0, 0)


def test_the_bytes_do_not_depend_on_what_is_asked_beside() -> None:
    with http_teacher(FixtureEngine(V)) as teacher:
        alone = post(teacher.url, body(4, 5, 6)).json()["choices"][0]["prompt_logprobs"]
        ask = {**body(), "prompt": [[1, 2], [4, 5, 6], [7] * 9]}
        beside = post(teacher.url, ask).json()["choices"][1]["prompt_logprobs"]
    assert alone == beside


@pytest.mark.parametrize(
    ("error", "status", "failed"),
    [(TeacherError("not finite"), 502, 1), (RuntimeError("a bug"), 500, 1)],
)
def test_a_failure_is_told_and_counted(error: Exception, status: int, failed: int) -> None:
    with (
        http_teacher(BreakingEngine(error)) as teacher,
        TeacherChannel(teacher.address) as channel,
    ):
        reply = post(teacher.url, {**body(), "prompt": [[1, 2], [13, 1]]})
        assert reply.status_code == status
        assert "a bug" not in reply.text
        assert post(teacher.url, body(1, 2)).status_code == 200
        assert channel.get_stats().failed_requests == failed


def test_nonsense_on_the_port_is_answered_and_the_server_lives() -> None:
    with http_teacher(FixtureEngine(V)) as teacher:
        parts = urlsplit(teacher.url)
        for nonsense in (b"\x00\x01\x02\r\n\r\n", b"GET / \x7f HTTP/1.1\r\n\r\n"):
            with socket.create_connection((parts.hostname or "", parts.port or 0)) as raw:
                raw.sendall(nonsense)
                assert raw.recv(64).startswith(b"HTTP/1.1 400")
        assert post(teacher.url, body(1, 2)).status_code == 200
