"""Health checks reach their server directly, whatever proxy the environment names."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lectern.client import Client

ROOT = Path(__file__).parents[2]
NOBODY = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is not there, in every variable that some library reads."""
    for name in ("http", "https", "all", "grpc"):
        for variable in (f"{name}_proxy", f"{name}_proxy".upper()):
            monkeypatch.setenv(variable, f"http://{NOBODY}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", NOBODY)
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "0.0.0.0/0,::/0")


@pytest.fixture
def teacher() -> Iterator[str]:
    """The address of a server that has only the health service."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def control_plane() -> Iterator[int]:
    """The port of a server that answers GET /readyz."""
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_teachers_health_is_asked_without_a_proxy(lectern, teacher):
    for address in (teacher, teacher.replace("127.0.0.1", "localhost")):
        ended = lectern("teacher", "health", address)
        assert (ended.code, ended.err) == (0, f"{address}: SERVING\n")


def test_a_control_plane_is_asked_without_a_proxy(control_plane):
    with Client(f"http://127.0.0.1:{control_plane}", timeout_seconds=5.0) as client:
        assert client.is_ready()


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cpu.yaml"])
def test_the_health_checks_of_containers_ask_without_a_proxy(name, control_plane):
    services = yaml.safe_load((ROOT / "docker" / name).read_text())["services"]
    checks = [
        service["healthcheck"]["test"] for service in services.values() if "healthcheck" in service
    ]
    assert [check for check in checks if check[1:] == ["lectern", "teacher", "health"]]
    [(kind, python, option, program)] = [check for check in checks if check[1] == "python"]
    assert (kind, python, option) == ("CMD", "python", "-c")
    for path, code in (("readyz", 0), ("gone", 1)):
        asked = program.replace("8080/readyz", f"{control_plane}/{path}")
        done = subprocess.run([sys.executable, "-c", asked], capture_output=True)
        assert done.returncode == code, done.stderr
