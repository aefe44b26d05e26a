"""Forks and stops over REST: what is made, what is refused, and what is left of that: nothing."""

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.plane import open_plane
from control_plane.runs import forking
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.roots import Roots
from lectern_common.run.checkpoint_files import verified_state
from lectern_common.run.folder import ForkedFrom, RunFolder
from lectern_common.teacher.identity import TeacherIdentity
from tests.control_plane.api.test_routes import create, problem_of, started, state_of, stopped
from tests.control_plane.conftest import wait_for
from tests.support.fakes import FakeTeacher, serving, write_fake_checkpoint


@pytest.fixture
def source(client, plane) -> RunFolder:
    """The folder of a run that waits, with checkpoints of steps 4 and 8."""
    run = create(client, "source")
    folder: RunFolder = plane.folder(plane.runs.get(run["id"]))
    wait_for(folder.path.exists)
    for step in (4, 8):
        write_fake_checkpoint(folder, step, tokens_seen=100 * step, val_loss=1.5, wall_seconds=3.5)
    return folder


@pytest.fixture
def fork(client, source) -> Callable[..., Any]:
    def ask(changes: Any = None, checkpoint: Any = None, **request: Any) -> Any:
        body = {"checkpoint": checkpoint, "changes": changes or {}}
        return client.post(f"/runs/{source.run_id}/fork", json=body, **request)

    return ask


def left_in(plane) -> set[str]:
    return {path.name for path in plane.roots.runs.iterdir() if path.is_dir()}


def test_a_fork_of_a_running_run_begins_with_its_checkpoint(client, plane, source, fork, processes):
    answer = fork({"optimizer": {"learning_rate": 0.5}, "tags": ["second"]}, 4)
    assert answer.status_code == 202, answer.text
    run = answer.json()
    assert answer.headers["location"] == f"/runs/{run['id']}"
    assert run["name"] == "source-fork" and run["id"].startswith("source-fork-")
    assert run["forked_from"] == {"run_id": source.run_id, "step": 4}
    assert (run["step"], run["checkpoint_step"], run["stop_at"]) == (4, 4, None)
    folder = RunFolder(plane.roots.runs / run["id"])
    assert folder.read_forked_from() == ForkedFrom(source.run_id, 4)
    assert folder.read_spec().optimizer.learning_rate == 0.5
    state = verified_state(folder.checkpoints_path / "step-00000004")
    assert (state["tokens_seen"], state["wall_seconds"], state["val_loss"]) == (400, 3.5, None)
    assert (state["spec"]["name"], state["data_sha256s"]) == ("source-fork", None)
    assert state["spec"] == folder.read_spec().model_dump(mode="json")
    wait_for(lambda: any(made.folder.run_id == run["id"] for made in processes.started))
    assert processes.resumed[-1] is True
    detail = client.get(f"/runs/{run['id']}").json()
    first = detail["history"][0]
    assert (first["state"], first["reason"]) == ("queued", "forked")
    assert first["message"] == f"forked from run {source.run_id} at step 4"
    (checkpoint,) = client.get(f"/runs/{run['id']}/checkpoints").json()["checkpoints"]
    assert (checkpoint["step"], checkpoint["validation_loss"]) == (4, None)
    listed = {one["id"]: one["forked_from"] for one in client.get("/runs").json()["runs"]}
    assert listed == {run["id"]: run["forked_from"], source.run_id: None}


def test_the_files_are_shared_but_for_the_small_ones(plane, source, fork):
    folder = RunFolder(plane.roots.runs / fork().json()["id"])
    path = "checkpoints/step-00000008"
    for name, shared in (("model.safetensors", True), ("optimizer.safetensors", True)):
        assert (folder.path / path / name).samefile(source.path / path / name) is shared
    for name in ("state.json", "manifest.json"):
        assert not (folder.path / path / name).samefile(source.path / path / name)
    assert verified_state(source.path / path)["val_loss"] == 1.5  # untouched


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_files_are_copied_where_there_are_no_links(plane, source, fork, monkeypatch, refusal):
    def link(*_: Any) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "link", link)
    folder = RunFolder(plane.roots.runs / fork().json()["id"])
    verified_state(folder.checkpoints_path / "step-00000008")
    model = Path("checkpoints/step-00000008/model.safetensors")
    assert not (folder.path / model).samefile(source.path / model)


