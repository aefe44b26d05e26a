"""Scrapes of a real server process, and clients that misbehave."""

import asyncio
import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lectern_common.teacher.channel import TeacherChannel, serving_state
from lectern_common.teacher.pem import read_authorities
from lectern_common.teacher.tls import ClientTls
from protos import teacher_pb2 as pb
from teacher_server.observing.metrics_server import MAX_CONNECTIONS, MetricsServer
from tests.support.asking import request, score
from tests.support.certificates import Authority
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherProcess, start_teacher, teacher_process, wait_for
from tests.teacher_server.observing.test_metrics import expected, samples

FIXTURE = ("--engine", "fixture", "--vocab-size", "97", "--metrics-bind", "127.0.0.1:0")
TOKEN = "fedcba9876543210" * 2


def url_of(teacher: TeacherProcess) -> str:
    """Returns the URL to scrape, which the process logs before it is ready."""
    assert teacher.process.stderr is not None
    line = ""
    while "metrics" not in line:
        line = teacher.process.stderr.readline()
    found = re.search(r"url=(\S+)", line)
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    with teacher_process(tmp_path_factory.mktemp("metrics"), *FIXTURE) as teacher:
        yield teacher


@pytest.fixture(scope="module")
def url(teacher: TeacherProcess) -> str:
    return url_of(teacher)


def scrape(url: str, token: str | None = None, tls: ssl.SSLContext | None = None) -> str:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    asked = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(asked, timeout=30, context=tls) as answer:  # noqa: S310
        return str(answer.read().decode())


def status(url: str, method: str = "GET", **headers: str) -> int:
    asked = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def stats_of(address: str, token: str | None = None, tls: ClientTls | None = None) -> pb.Stats:
    with TeacherChannel(address, token, tls) as channel:
        return channel.get_stats(30)


def connection_to(url: str) -> socket.socket:
    host, port = url.split("/")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_a_scrape_agrees_with_get_stats(teacher: TeacherProcess, url: str) -> None:
    score(teacher.address, request([[1, 2, 3], [4, 5]], run_id="first-1"))
    score(teacher.address, request([[6]], run_id="second-2"))
    found = {
        (name.removeprefix("lectern_teacher_").removesuffix("_total"), run): value
        for (name, run), value in samples(scrape(url)).items()
    }
    stats = stats_of(teacher.address)
    moves = {("uptime_seconds", None), ("tokens_per_second", None)}
    told = expected(stats)
    assert {key: found[key] for key in told if key not in moves} == {
        key: value for key, value in told.items() if key not in moves
    }
    assert all(value == 0 for key, value in found.items() if key not in told)
    assert found["scored_tokens", None] == 6
    assert (found["run_tokens", "first-1"], found["run_requests", "second-2"]) == (5, 1)
    assert 0 < found["uptime_seconds", None] <= stats.uptime_seconds


def test_head_has_no_body_and_other_paths_and_methods_are_refused(url: str) -> None:
    base = url.removesuffix("/metrics")
    assert status(url, "HEAD") == 200
    assert status(f"{url}?name=x") == 200
    for path in ("/", "/metrics/", "/metricsx", "/favicon.ico", "/../metrics"):
        assert status(base + path) == 404
    assert status(url, "POST") == 405


@pytest.mark.parametrize(
    "words",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics SPDY/3\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"\xff\xfe \x00 HTTP/9.1\r\n\r\n",
    ],
)
def test_a_malformed_request_gets_400(url: str, words: bytes) -> None:
    with connection_to(url) as connection:
        connection.sendall(words)
        assert connection.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"


def test_a_request_without_end_is_cut_off(url: str) -> None:
    with connection_to(url) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nx: " + b"y" * 20_000)
        with pytest.raises(ConnectionError):
            while not connection.recv(1):
                raise ConnectionError
    assert status(url) == 200


def test_slow_clients_do_not_delay_others(teacher: TeacherProcess, url: str) -> None:
    slow = [connection_to(url) for _ in range(MAX_CONNECTIONS - 1)]
    try:
        for connection in slow:
            connection.sendall(b"GET /metr")
        assert serving_state(teacher.address, 30) == "SERVING"
        score(teacher.address, request([[1]]))
        wait_for(lambda: answers(url))
    finally:
        for connection in slow:
            connection.close()


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def with_server(test: Callable[[MetricsServer, Callable], Awaitable[None]], **options) -> None:
    """Runs a test in the server's own loop, with the server and a function that connects."""

    async def run() -> None:
        server = MetricsServer("127.0.0.1", 0, lambda: None, **options)
        await server.start()
        writers = []

        async def connect() -> Client:
            host, port = server.url.split("/")[2].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            return reader, writer

        try:
            async with asyncio.timeout(30):
                await test(server, connect)
        finally:
            for writer in writers:
                writer.close()
            await server.stop()

    asyncio.run(run())


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async def test(server: MetricsServer, connect: Callable) -> None:
        clients = [await connect() for _ in range(MAX_CONNECTIONS + 8)]
        assert [await rest_of(reader) for reader, _ in clients[MAX_CONNECTIONS:]] == [b""] * 8
        assert len(server._connections) == MAX_CONNECTIONS
        reader, writer = clients[0]
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"lectern_teacher_serving 0.0" in await rest_of(reader)

    with_server(test, request_seconds=600)


