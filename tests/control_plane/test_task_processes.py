"""Tasks of a real control plane, in real processes: kills, restarts, stops."""

import os
import signal
from typing import Any

import pytest

from lectern_common.roots import Roots
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, both_ways, home, trainers  # noqa: F401 - fixtures


def created(service: Service, run_id: str, seed: int, **asked: Any) -> str:
    body = {"suites": ["perplexity"], "seed": seed, **asked}
    answer = service.client.post(f"/runs/{run_id}/evaluations", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def shown(service: Service, task_id: str) -> dict[str, Any]:
    task: dict[str, Any] = service.client.get(f"/tasks/{task_id}").json()
    return task


def wait_for_state(service: Service, task_id: str, state: str) -> dict[str, Any]:
    task: dict[str, Any] = wait_for(
        lambda: (task := shown(service, task_id))["state"] == state and task, 60
    )
    return task


def counted(service: Service, task_id: str) -> int:
    """Returns how far the task has counted on disk."""
    path = Roots.of_home(service.folder).runs
    return sum(kept.stat().st_size for kept in path.glob(f"*/tasks/{task_id}/work/counted"))


@pytest.mark.usefixtures("both_ways")
def test_a_task_outlives_kills_of_the_control_plane_and_of_itself(home):  # noqa: F811
    first = Service(home)
    run_id = first.create(steps=3)
    first.wait(run_id, "succeeded")
    task_id = created(first, run_id, seed=10_000)
    wait_for(lambda: counted(first, task_id) >= 2, 60)
    [process] = trainers(home)
    first.kill()

    second = Service(home)
    before = counted(second, task_id)
    wait_for(lambda: counted(second, task_id) > before, 60)
    task = shown(second, task_id)
    assert (task["state"], task["attempt"]) == ("running", 1)  # adopted
    assert [one.pid for one in trainers(home)] == [process.pid]
    wait_for(lambda: shown(second, task_id)["done"] > 0)
    assert shown(second, task_id)["said"] == ["counting from 0"]

    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: shown(second, task_id)["attempt"] == 2, 60)
    wait_for(lambda: shown(second, task_id)["state"] == "running", 60)
    [said] = wait_for(lambda: shown(second, task_id)["said"])
    assert int(said.removeprefix("counting from ")) > before  # it went on
    assert "counts" in second.client.get(f"/tasks/{task_id}/log").text
    second.post(f"/tasks/{task_id}/stop")
    wait_for_state(second, task_id, "stopped")
    assert trainers(home) == []
    assert second.end() == 0


@pytest.mark.long
def test_a_task_is_stopped_and_goes_on_later(home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    task_id = created(service, run_id, seed=40)
    wait_for(lambda: counted(service, task_id) >= 2, 60)
    service.post(f"/tasks/{task_id}/stop")
    wait_for_state(service, task_id, "stopped")
    assert trainers(home) == []
    at = counted(service, task_id)
    service.post(f"/tasks/{task_id}/resume")
    task = wait_for_state(service, task_id, "succeeded")
    assert task["result"]["began_at"] == at
    assert task["markdown"] == "# Measured\n"
    assert service.client.delete(f"/tasks/{task_id}").status_code == 204
    assert service.end() == 0
