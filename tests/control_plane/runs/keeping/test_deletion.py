"""Deleted runs: rows and folder go together, and stay away."""

import shutil
import sqlite3
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from control_plane.plane import open_plane
from control_plane.runs.keeping.deletion import delete_run, finish_deletions
from control_plane.runs.keeping.room import ROOM_BYTES, Room
from control_plane.runs.search import Search
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.errors import Conflict, NotFound
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from tests.control_plane.api.test_routes import create, left_behind, problem_of, started, stopped
from tests.control_plane.conftest import spec

KEY = "once"


def rested(bench) -> RunFolder:
    """Returns the folder of a run that was stopped after it had a trainer."""
    run = bench.started()
    process = bench.processes.last(run.id)
    process.say("stopped", step=4, checkpoint_step=4)
    process.end(0)
    bench.commands.request_stop(run.id)
    bench.tick()
    return RunFolder(bench.roots.runs / run.id)


def folders(bench) -> list[str]:
    return [path.name for path in bench.roots.runs.iterdir() if path.is_dir()]


def test_a_deleted_run_is_gone_with_its_folder_its_history_and_its_key(bench):
    folder = rested(bench)
    (folder.checkpoints_path / "step-00000004").mkdir(parents=True, exist_ok=True)
    delete_run(bench.commands, folder)
    assert folders(bench) == []
    assert bench.runs.search(Search(), None, 10).runs == []
    assert bench.runs.history(folder.run_id) == []
    with pytest.raises(NotFound):
        delete_run(bench.commands, folder)
    first = bench.commands.create(spec(), KEY, "a")
    bench.commands.request_stop(first.id)
    delete_run(bench.commands, RunFolder(bench.roots.runs / first.id))  # which never had a folder
    assert bench.commands.create(spec(), KEY, "b").id != first.id


def test_a_run_that_is_deleted_while_it_is_to_be_started_keeps_no_other_from_starting(
    bench, monkeypatch
):
    gone, stays = bench.create(), bench.create()
    as_listed = bench.runs.in_states
    queued = as_listed([RunState.QUEUED])
    monkeypatch.setattr(
        bench.runs,
        "in_states",
        lambda states: queued if states == [RunState.QUEUED] else as_listed(states),
    )
    bench.commands.request_stop(gone.id)
    delete_run(bench.commands, RunFolder(bench.roots.runs / gone.id))
    bench.tick()
    assert bench.runs.get(stays.id).state is RunState.STARTING


def test_a_run_that_may_still_train_is_not_deleted(bench):
    active, going_on = bench.started(), bench.started()
    queued = bench.create()
    bench.tick()
    bench.processes.last(going_on.id).end(-9)
    bench.commands.crashed(going_on.id, "killed", "gone")
    for run, said in (
        (queued, "is queued; stop it first"),
        (active, f"is running; stop it first (`lectern runs stop {active.id}`)"),
        (going_on, "resumes by itself; stop it first"),
    ):
        folder = RunFolder(bench.roots.runs / run.id)
        with pytest.raises(Conflict) as refused:
            delete_run(bench.commands, folder)
        assert said in str(refused.value)
        assert bench.runs.get(run.id).id == run.id
        assert folder.spec_path.exists() is (run is not queued)


def test_a_refused_deletion_leaves_the_lock_to_the_trainer(bench):
    run = bench.started()
    folder = RunFolder(bench.roots.runs / run.id)
    with pytest.raises(Conflict):
        delete_run(bench.commands, folder)
    assert not (folder.path / "lock").exists()  # A trainer that came to it just then would end.
    with folder.locked(), pytest.raises(Conflict, match="is running; stop it first"):
        delete_run(bench.commands, folder)


def test_a_folder_that_another_process_trains_in_is_not_deleted(bench):
    folder = rested(bench)
    with folder.locked(), pytest.raises(Conflict, match="by another process"):
        delete_run(bench.commands, folder)
    assert bench.runs.get(folder.run_id).id == folder.run_id
    assert folders(bench) == [folder.run_id]