def test_a_client_that_sends_nothing_is_cut_off() -> None:
    async def test(_: MetricsServer, connect: Callable) -> None:
        reader, writer = await connect()
        writer.write(b"GET /metr")
        assert await rest_of(reader) == b""
        reader, writer = await connect()
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b"lectern_teacher_serving 0.0" in await rest_of(reader)

    with_server(test, request_seconds=0.2)


def test_stopping_closes_open_connections() -> None:
    async def test(server: MetricsServer, connect: Callable) -> None:
        reader, _ = await connect()
        while not server._connections:
            await asyncio.sleep(0)
        await server.stop()
        assert await rest_of(reader) == b""
        with pytest.raises(OSError):
            await connect()

    with_server(test, request_seconds=600)


def answers(url: str) -> bool:
    try:
        return status(url) == 200
    except (OSError, http.client.HTTPException):
        return False


def test_while_the_model_loads_it_is_not_serving(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # whoever reads it waits for ever
    options = ("--model", str(folder), "--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0")
    process = start_teacher(*options)
    try:
        assert process.stderr is not None
        found = re.search(r"url=(\S+)", process.stderr.readline())
        assert found is not None
        assert samples(scrape(found.group(1))) == {("lectern_teacher_serving", None): 0.0}
    finally:
        process.kill()
        process.communicate()


def test_a_server_with_a_token_requires_it_for_metrics(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    options = (*FIXTURE, "--metrics-bind", "0.0.0.0:0", "--token-file", str(token_file))
    with teacher_process(tmp_path, *options) as teacher:
        url = url_of(teacher).replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert status(url) == 401
        assert status(url, Authorization=f"Bearer {TOKEN[:-1]}") == 401
        assert status(url, Authorization=TOKEN) == 401
        assert status(url, Authorization="Bearer \xfc" + TOKEN) == 401
        assert status(url.replace("/metrics", "/other")) == 404
        assert samples(scrape(url, TOKEN))["lectern_teacher_serving", None] == 1.0
        code, output, errors = teacher.stop()
    assert code == 0
    assert f"  metrics      {url}".replace("127.0.0.1", "0.0.0.0") in output  # noqa: S104
    assert "WARNING: TOKEN AND DATA TRAVEL UNENCRYPTED" in output
    assert TOKEN not in output + errors


def test_a_server_with_tls_serves_metrics_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server", "127.0.0.1")
    options = (*FIXTURE, "--tls-cert", str(certificate), "--tls-key", str(key))
    mutual = ("--tls-client-ca", str(authority.path))
    with teacher_process(tmp_path, *options, *mutual) as teacher:
        url = url_of(teacher)
        assert url.startswith("https://")
        stranger = ssl.create_default_context(cafile=str(authority.path))
        with pytest.raises(OSError):
            scrape(url, tls=stranger)
        known = ssl.create_default_context(cafile=str(authority.path))
        known.load_cert_chain(*authority.sign("prometheus"))
        assert samples(scrape(url, tls=known))["lectern_teacher_serving", None] == 1.0
        tls = ClientTls(
            read_authorities(authority.path),
            *(path.read_bytes() for path in authority.sign("client")),
        )
        assert serving_state(teacher.address, 30, tls) == "SERVING"


def test_metrics_that_cannot_be_served_are_refused_in_one_sentence(url: str) -> None:
    taken = url.split("/")[2]
    for bind, says in (
        (taken, f"cannot serve metrics on {taken}: the port is taken"),
        ("0.0.0.0:0", "--metrics-bind 0.0.0.0:0 can be reached from other machines"),
        ("nowhere", "--metrics-bind 'nowhere' is not host:port"),
    ):
        process = start_teacher(*FIXTURE, "--bind", "127.0.0.1:0", "--metrics-bind", bind)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 2
        [sentence] = [line for line in errors.splitlines() if line.startswith("lectern teacher: ")]
        assert says in sentence
        assert "Traceback" not in errors
    assert status(url) == 200
