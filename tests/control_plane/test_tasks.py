"""Tasks over REST: queued, started, watched, stopped, resumed, restarted, deleted."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import ControlPlane, open_plane
from control_plane.runs.record import Wanted
from control_plane.tasks.record import MAX_COUNTED, Task
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.run.status import RunState
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.status import TaskStatus
from tests.control_plane.conftest import make_home, spec, spec_body
from tests.support.fakes import FakeClock, FakeProcess, FakeProcesses

SUITES = {"suites": ["perplexity"]}


class Service:
    """A control plane whose processes a test drives by hand."""

    def __init__(self, home: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.processes = FakeProcesses(clock)
        self.roots = make_home(home)
        self.plane = self._open()

    def _open(self) -> ControlPlane:
        return open_plane(
            self.roots,
            devices=Devices((), max_running=2),
            launcher=LocalLauncher(self.processes),
            clock=self.clock,
        )

    def restart(self) -> None:
        """Ends this control plane as a kill does, and opens another one."""
        self.plane.store.close()
        os.close(self.plane.lock_descriptor)
        self.processes.forgets_pids = True
        self.plane = self._open()

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        for reconciler in (self.plane.reconciler, self.plane.task_reconciler):
            reconciler._clock = self.clock
        self.plane._look()

    def folder(self, task_id: str) -> TaskFolder:
        return self.plane.tasks.get(task_id).folder(self.roots.runs)

    def process(self, task_id: str) -> FakeProcess:
        return next(
            one for one in reversed(self.processes.started) if one.folder.path.name == task_id
        )

    def says(self, task_id: str, state: RunState, **said: Any) -> None:
        """Writes the status of a task as its process."""
        process = self.process(task_id)
        values: dict[str, Any] = {
            "task_id": task_id,
            "stage": "evaluate",
            "state": state,
            "since": self.clock(),
            "heartbeat": self.clock(),
            "pid": process.identity.pid,
            "boot_id": process.identity.boot_id,
            "start_ticks": process.identity.start_ticks,
            "attempt": process.attempt,
        }
        self.folder(task_id).write_status(TaskStatus(**values | said))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, FakeClock())
    yield made
    made.plane.close()


@pytest.fixture
def client(service: Service) -> TestClient:
    # Without its lifespan: a test calls `tick`.
    return TestClient(create_app(service.plane), base_url="http://127.0.0.1")


def run_at_rest(service: Service) -> str:
    """Returns the id of a run that has succeeded."""
    run = service.plane.commands.create(spec())
    service.tick()
    process = service.processes.last(run.id)
    process.say("succeeded", step=20)
    process.end(0)
    service.tick(1)
    assert service.plane.runs.get(run.id).state is RunState.SUCCEEDED
    return run.id


def created(client: TestClient, run_id: str, **body: Any) -> str:
    answer = client.post(f"/runs/{run_id}/evaluations", json={**SUITES, **body})
    assert answer.status_code == 202, answer.text
    task = answer.json()
    assert answer.headers["Location"] == f"/tasks/{task['id']}"
    return str(task["id"])


def shown(client: TestClient, task_id: str) -> dict[str, Any]:
    answer = client.get(f"/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_task_is_queued_started_watched_and_shows_its_result(service, client):
    run_id = run_at_rest(service)
    task_id = created(client, run_id)
    assert shown(client, task_id)["state"] == "queued"
    service.tick()
    assert shown(client, task_id)["state"] == "starting"
    folder = service.folder(task_id)
    assert folder.path == service.roots.runs / run_id / "tasks" / task_id
    stage, asked = folder.read_asked()
    assert (stage, asked["model"], asked["suites"]) == ("evaluate", run_id, ["perplexity"])
    service.says(task_id, RunState.RUNNING, doing="batches", done=3, of=9, per_second=2.0)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["doing"], task["done"], task["of"]) == ("running", "batches", 3, 9)
    assert task["eta_seconds"] == 3.0
    assert task["result"] is None
    folder.write_result({"score": 0.5, "markdown": "# half"})
    folder.log_path.write_text("one\ntwo\n")
    service.says(task_id, RunState.SUCCEEDED)
    service.process(task_id).end(0)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["result"], task["markdown"]) == (
        "succeeded",
        {"score": 0.5},
        "# half",
    )
    assert client.get(f"/tasks/{task_id}/log", params={"tail": 1}).text == "two\n"
    [listed] = client.get(f"/runs/{run_id}/tasks").json()["tasks"]
    assert listed["id"] == task_id
    assert client.get("/tasks", params={"state": "queued"}).json()["tasks"] == []


AGREEMENT = {"suites": ["agreement"]}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("evaluations", {}, "suites"),
        ("evaluations", {"suites": ["perplexity"], "model": "other"}, "model"),
        ("evaluations", {"suites": ["perplexity"], "stage": "evaluate"}, "stage"),
        ("evaluations", {**SUITES, "sead": 3}, "sead"),
        ("evaluations", {**SUITES, "device": "cuda"}, "device"),
        ("evaluations", {**AGREEMENT, "against": "/root/teacher"}, "against"),
        # A task sends a secret only where the control plane was started to send it.
        (
            "evaluations",
            {**AGREEMENT, "against": "127.0.0.1:1", "token_file": "control-plane"},
            "token_file",
        ),
        ("evaluations", {"suites": ["code"], "code": {"sandbox": False}}, "code.sandbox"),
        ("evaluations", {"suites": ["code"], "code": {"sandbox": "no"}}, "code.sandbox"),
        ("exports", {"format": "onnx"}, "format"),
        ("publications", {}, "to"),
        ("publications", {"to": "a/b", "run": "other"}, "run"),
    ],
)
def test_a_request_that_cannot_work_is_refused_by_field(service, client, path, body, field):
    run_id = run_at_rest(service)
    answer = client.post(f"/runs/{run_id}/{path}", json=body)
    assert answer.status_code == 422
    assert field in {one["field"] for one in answer.json()["errors"]}
    assert client.get("/tasks").json()["tasks"] == []


def test_what_is_not_there_is_404(client):
    assert client.post("/runs/none-abcdef/evaluations", json=SUITES).status_code == 404
    for method, path in (
        ("GET", "/runs/none-abcdef/tasks"),
        ("GET", "/tasks/evaluate-abcdef"),
        ("GET", "/tasks/evaluate-abcdef/log"),
        ("POST", "/tasks/evaluate-abcdef/stop"),
        ("POST", "/tasks/evaluate-abcdef/resume"),
        ("DELETE", "/tasks/evaluate-abcdef"),
    ):
        assert client.request(method, path).status_code == 404, path


def test_a_recording_belongs_to_no_run(service, client):
    taught = spec_body(
        objective={"alpha": 0.5},
        teacher={"address": "127.0.0.1:1", "representation": "top_k", "top_k": 8},
        data={"path": "text", "seq_len": 16},
    )
    answer = client.post("/records", json={"spec": taught, "output": "answers"})
    assert answer.status_code == 202, answer.text
    task = answer.json()
    assert (task["stage"], task["run_id"]) == ("precompute", None)
    service.tick()
    folder = service.folder(task["id"])
    assert folder.path.parent == service.roots.runs / ".tasks"
    assert folder.read_asked()[1]["output"] == "answers"
    wrong = client.post("/records", json={"spec": {**taught, "seed": "x"}, "output": "answers"})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["field"] == "spec.seed"
    stolen = {**taught, "teacher": {**taught["teacher"], "token_file": "control-plane"}}
    wrong = client.post("/records", json={"spec": stolen, "output": "answers"})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["field"] == "spec.teacher.token_file"


def test_tasks_and_runs_share_the_devices_in_one_line(service, client):
    run_id = run_at_rest(service)
    first = service.plane.commands.create(spec("first"))
    second = service.plane.commands.create(spec("second"))
    service.tick()
    service.clock.advance(1)
    task_id = created(client, run_id)
    service.clock.advance(1)
    later = service.plane.commands.create(spec("later"))
    urgent = service.plane.commands.create(spec("urgent", priority=5))
    service.tick()
    task = shown(client, task_id)
    assert (task["state"], task["queue_position"]) == ("queued", 2)
    assert f"{first.id}, {second.id}" in task["message"]
    assert service.plane.runs.get(urgent.id).queue_position == 1
    assert service.plane.runs.get(later.id).queue_position == 3
    for done in (first, second):
        process = service.processes.last(done.id)
        process.say("succeeded", step=20)
        process.end(0)
    service.tick(1)
    service.tick(1)
    assert shown(client, task_id)["state"] == "starting"
    assert service.plane.runs.get(urgent.id).state is RunState.STARTING
    assert service.plane.runs.get(later.id).state is RunState.QUEUED
    assert task_id in (service.plane.runs.get(later.id).waits_for or "")


def started(service: Service, client: TestClient) -> tuple[str, str]:
    """Returns run and task of a task whose process runs."""
    run_id = run_at_rest(service)
    task_id = created(client, run_id)
    service.tick()
    service.says(task_id, RunState.RUNNING)
    service.tick(1)
    return run_id, task_id


def test_a_stop_is_sent_once_and_a_resume_goes_on_in_the_same_folder(service, client):
    _, task_id = started(service, client)
    for _ in range(2):
        assert client.post(f"/tasks/{task_id}/stop").json()["state"] == "stopping"
        service.tick(1)
    process = service.process(task_id)
    assert process.terminated == 1
    service.says(task_id, RunState.STOPPED, reason="stopped")
    process.end(75)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["resumable"]) == ("stopped", True)
    assert client.post(f"/tasks/{task_id}/resume").json()["state"] == "queued"
    service.tick(1)
    again = service.process(task_id)
    assert again is not process
    assert again.folder.path == process.folder.path
    assert shown(client, task_id)["attempt"] == 2
    assert client.post(f"/tasks/{task_id}/resume").status_code == 409


def test_a_process_that_does_not_stop_is_killed(service, client):
    _, task_id = started(service, client)
    client.post(f"/tasks/{task_id}/stop")
    service.tick(1)
    service.tick(100)
    service.tick(1)
    assert service.process(task_id).killed
    assert shown(client, task_id)["state"] == "interrupted"
    assert client.post(f"/tasks/{task_id}/resume").status_code == 202


def test_a_queued_task_stops_at_once(service, client):
    task_id = created(client, run_at_rest(service))
    assert client.post(f"/tasks/{task_id}/stop").json()["state"] == "stopped"
    service.tick()
    assert shown(client, task_id)["attempt"] == 0


def test_a_task_survives_a_restart_of_the_control_plane(service):
    def client() -> TestClient:
        return TestClient(create_app(service.plane), base_url="http://127.0.0.1")

    _, task_id = started(service, client())
    process = service.process(task_id)
    service.restart()
    service.says(task_id, RunState.RUNNING, done=5, of=9, doing="problems")
    service.tick(1)
    task = shown(client(), task_id)
    assert (task["state"], task["done"], task["attempt"]) == ("running", 5, 1)
    assert service.process(task_id) is process  # adopted, not started again
    service.folder(task_id).write_result({"score": 1})
    service.says(task_id, RunState.SUCCEEDED)
    process.end(0)
    service.restart()
    service.tick(1)
    assert shown(client(), task_id)["result"] == {"score": 1}


def test_a_control_plane_killed_before_it_recorded_the_process_finds_it(service):
    run_id = run_at_rest(service)
    task = service.plane.task_commands.create("evaluate", {"model": run_id, **SUITES}, run_id)
    claimed = service.plane.task_commands.claim(task.id, ("cpu",))
    assert claimed is not None
    folder = TaskFolder.create(claimed.folder(service.roots.runs).path, "evaluate", {})
    service.processes.start(folder, resume=False, environment={"LECTERN_ATTEMPT": "1"})
    service.restart()
    service.tick(1)
    assert len([one for one in service.processes.started if one.folder.path == folder.path]) == 1
    assert service.plane.tasks.get(task.id).process == service.process(task.id).identity


def test_a_killed_process_is_started_again_and_then_given_up(service, client):
    _, task_id = started(service, client)
    for attempt in range(1, 6):
        assert shown(client, task_id)["attempt"] == attempt
        service.process(task_id).end(-9)
        service.tick(1)
        task = shown(client, task_id)
        assert (task["state"], task["reason"]) == ("interrupted", "killed")
        service.tick(100)
        service.tick(1)
        service.says(task_id, RunState.RUNNING)
        service.tick(1)
    service.process(task_id).end(-9)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["reason"]) == ("failed", "crash_loop")
    [alert] = [one for one in client.get("/alerts").json()["alerts"] if one["name"] == task_id]
    assert alert["kind"] == "failed"
    assert task_id in alert["message"]


def test_a_task_that_gets_further_between_kills_is_not_given_up(service, client):
    _, task_id = started(service, client)

    def killed(**said: Any) -> dict[str, Any]:
        service.says(task_id, RunState.RUNNING, **said)
        service.tick(1)
        service.process(task_id).end(-9)
        service.tick(1)
        task = shown(client, task_id)
        service.tick(100)
        service.tick(1)
        return task

    for done in range(1, 9):  # more kills in all than are allowed in a row
        assert killed(doing="problems", done=done, of=20)["state"] == "interrupted"
    for _ in range(4):  # fewer are done
        assert killed(doing="problems", done=3, of=20)["state"] == "interrupted"
    assert killed(doing="samples", done=1, of=9)["state"] == "interrupted"  # of another thing
    for _ in range(4):
        assert killed(doing="problems", done=8, of=20)["state"] == "interrupted"
    task = killed(doing="samples", done=1, of=9)
    assert (task["state"], task["reason"]) == ("failed", "crash_loop")
    assert "ended 6 times in a row without getting further" in task["message"]


def test_a_task_that_counts_ever_new_things_is_given_up_at_last():
    counted = {f"thing {number}": 1 for number in range(MAX_COUNTED)}
    task = Task(
        *(1, "evaluate-a", None, "evaluate", {}, "cpu", None, 1.0),
        *(Wanted.RUNNING, RunState.RUNNING, 1.0, 1),
        restarts=3,
        restart_progress=counted,
    )
    said = TaskStatus("t", "evaluate", RunState.RUNNING, 1.0, 1.0, 7, doing="another", done=5)
    assert task.goes_so_far(said) == (3, {})
    further = {"restart_progress": {**counted, "thing 0": 5}}
    assert task.goes_so_far(replace(said, doing="thing 0")) == (0, further)
    assert task.goes_so_far(None) == (3, {})


@pytest.mark.parametrize(
    ("path", "body", "other"),
    [
        ("/runs/{run}/evaluations", SUITES, {**SUITES, "seed": 3}),
        ("/runs/{run}/exports", {}, {"format": "gguf"}),
        ("/runs/{run}/publications", {"to": "a/b"}, {"to": "a/c"}),
    ],
)
def test_a_repeated_key_makes_no_second_task(service, client, path, body, other):
    url = path.format(run=run_at_rest(service))

    def ask(asked: dict[str, Any], key: str, where: str = url) -> Any:
        return client.post(where, json=asked, headers={"Idempotency-Key": key})

    first, again = ask(body, "k-1"), ask(body, "k-1")
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    refused = ask(other, "k-1")
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "Idempotency-Key")
    assert f"made task {first.json()['id']} from another body" in refused.json()["detail"]
    assert ask(body, "k-1", path.format(run=run_at_rest(service))).status_code == 422
    assert ask(spec_body(), "k-1", "/runs").status_code == 422
    assert ask(body, "with space").status_code == 422
    second = ask(body, "k-2")
    assert second.json()["id"] != first.json()["id"]
    assert len(client.get("/tasks").json()["tasks"]) == 2
    client.post(f"{second.headers['location']}/stop")
    assert client.delete(second.headers["location"]).status_code == 204
    assert ask(body, "k-2").json()["id"] != second.json()["id"]  # the key went with the task


def test_the_keys_of_a_deleted_runs_tasks_can_be_used_again(service, client):
    run_id = run_at_rest(service)
    key = {"Idempotency-Key": "of-both"}
    made = client.post(f"/runs/{run_id}/evaluations", json=SUITES, headers=key).json()["id"]
    client.post(f"/tasks/{made}/stop")
    assert client.delete(f"/runs/{run_id}").status_code == 204
    url = f"/runs/{run_at_rest(service)}/evaluations"
    assert client.post(url, json=SUITES, headers=key).status_code == 202


def test_an_error_that_may_heal_is_tried_again_and_another_is_not(service, client):
    _, task_id = started(service, client)
    service.says(task_id, RunState.INTERRUPTED, reason="teacher_unavailable", message="away")
    service.process(task_id).end(75)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["message"]) == ("interrupted", "away")
    assert task["resumes_at"] > service.clock()
    service.tick(60)
    service.tick(1)
    assert shown(client, task_id)["attempt"] == 2
    service.says(task_id, RunState.FAILED, reason="invalid_request", message="bad", field="text")
    service.process(task_id).end(2)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["message"], task["field"]) == ("failed", "bad", "text")
    assert task["resumes_at"] is None


@pytest.mark.parametrize("wrong", ["not json", json.dumps({"version": 9}), "[" * 10_000])
def test_a_status_that_cannot_be_believed_is_said_and_the_task_goes_on(service, client, wrong):
    _, task_id = started(service, client)
    service.folder(task_id).status_path.write_text(wrong)
    service.tick(1)
    task = shown(client, task_id)
    assert (task["state"], task["reason"]) == ("running", "status_unreadable")
    service.says(task_id, RunState.RUNNING, done=1)
    service.tick(1)
    assert shown(client, task_id)["reason"] is None


def test_a_task_is_deleted_with_its_folder_once_it_rests(service, client):
    run_id, task_id = started(service, client)
    folder = service.folder(task_id)
    for path in (f"/tasks/{task_id}", f"/runs/{run_id}"):
        refused = client.delete(path)
        assert refused.status_code == 409
        assert f"lectern tasks stop {task_id}" in refused.json()["detail"]
    client.post(f"/tasks/{task_id}/stop")
    service.says(task_id, RunState.STOPPED)
    service.process(task_id).end(75)
    service.tick(1)
    assert client.delete(f"/tasks/{task_id}").status_code == 204
    assert not folder.path.exists()
    assert client.get(f"/tasks/{task_id}").status_code == 404
    assert client.delete(f"/runs/{run_id}").status_code == 204


def test_a_task_that_is_put_back_after_its_deletion_can_be_deleted_again(service, client, tmp_path):
    run_id, task_id = started(service, client)
    folder = service.folder(task_id).path
    service.says(task_id, RunState.FAILED, reason="not_found", message="no such data")
    service.process(task_id).end(3)
    service.tick(1)
    for _ in range(2):
        shutil.copytree(folder, tmp_path / "aside", dirs_exist_ok=True)
        assert client.delete(f"/tasks/{task_id}").status_code == 204
        shutil.copytree(tmp_path / "aside", folder)
        service.restart()
        client = TestClient(create_app(service.plane), base_url="http://127.0.0.1")
        [task] = service.plane.tasks.page(run_id=run_id)[0]
        assert (task.id, task.state) == (task_id, RunState.FAILED)


def test_tasks_go_with_their_run(service, client):
    run_id = run_at_rest(service)
    task_id = created(client, run_id)
    client.post(f"/tasks/{task_id}/stop")
    assert client.delete(f"/runs/{run_id}").status_code == 204
    assert client.get("/tasks").json()["tasks"] == []


def test_a_lost_database_finds_tasks_in_their_folders(service, client, tmp_path):
    run_id, task_id = started(service, client)
    process = service.process(task_id)
    service.says(task_id, RunState.FAILED, reason="not_found", message="no such data")
    process.end(3)
    with service.plane.store.writing() as connection:
        connection.exec_driver_sql("DELETE FROM tasks")
    service.restart()
    [task] = service.plane.tasks.page(run_id=run_id)[0]
    assert (task.id, task.state, task.message) == (task_id, RunState.FAILED, "no such data")
    assert task.asked["suites"] == ["perplexity"]


def test_a_change_of_a_task_is_an_event(service, client):
    run_id = run_at_rest(service)
    revision = service.plane.runs.newest_revision()
    task_id = created(client, run_id)
    data, newest = service.plane.feed.read_after(revision)
    assert data.startswith(f"id: {newest}\nevent: task\ndata: ".encode())
    assert json.loads(data.split(b"data: ")[1])["id"] == task_id
    client.post(f"/tasks/{task_id}/stop")
    client.delete(f"/tasks/{task_id}")
    data, _ = service.plane.feed.read_after(newest)
    assert b"event: deleted\n" in data
    assert task_id.encode() in data


def test_a_damaged_row_does_not_hide_the_others(service, client):
    run_id = run_at_rest(service)
    broken, sound = created(client, run_id), created(client, run_id)
    with service.plane.store.writing() as connection:
        damage = (
            "UPDATE tasks SET state = 'no', wanted = 'x', asked = '{', slots = '3' WHERE id = ?"
        )
        connection.exec_driver_sql(damage, (broken,))
    tasks = {one["id"]: one for one in client.get("/tasks").json()["tasks"]}
    assert tasks[broken]["state"] == "failed"
    assert tasks[sound]["state"] == "queued"
    service.tick()
    assert shown(client, sound)["state"] == "starting"


def test_a_task_of_a_removed_run_folder_fails_and_says_so(service, client):
    run_id = run_at_rest(service)
    task_id = created(client, run_id)
    shutil.rmtree(service.roots.runs / run_id)
    service.tick()
    task = shown(client, task_id)
    assert (task["state"], task["reason"]) == ("failed", "folder_missing")


def test_all_processes_are_stopped_together_at_the_end(service, client):
    _, task_id = started(service, client)
    run = service.plane.commands.create(spec("busy"))
    service.tick()
    trainer, worker = service.processes.last(run.id), service.process(task_id)

    def obey(_seconds: float) -> None:
        for process in (trainer, worker):
            if process.terminated and process.alive:
                if process is worker:
                    service.says(task_id, RunState.STOPPED)
                else:
                    process.say("stopped", step=1, checkpoint_step=1)
                process.end(0)

    service.plane.reconciler.stop_all([service.plane.task_reconciler], sleep=obey)
    assert shown(client, task_id)["state"] == "interrupted"
    assert shown(client, task_id)["resumes_at"] is not None
    assert service.plane.runs.get(run.id).state is RunState.INTERRUPTED
