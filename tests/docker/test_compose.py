"""docker/compose.cpu.yaml on a real Docker engine: up, train, down, up again."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern.client import Client, ControlPlaneUnavailable
from lectern.demo.specs import student_specs
from lectern_common.run.status import RunState
from lectern_common.spec.load import parse_spec

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PROJECT = f"lectern-test-{secrets.token_hex(4)}"  # no volume of an earlier test
HOME = "/var/lib/lectern"


def compose_command() -> list[str]:
    """Returns the command of Compose v2 if the client has it, else v1."""
    has_v2 = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    return ["docker", "compose"] if has_v2 else ["docker-compose"]


class Stack:
    """The services of one compose file, under their own project name."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._env = {
            **os.environ,
            "LECTERN_PORT": str(port),
            "LECTERN_DEMO_TEACHER_STEPS": "12",
            "LECTERN_DEMO_STUDENT_STEPS": "8",
        }

    def compose(self, *words: str, file: str = "compose.cpu.yaml") -> str:
        argv = [*compose_command(), "-p", PROJECT, "-f", str(ROOT / "docker" / file), *words]
        done = subprocess.run(argv, env=self._env, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def token(self) -> str:
        """Returns the token that the control plane has made."""
        return self.on_volume("cat", f"{HOME}/secrets/control-plane").strip()

    def on_volume(self, *words: str) -> str:
        return self.compose("exec", "-T", "control-plane", *words)

    def health(self, service: str) -> str:
        container = self.compose("ps", "-q", service).strip()
        if not container:
            return "missing"
        return subprocess.run(
            ["docker", "inspect", "-f", "{{.State.Health.Status}}", container],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()


def wait_for(fact: Callable[[], Any], what: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = fact()
        except ControlPlaneUnavailable:
            found = None
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s: {what}")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if shutil.which("docker") is None:
        pytest.skip("needs the docker client")
    if subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("needs a Docker engine that answers `docker info`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stack = Stack(port)
    try:
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail=40"))
        stack.compose("down", "-v", "--timeout", "60")


@pytest.mark.parametrize("file", ["compose.yaml", "compose.cpu.yaml"])
def test_both_compose_files_are_valid(stack: Stack, file: str) -> None:
    stack.compose("config", "-q", file=file)


def test_a_stack_becomes_healthy_trains_and_loses_nothing_over_down_and_up(stack: Stack) -> None:
    stack.compose("up", "-d", "--build")
    wait_for(lambda: stack.health("teacher") == "healthy", "a healthy teacher", 180)
    wait_for(lambda: stack.health("control-plane") == "healthy", "a healthy control plane", 60)
    assert stack.on_volume("id", "-u").strip() != "0"
    assert stack.on_volume("stat", "-c", "%a", f"{HOME}/secrets/teacher").strip() == "600"

    with Client(stack.url, token=stack.token()) as service:
        demo = wait_for(lambda: has_rested(service, 3), "the demo's three runs", 180)
        assert [run.state for run in demo] == [RunState.SUCCEEDED] * 3, [r.message for r in demo]

        spec = student_specs("teacher:50051", 1, 6, token_file="teacher")[1]
        short = service.create_run(spec)
        body = student_specs("teacher:50051", 2, 200, token_file="teacher")[1]
        long = service.create_run(parse_spec(body.model_dump(mode="json")))
        done = service.wait([short.id], timeout_seconds=120)[0]
        assert done.state is RunState.SUCCEEDED, done.message
        export = f"{HOME}/runs/{short.id}/export/model.safetensors"
        before = stack.on_volume("sha256sum", export, f"{HOME}/models/demo-teacher/config.json")
        wait_for(lambda: service.get_run(long.id).step > 5, "some steps of the long run", 120)

    stack.compose("down", "--timeout", "60")
    stack.compose("up", "-d")
    wait_for(lambda: stack.health("control-plane") == "healthy", "a healthy control plane", 120)

    with Client(stack.url, token=stack.token()) as service:
        kept = {run.id: run.state for run in service.list_runs()}
        assert {run.id for run in demo} | {short.id, long.id} == set(kept)
        assert kept[short.id] is RunState.SUCCEEDED
        assert (
            stack.on_volume("sha256sum", export, f"{HOME}/models/demo-teacher/config.json")
            == before
        )
        done = service.wait([long.id], timeout_seconds=300)[0]
        assert done.state is RunState.SUCCEEDED, done.message
        steps = [record["step"] for record in service.metrics(long.id)]
        assert steps == sorted(set(steps)), "a step appears twice in the metrics"
        assert steps[-1] == 200


def has_rested(service: Client, number: int) -> list[Any] | None:
    runs = service.list_runs()
    return runs if len(runs) >= number and all(run.rests for run in runs) else None
