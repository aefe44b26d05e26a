"""Run folders, or parts of them, that someone removed: told as that, and never begun anew."""

import shutil

from lectern_common.run.folder import RunFolder
from tests.control_plane.api.test_routes import problem_of, started, state_of, stopped
from tests.control_plane.conftest import wait_for
from tests.control_plane.trainers.test_reconciler import seen


def folder_of(bench, run) -> RunFolder:
    return RunFolder(bench.roots.runs / run.id)


def at_step(bench, step: int, checkpoint: int | None):
    run = bench.started()
    bench.processes.last().say("running", step=step, checkpoint_step=checkpoint)
    bench.tick(1)
    return run, folder_of(bench, run)


def stop(bench, run) -> None:
    bench.commands.request_stop(run.id)
    bench.processes.last().say("stopped", step=8, checkpoint_step=8)
    bench.processes.last().end(0)
    bench.tick(1)
    assert seen(bench, run.id) == ("stopped", "stopped")


def test_a_folder_removed_while_its_run_trains_is_said_and_heals(bench):
    run, folder = at_step(bench, 2708, 2700)
    folder.path.rename(folder.path.with_name("aside"))
    bench.tick(1)
    assert seen(bench, run.id) == ("running", "folder_missing")
    assert "after step 2708" in bench.runs.get(run.id).message
    folder.path.with_name("aside").rename(folder.path)
    bench.tick(1)
    assert seen(bench, run.id) == ("running", None)


def test_a_run_whose_folder_was_removed_fails_as_that_and_cannot_be_resumed(bench):
    run, folder = at_step(bench, 17, 15)
    shutil.rmtree(folder.path)
    bench.processes.last().end(1)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "folder_missing")
    ended = bench.runs.get(run.id)
    assert "after step 17" in ended.message and not ended.resumable
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "folder_missing")
    assert not folder.path.exists() and len(bench.processes.started) == 1


def test_a_folder_removed_while_its_run_stops_is_no_checkpoint(bench):
    run, folder = at_step(bench, 7, 5)
    bench.commands.request_stop(run.id)
    shutil.rmtree(folder.path)
    bench.processes.last().end(0)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "folder_missing")


def test_a_folder_removed_before_the_first_step_can_be_begun_again(bench):
    run = bench.create()
    bench.tick()
    shutil.rmtree(folder_of(bench, run).path)
    bench.processes.last().end(1)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "folder_missing")
    assert "before its first step" in bench.runs.get(run.id).message
    assert bench.runs.get(run.id).resumable
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert seen(bench, run.id) == ("starting", None)


def test_a_stopped_run_without_its_folder_is_not_begun_anew(bench):
    run, folder = at_step(bench, 7, 5)
    stop(bench, run)
    shutil.rmtree(folder.path)
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "folder_missing")
    assert "after step 8" in bench.runs.get(run.id).message
    assert not folder.path.exists()


def test_a_resume_without_the_folder_is_refused_at_once(client, plane, processes):
    run = stopped(client, processes)
    shutil.rmtree(plane.roots.runs / run["id"])
    body = problem_of(client.post(f"/runs/{run['id']}/resume"), 409, "folder_missing")
    assert "step 4" in body["detail"] and run["id"] in body["detail"]
    assert state_of(client, run["id"]) == "stopped"


def test_a_run_without_only_its_checkpoints_is_not_begun_anew(bench):
    run, folder = at_step(bench, 7, 5)
    stop(bench, run)
    shutil.rmtree(folder.checkpoints_path)
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "folder_missing")
    message = bench.runs.get(run.id).message
    assert "checkpoints" in message and "step 8" in message
    (folder.checkpoints_path / "step-00000008").mkdir(parents=True)
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert seen(bench, run.id) == ("starting", None)


def test_broken_checkpoints_that_the_trainer_set_aside_were_not_removed(bench):
    run, folder = at_step(bench, 7, 5)
    stop(bench, run)
    for path in list(folder.checkpoints_path.iterdir()):
        path.rename(path.with_name(f"broken-{path.name}"))
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert bench.processes.resumed == [False, True]


def test_a_run_without_only_its_status_resumes_from_its_checkpoint(bench):
    run, folder = at_step(bench, 7, 5)
    stop(bench, run)
    folder.status_path.unlink()
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert bench.processes.resumed == [False, True]


def test_a_trainer_that_dies_without_its_status_file_is_remembered_by_its_row(bench):
    run, folder = at_step(bench, 7, 5)
    folder.status_path.unlink()
    bench.tick(1)
    assert seen(bench, run.id) == ("running", None)
    bench.processes.last().end(1)
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "crashed")
    assert bench.runs.get(run.id).checkpoint_step == 5


def test_a_removed_or_damaged_spec_is_written_again(bench):
    for damage in ("remove", "break"):
        run, folder = at_step(bench, 7, 5)
        stop(bench, run)
        if damage == "remove":
            folder.spec_path.unlink()
        else:
            folder.spec_path.write_text("name: [")
        bench.commands.request_resume(run.id)
        bench.tick(1)
        assert folder.read_spec() == run.run_spec
        assert bench.processes.resumed[-1]
        stop(bench, run)


def test_a_folder_removed_under_a_listed_run_breaks_no_view(client, plane, processes):
    run = started(client, processes)
    shutil.rmtree(plane.roots.runs / run["id"])
    wait_for(lambda: client.get(f"/runs/{run['id']}").json()["reason"] == "folder_missing")
    for path in ("", "/metrics", "/samples", "/logs", "/spec"):
        assert client.get(f"/runs/{run['id']}{path}").status_code == 200
