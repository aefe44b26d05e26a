"""Runs on several devices over REST: refused, queued, started."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from tests.control_plane.conftest import BASE_URL, make_home, spec_body, wait_for
from tests.support.fakes import FakeClock, FakeProcesses


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    plane = open_plane(
        make_home(tmp_path),
        devices=Devices(("0", "1"), max_running=4, cores=8),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
    )
    plane.tick_seconds = 0.02
    with TestClient(create_app(plane), base_url=BASE_URL) as client:
        yield client


def body(name: str, **device: object) -> dict[str, object]:
    return spec_body(name, device=device, batch={"sequences_per_step": 72})


@pytest.mark.parametrize("device", [{"count": 3}, {"kind": "cuda", "count": 8}])
def test_more_gpus_than_the_machine_has_are_refused_at_the_start(client, device):
    answer = client.post("/runs", json=body("big", **device))
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "device.count"
    assert "this machine has (2 CUDA devices)" in error["message"]
    assert client.get("/runs").json()["runs"] == []


def test_more_processes_than_cores_are_refused_at_the_start(client):
    answer = client.post("/runs", json=body("big", kind="cpu", count=9))
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["field"]) == (422, "device.count")


def test_a_run_on_two_gpus_starts_on_both_and_others_say_what_they_wait_for(client):
    one, two, cpu = (
        client.post("/runs", json=body(name, **device)).json()["id"]
        for name, device in (
            ("one", {"count": 2}),
            ("two", {"count": 2}),
            ("cpu", {"kind": "cpu", "count": 2}),
        )
    )
    shown = wait_for(
        lambda: (found := client.get(f"/runs/{one}").json())["state"] == "starting" and found
    )
    assert (shown["slots"], shown["threads"]) == (["cuda:0", "cuda:1"], 1)
    shown = wait_for(
        lambda: (found := client.get(f"/runs/{cpu}").json())["state"] == "starting" and found
    )
    assert (shown["slots"], shown["threads"]) == (["cpu", "cpu"], 1)
    shown = wait_for(lambda: (found := client.get(f"/runs/{two}").json())["message"] and found)
    assert (shown["state"], shown["slots"], shown["threads"]) == ("queued", [], None)
    assert shown["message"] == (
        f"needs 2 GPUs at once, of which none is free; waits until enough of these end: {one}"
    )