def test_links_are_not_followed(bench, tmp_path):
    """A link within the folder is removed; a folder that is a link would keep its content."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "checkpoints").mkdir(parents=True)
    linked, moved = rested(bench), rested(bench)
    shutil.rmtree(linked.checkpoints_path)
    linked.checkpoints_path.symlink_to(elsewhere / "checkpoints")
    moved.path.rename(elsewhere / "moved")
    moved.path.symlink_to(elsewhere / "moved")
    delete_run(bench.commands, linked)
    with pytest.raises(Conflict, match=r"is a link to .*; remove its target"):
        delete_run(bench.commands, moved)
    assert bench.runs.get(moved.run_id).id == moved.run_id
    assert folders(bench) == [moved.run_id]
    assert {path.name for path in elsewhere.iterdir()} == {"checkpoints", "moved"}


def test_a_failed_write_leaves_the_run_whole(bench, monkeypatch):
    folder = rested(bench)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="full"):
        broken.setattr("control_plane.runs.commands.newest_revision", failing)
        delete_run(bench.commands, folder)
    assert bench.runs.get(folder.run_id).id == folder.run_id
    assert folders(bench) == [folder.run_id]


def test_a_full_disk_keeps_room_to_delete(bench, monkeypatch):
    folder, other = rested(bench), rested(bench)
    reserve = bench.store.path.with_name("control-plane-test.reserve")
    room = Room(reserve)
    monkeypatch.setattr(bench.commands, "room", room)
    room.take()
    assert reserve.stat().st_size == ROOM_BYTES
    real = bench.commands.delete

    def delete(run_id, set_aside, since=None):
        real_set_aside = set_aside

        def set_aside_on_a_full_disk():
            real_set_aside()
            if reserve.exists():
                full = sqlite3.OperationalError("database or disk is full")
                raise sa.exc.OperationalError("DELETE", {}, full)

        real(run_id, set_aside_on_a_full_disk, since)

    monkeypatch.setattr(bench.commands, "delete", delete)
    delete_run(bench.commands, folder)
    assert folders(bench) == [other.run_id]
    assert reserve.exists()  # taken again
    # Where nothing is reserved, the error is told and the run is whole.
    reserve.unlink()
    monkeypatch.setattr(room, "take", lambda: None)
    full = sqlite3.OperationalError("database or disk is full")
    monkeypatch.setattr(
        bench.commands, "delete", raising(sa.exc.OperationalError("DELETE", {}, full))
    )
    with pytest.raises(sa.exc.OperationalError):
        delete_run(bench.commands, other)
    assert folders(bench) == [other.run_id]


def test_room_is_taken_only_where_enough_is_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    room = Room(tmp_path / "reserve")
    monkeypatch.setattr(
        "control_plane.runs.keeping.room.disk_usage",
        lambda path: usage._replace(free=8 * ROOM_BYTES - 1),
    )
    room.take()
    assert not (tmp_path / "reserve").exists()


def raising(error: Exception) -> Callable[..., None]:
    def delete(*_: object) -> None:
        raise error

    return delete


def failing(_connection: object) -> int:
    raise RuntimeError("the disk is full")


def test_a_deletion_killed_before_its_commit_is_undone_at_the_next_start(bench):
    folder = rested(bench)
    folder.path.rename(folder.path.with_name(f".deleted-{folder.run_id}"))
    finish_deletions(bench.runs, bench.roots.runs)
    assert folders(bench) == [folder.run_id]
    assert folder.read_spec() == bench.runs.get(folder.run_id).run_spec


def test_a_deletion_killed_after_its_commit_is_finished_at_the_next_start(bench, monkeypatch):
    folder = rested(bench)
    with monkeypatch.context() as killed:
        killed.setattr("control_plane.runs.keeping.deletion._remove", lambda aside: None)
        delete_run(bench.commands, folder)
    assert folders(bench) == [f".deleted-{folder.run_id}"]
    bench.store.close()
    plane = open_plane(bench.roots, devices=bench.devices, launcher=LocalLauncher(bench.processes))
    assert folders(bench) == []
    plane.close()


def test_a_deletion_is_a_change_with_a_revision_of_its_own(bench):
    first, second, third = (bench.create(name) for name in ("one", "two", "three"))
    bench.commands.request_stop(third.id)
    revision = bench.runs.newest_revision()
    delete_run(bench.commands, RunFolder(bench.roots.runs / third.id))
    bench.commands.request_stop(first.id)
    # The deleted run had the newest revision: nobody gets it again.
    assert [(run.id, run.revision) for run in bench.runs.changed_since(revision)] == [
        (third.id, revision + 1),
        (first.id, revision + 2),
    ]
    assert [run.id for run in bench.runs.changed_since(second.revision, limit=1)] == [third.id]


def test_delete_over_rest(client, plane, processes):
    run = stopped(client, processes)
    response = client.delete(f"/runs/{run['id']}")
    assert (response.status_code, response.content) == (204, b"")
    problem_of(client.get(f"/runs/{run['id']}"), 404, "not_found")
    problem_of(client.delete(f"/runs/{run['id']}"), 404, "not_found")
    assert left_behind(plane) == []
    going = started(client, processes, name="going")
    found = problem_of(client.delete(f"/runs/{going['id']}"), 409, "conflict")
    assert "is running; stop it first" in found["detail"]
    assert create(client)["id"] != run["id"]