def test_a_file_that_is_a_link_is_copied(plane, source, fork, tmp_path):
    model = source.path / "checkpoints/step-00000008/model.safetensors"
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    folder = RunFolder(plane.roots.runs / fork().json()["id"])
    copied = folder.path / model.relative_to(source.path)
    assert not copied.is_symlink()
    (tmp_path / "elsewhere").unlink()
    verified_state(copied.parent)


def test_a_fork_outlives_its_source(client, plane, processes):
    run = stopped(client, processes, name="goes")
    folder = RunFolder(plane.roots.runs / run["id"])
    made = client.post(f"/runs/{run['id']}/fork").json()  # no body: the newest, unchanged
    kept = RunFolder(plane.roots.runs / made["id"])
    assert client.delete(f"/runs/{run['id']}").status_code == 204
    assert not folder.path.exists()
    verified_state(kept.checkpoints_path / "step-00000004")
    assert client.get(f"/runs/{made['id']}").json()["forked_from"]["run_id"] == run["id"]


def test_one_key_makes_one_fork(client, plane, fork):
    key = {"Idempotency-Key": "once"}
    first = fork({"seed": 3}, 4, headers=key)
    again = fork({"seed": 3}, 4, headers=key)
    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    problem_of(fork({"seed": 4}, 4, headers=key), 422, "invalid_request")
    problem_of(fork(headers={"Idempotency-Key": "a b"}), 422, "invalid_request")
    assert len([name for name in left_in(plane) if name.startswith("source-fork")]) == 1
    assert not [name for name in left_in(plane) if name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "checkpoint", "fields"),
    [
        ({}, 5, ["checkpoint"]),
        ({}, -1, ["checkpoint"]),
        ({}, 4.5, ["checkpoint"]),
        ({}, "4", ["checkpoint"]),
        ({}, True, ["checkpoint"]),
        ([], None, ["changes"]),
        (
            {"student": {"config": "other", "lora": {"rank": 2}}},
            4,
            ["student.config", "student.lora"],
        ),
        ({"student": {"init": "tiny"}}, 4, ["student.init"]),
        ({"schedule": {"steps": 4}}, 4, ["schedule.steps"]),
        ({"optimizer": {"lr": 1}}, 4, ["optimizer.lr"]),
        ({"name": "A B"}, 4, ["name"]),
        ({"data": {"kind": "shards", "path": "nothing"}}, 4, ["data.path"]),
        ({"objective": {"alpha": 0.5}}, 4, ["teacher", "objective.alpha"]),
        ({"device": {"count": 64}, "batch": {"sequences_per_step": 64}}, 4, ["device.count"]),
    ],
)
def test_what_cannot_be_forked_is_refused_by_field_and_leaves_nothing(
    client, plane, source, changes, checkpoint, fields
):
    before = left_in(plane)
    body = {"checkpoint": checkpoint, "changes": changes}
    answer = client.post(f"/runs/{source.run_id}/fork", json=body)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == fields
    assert left_in(plane) == before


def test_a_step_that_is_not_there_names_those_that_are(fork):
    assert "it has 4, 8" in fork(checkpoint=5).json()["detail"]


