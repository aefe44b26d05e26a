"""Databases that are lost or restored while real trainers go on."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from control_plane.runs.keeping.backups import Backups, Kind
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, home, trainers  # noqa: F401 - a fixture


def steps_of(folder: Path, run_id: str) -> list[int]:
    path = RunFolder(folder / "runs" / run_id).metrics_path
    return [line["step"] for line in read_json_lines(path)]


def beyond(service: Service, run_id: str, step: int) -> dict | None:
    run = service.run(run_id)
    return run if run["step"] > step else None


def forget(folder: Path) -> None:
    for path in (folder / "runs").glob("control-plane.sqlite3*"):
        path.unlink()


@pytest.mark.long
def test_a_lost_database_is_rebuilt_around_trainers_that_go_on(home):  # noqa: F811
    first = Service(home)
    lives, rests = first.create(), first.create(steps=8)
    first.wait(rests, "succeeded")
    pid = wait_for(lambda: first.run(lives)["step"] > 5 and trainers(home)[0].pid)
    first.kill()
    forget(home)
    refused = subprocess.run(
        [*first.process.args[:1], "-m", "control_plane", "--home", str(home), "--bind", "[::1]:0"],  # type: ignore[index]
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2 and "lectern runs adopt --all" in refused.stderr
    shutil.rmtree(home / "backups")
    second = Service(home)
    assert second.client.get("/runs").json()["runs"] == []
    answer = second.client.post("/runs/adopt", json={}).json()
    assert {run["run_id"]: run["state"] for run in answer["adopted"]} == {
        lives: "running",
        rests: "succeeded",
    }
    step = second.run(lives)["step"]
    wait_for(lambda: second.run(lives)["step"] > step + 3)
    assert [process.pid for process in trainers(home)] == [pid]
    second.post(f"/runs/{lives}/stop")
    run = second.wait(lives, "stopped")
    assert steps_of(home, lives) == list(range(run["step"] + 1)) and run["attempt"] == 1
    second.post(f"/runs/{lives}/resume")
    again = wait_for(lambda: (now := second.run(lives))["step"] > run["step"] and now)
    assert again["attempt"] == 2
    assert second.end() == 0


@pytest.mark.long
def test_an_older_database_takes_what_its_runs_have_done_since(home):  # noqa: F811
    first = Service(home)
    resumed, going = first.create(), first.create()
    wait_for(lambda: first.run(resumed)["step"] > 3)
    first.post(f"/runs/{resumed}/stop")
    first.wait(resumed, "stopped")
    database = home / "runs" / "control-plane.sqlite3"
    backup = Backups(database, home / "older").make(Kind.PERIOD)
    assert backup is not None
    at_backup = first.run(going)["step"]
    first.post(f"/runs/{resumed}/resume")
    reached = first.run(resumed)["step"]
    wait_for(lambda: first.run(resumed)["step"] > reached + 10)
    wait_for(lambda: first.run(going)["step"] > at_backup + 10)
    first.kill()  # its trainers go on
    for trainer in trainers(home):
        trainer.terminate()
    wait_for(lambda: not trainers(home))
    forget(home)
    shutil.copyfile(backup, database)
    ends = {run_id: steps_of(home, run_id)[-1] for run_id in (resumed, going)}
    second = Service(home)
    for run_id, attempt in ((resumed, 3), (going, 2)):
        run = wait_for(partial(beyond, second, run_id, 0))
        assert run["step"] >= ends[run_id] - 1
        if run_id == resumed and run["state"] == "stopped":  # as the database had it
            second.post(f"/runs/{run_id}/resume")
        again = wait_for(partial(beyond, second, run_id, ends[run_id] + 3))
        assert again["attempt"] == attempt
    assert len(trainers(home)) == 2
    for run_id in (resumed, going):
        second.post(f"/runs/{run_id}/stop")
        run = second.wait(run_id, "stopped")
        assert steps_of(home, run_id) == list(range(run["step"] + 1))
    assert second.end() == 0
