"""Connections: many idle ones, bytes that are not HTTP, and logs that do not grow with them."""

import logging
import resource
import socket

import httpx
import pytest

from control_plane.api.connections import Rarely, max_connections
from tests.control_plane.test_process import Service, home  # noqa: F401 - a fixture


def test_connections_take_half_of_the_descriptors_at_most():
    assert [max_connections(limit) for limit in (20, 256, 1024, 10**6, -1)] == [
        *(16, 128, 512),
        *(1024, 1024),
    ]


@pytest.mark.long
def test_health_answers_and_runs_start_beside_1100_idle_connections(home):  # noqa: F811
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service = Service(home)
    address = service.client.base_url.host, service.client.base_url.port
    idle = [socket.create_connection(address) for _ in range(1100)]
    try:
        with httpx.Client(base_url=service.client.base_url, trust_env=False) as client:
            assert client.get("/healthz").status_code == 200
        service.wait(service.create(steps=3), "succeeded")
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert service.end() == 0
    assert len((home / "control-plane.log").read_text().splitlines()) < 100


def answer_to(service: Service, data: bytes) -> bytes:
    address = service.client.base_url.host, service.client.base_url.port
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_bytes_that_are_not_http_get_a_problem_with_the_security_headers(home):  # noqa: F811
    service = Service(home)
    for data in (b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + bytes(40)):
        answer = answer_to(service, data).lower()
        assert answer.startswith(b"http/1.1 400 ")
        for header in (b"application/problem+json", b"x-frame-options: deny", b"nosniff"):
            assert header in answer
    for _ in range(50):
        answer_to(service, b"nonsense\r\n\r\n")
    assert service.client.get("/healthz").status_code == 200
    assert service.end() == 0
    assert (home / "control-plane.log").read_text().count("Invalid HTTP request") == 1


def test_repeated_records_are_counted():
    now = [0.0]
    rarely = Rarely(lambda: now[0])

    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)

    assert rarely.filter(record("accept failed\nsocket: 1"))
    assert not any(rarely.filter(record(f"accept failed\nsocket: {n}")) for n in range(99))
    assert rarely.filter(record("another"))
    now[0] = 61.0
    late = record("accept failed\nsocket: 5")
    assert rarely.filter(late)
    assert late.getMessage() == "accept failed (99 more of these in the last 61 s)"