def test_without_a_checkpoint_there_is_nothing_to_fork(client, plane):
    run = create(client)
    for step in (None, 4):
        body = problem_of(
            client.post(f"/runs/{run['id']}/fork", json={"checkpoint": step}), 409, "conflict"
        )
        assert "has no checkpoint to fork" in body["detail"]
    problem_of(client.post("/runs/nobody/fork", json={}), 404, "not_found")
    problem_of(client.post(f"/runs/{run['id']}/fork", json={"step": 4}), 422, "invalid_request")
    assert not [name for name in left_in(plane) if name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.safetensors", "other bytes"),
        ("optimizer.safetensors", ""),
        ("state.json", "{}"),
        ("state.json", "[" * 100_000),
        ("state.json", "\x00"),
        ("manifest.json", "{"),
        ("manifest.json", "[]"),
        ("model.safetensors", None),
        ("manifest.json", None),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_other_one_forked(plane, source, fork, name, text):
    path = source.checkpoints_path / "step-00000008" / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    before = left_in(plane)
    for step in (8, None):
        body = problem_of(fork(checkpoint=step), 422, "corrupt_data")
        assert body["errors"][0]["field"] == "checkpoint"
        assert "the checkpoint of step 8 of run source-" in body["detail"]
        assert ".forking-" not in body["detail"]
    assert left_in(plane) == before
    assert fork(checkpoint=4).status_code == 202


@pytest.mark.parametrize("after", range(4))
def test_a_checkpoint_that_is_deleted_while_it_is_taken_is_a_conflict(
    plane, source, fork, monkeypatch, after
):
    """The trainer renames the folder, then removes it."""
    link, linked = os.link, list[Path]()

    def racing(origin: Path, target: Path) -> None:
        if len(linked) == after and "step-00000008" in str(origin):
            origin.parent.rename(origin.parent.with_name(".writing-deleted-00000008"))
        link(origin, target)
        linked.append(target)

    monkeypatch.setattr(os, "link", racing)
    assert (
        "deleted the checkpoint of step 8"
        in problem_of(fork(checkpoint=8), 409, "conflict")["detail"]
    )
    assert not [name for name in left_in(plane) if name.startswith((".fork", "source-fork"))]


def test_the_newest_is_that_of_the_moment(plane, source, fork, monkeypatch):
    """A newer one is written and the old newest deleted just when it is to be taken."""
    link, raced = os.link, list[Path]()

    def racing(origin: Path, target: Path) -> None:
        if not raced:
            raced.append(origin)
            write_fake_checkpoint(source, 12)
            shutil.rmtree(origin.parent)
        link(origin, target)

    monkeypatch.setattr(os, "link", racing)
    assert fork().json()["forked_from"]["step"] == 12


def test_what_is_taken_outlives_a_deletion_while_it_is_verified(plane, source, fork, monkeypatch):
    def deleting(path: Path) -> dict[str, Any]:
        shutil.rmtree(source.checkpoints_path / "step-00000004")
        return verified_state(path)

    monkeypatch.setattr(forking, "verified_state", deleting)
    folder = RunFolder(plane.roots.runs / fork(checkpoint=4).json()["id"])
    verified_state(folder.checkpoints_path / "step-00000004")


@pytest.mark.parametrize("where", ["mkdtemp", "link", "write_json", "fsync", "rename_durably"])
def test_a_full_disk_is_told_and_nothing_is_left(plane, source, fork, monkeypatch, where):
    before = left_in(plane)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        owner = {"mkdtemp": tempfile, "link": os}.get(where, forking)
        patch.setattr(owner, where, full)
        body = problem_of(fork(), 507, "disk_full")
    assert body["retryable"] and "nothing of the fork is left" in body["detail"]
    assert left_in(plane) == before
    assert len(plane.runs.in_states(["queued", "starting", "running"])) == 1
    assert fork().status_code == 202


def test_a_teacher_is_checked_as_that_of_a_new_run_and_may_be_another(plane, source, fork):
    changes: dict[str, Any] = {"objective": {"alpha": 0.5}, "teacher": {"representation": "dense"}}
    with serving(FakeTeacher(fingerprint="a" * 64)) as address:
        changes["teacher"]["address"] = address
        run = fork(changes)
        assert run.status_code == 202, run.text
        folder = RunFolder(plane.roots.runs / run.json()["id"])
        assert folder.read_teacher() == TeacherIdentity("fake-teacher", "a" * 64)
        state = verified_state(folder.checkpoints_path / "step-00000008")
        assert state["teacher_fingerprint"] == "a" * 64
        other = RunFolder(
            plane.roots.runs
            / plane.commands.create(folder.read_spec(), teacher=folder.read_teacher()).id
        )
    before = left_in(plane)
    problem_of(fork(changes), 502, "teacher_unavailable")
    assert left_in(plane) == before
    assert other.run_id


def test_a_long_verification_holds_up_nobody_else(client, plane, fork, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(path: Path) -> dict[str, Any]:
        begun.set()
        assert go.wait(60)
        return verified_state(path)

    monkeypatch.setattr(forking, "verified_state", slow)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(fork()))
    asking.start()
    try:
        assert begun.wait(60)
        assert client.get("/runs").status_code == 200
        assert client.post("/runs/nobody/stop").status_code == 404
        assert len(client.get("/runs").json()["runs"]) == 1  # there is no row before it is whole
    finally:
        go.set()
        asking.join(60)
    assert answers[0].status_code == 202


def test_a_killed_fork_leaves_nothing_that_the_next_start_does_not_remove(tmp_path, processes):
    runs = tmp_path / "runs"
    for name in (".forking-abc/x-1/checkpoints", ".forked-x-1/checkpoints", ".new-x/y"):
        (runs / name).mkdir(parents=True)
    plane = open_plane(
        Roots.of_home(tmp_path),
        devices=Devices((), max_running=1),
        launcher=LocalLauncher(processes),
    )
    plane.close()
    assert left_in(plane) == {".new-x"}  # young, and perhaps of a living `lectern train`


def test_a_fork_whose_folder_is_gone_does_not_begin_from_nothing(client, plane, source, fork):
    plane.commands.request_stop(source.run_id)
    blocker = [create(client, f"b-{number}") for number in range(3)]
    run = fork().json()
    shutil.rmtree(plane.roots.runs / run["id"])
    for one in blocker:
        client.post(f"/runs/{one['id']}/stop")
    for process in list(plane.reconciler._processes.alive()):
        process.say("stopped")
        process.end(0)
    wait_for(lambda: state_of(client, run["id"]) == "failed")
    detail = client.get(f"/runs/{run['id']}").json()
    assert detail["reason"] == "folder_missing"
    assert f"the checkpoint of run {source.run_id} at step 8" in detail["message"]


# ---- stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {}, {"at": "now"}])
def test_a_stop_without_words_is_one_now(client, processes, body):
    run = started(client, processes)
    answer = client.post(f"/runs/{run['id']}/stop", **({} if body is None else {"json": body}))
    assert (answer.status_code, answer.json()["state"]) == (202, "stopping")


def test_a_stop_at_the_next_checkpoint(client, processes):
    run = started(client, processes)
    for _ in range(2):
        answer = client.post(f"/runs/{run['id']}/stop", json={"at": "checkpoint"})
        assert answer.status_code == 202
        assert (answer.json()["state"], answer.json()["stop_at"]) == ("running", "checkpoint")
    process = processes.last(run["id"])
    wait_for(lambda: process.told_of_checkpoint)
    process.say("stopped", step=5, checkpoint_step=5)
    process.end(0)
    wait_for(lambda: state_of(client, run["id"]) == "stopped")
    assert client.get(f"/runs/{run['id']}").json()["stop_at"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [({"at": "later"}, "at"), ({"at": None}, "at"), ({"at": 1}, "at"), ({"when": "now"}, "when")],
)
def test_a_wrong_stop_is_refused_by_field(client, processes, body, field):
    run = started(client, processes)
    problem = problem_of(client.post(f"/runs/{run['id']}/stop", json=body), 422, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert state_of(client, run["id"]) == "running"
