"""`lectern tasks` and the client's calls about tasks, against a real control plane."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lectern.client import Client, ControlPlaneUnavailable
from lectern_common.errors import Conflict, InvalidRequest, InvalidSpec, NotFound
from lectern_common.run.status import RunState
from lectern_common.spec.load import parse_spec
from tests.control_plane.conftest import make_home, spec_body
from tests.control_plane.test_process import Service

SUITES = {"suites": ["perplexity"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home: Path = tmp_path_factory.mktemp("home")
    make_home(home)
    made = Service(home)
    yield made
    made.end()
    Service.started.remove(made)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with Client(f"http://{service.address}", token="") as made:
        yield made


@pytest.fixture(scope="module")
def run_id(service: Service) -> str:
    found = service.create(steps=3)
    service.wait(found, "succeeded")
    return found


def test_an_evaluation_is_queued_waited_for_listed_and_deleted(client, run_id):
    task = client.evaluate_run(run_id, {**SUITES, "seed": 3})
    assert (task.stage, task.run_id, task.rests) == ("evaluate", run_id, False)
    seen: list[str] = []
    done = client.wait_for_task(task.id, show=lambda one: seen.append(str(one.state)))
    assert done.state is RunState.SUCCEEDED
    assert done.result is not None
    assert done.result["count"] == 3
    assert seen[-1] == "succeeded"
    assert [one.id for one in client.tasks(run_id)] == [task.id]
    assert client.tasks(states=[RunState.QUEUED]) == []
    assert "counts" in client.task_log(task.id)
    with pytest.raises(Conflict, match="nothing to stop"):
        client.stop_task(task.id)
    client.delete_task(task.id)
    with pytest.raises(NotFound):
        client.task(task.id)


def test_a_repeated_call_with_a_key_returns_the_same_task(client, run_id):
    asked = {**SUITES, "seed": 1}
    first, again = (client.evaluate_run(run_id, asked, "the-key") for _ in range(2))
    assert first.id == again.id
    assert client.evaluate_run(run_id, asked).id != first.id
    with pytest.raises(InvalidRequest, match="another body"):
        client.export_run(run_id, idempotency_key="the-key")


def test_what_cannot_work_is_refused_by_field(client, run_id):
    with pytest.raises(InvalidSpec) as caught:
        client.evaluate_run(run_id, {"suites": ["perplexity"], "sead": 1})
    assert caught.value.problems[0][0] == "sead"
    with pytest.raises(InvalidSpec, match="to: required"):
        client.publish_run(run_id, {})
    with pytest.raises(InvalidSpec, match="format"):
        client.export_run(run_id, {"format": "onnx"})
    with pytest.raises(NotFound):
        client.evaluate_run("none-abcdef", SUITES)
    with pytest.raises(InvalidSpec, match="output"):
        client.record_teacher(parse_spec(spec_body()), "../out")


def test_the_command_shows_stops_resumes_and_deletes_tasks(lectern, service, client, run_id):
    def run(*words: object):
        return lectern("tasks", *words, "--url", f"http://{service.address}")

    task = client.evaluate_run(run_id, {**SUITES, "seed": 500})
    assert f"{task.id}  {run_id}  " in run("list").out
    assert run("stop", task.id).code == 0
    stopped = client.wait_for_task(task.id)
    assert stopped.state is RunState.STOPPED
    assert run("show", task.id, "--wait").code == 75
    assert "queued" in run("resume", task.id).out
    run("stop", task.id)
    client.wait_for_task(task.id)
    assert run("delete", task.id, "--yes").code == 0
    assert run("show", task.id).code == 3

    short = client.evaluate_run(run_id, {**SUITES, "seed": 1})
    shown = run("show", short.id, "--wait")
    assert shown.code == 0
    assert "# Measured" in shown.out
    assert "counts" in run("log", short.id).out
    failed = client.export_run(run_id)  # the stand-in has no such stage
    ended = run("show", failed.id, "--wait")
    assert ended.code == 1
    assert "expected one of evaluate" in ended.out


def test_an_answer_that_describes_no_task_is_refused():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"id": "x"}))
    with pytest.raises(ControlPlaneUnavailable, match="a task"):
        Client("http://lectern", transport=transport).task("x")
