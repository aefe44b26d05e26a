"""The life of a task's process: states, exit statuses, signals, kills, going on."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lectern_common.roots import Roots
from lectern_common.run.processes import identity_of
from lectern_common.run.status import RunState
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.status import TaskStatus
from student_trainer.stages.life import run_task
from student_trainer.stop import Stop
from tests.support.servers import ROOT, wait_for
from tests.support.stand_in_stage import PROGRAM, STAGES


def task(tmp_path: Path, **asked: Any) -> TaskFolder:
    return TaskFolder.create(tmp_path / "tasks" / "t", "evaluate", asked)


def done(folder: TaskFolder, stage: str = "evaluate", stop: Stop | None = None) -> int:
    roots = Roots.of_home(folder.path.parent)
    return run_task(stage, folder, roots, stop or Stop(), STAGES)


def started(folder: TaskFolder, *words: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
    with folder.log_path.open("ab") as log:
        return subprocess.Popen(
            [*PROGRAM, "evaluate", str(folder.path), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def status_of(folder: TaskFolder) -> TaskStatus:
    status = folder.read_status()
    assert status is not None
    return status


def test_a_task_that_succeeds_leaves_its_result(tmp_path):
    folder = task(tmp_path, count=4)
    assert done(folder) == 0
    assert folder.read_result() == {
        "count": 4,
        "began_at": 0,
        "score": 0.5,
        "markdown": "counted 4\n",
    }
    status = status_of(folder)
    assert (status.state, status.task_id, status.stage) == (RunState.SUCCEEDED, "t", "evaluate")
    assert (status.doing, status.done, status.of) == ("numbers", 4, 4)
    assert status.said == ["counting from 0"]
    assert status.process == identity_of(os.getpid())


def test_a_task_that_has_succeeded_is_not_done_again(tmp_path):
    folder = task(tmp_path, count=4)
    assert done(folder) == 0
    folder.work_path.joinpath("counted").unlink()
    assert done(folder) == 0
    assert not folder.work_path.joinpath("counted").exists()
    assert status_of(folder).state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("end", "code", "state", "reason", "field"),
    [
        ("missing", 3, RunState.FAILED, "not_found", None),
        ("wrong_field", 2, RunState.FAILED, "invalid_request", "count"),
        ("teacher_away", 75, RunState.INTERRUPTED, "teacher_unavailable", None),
        ("breaks", 1, RunState.FAILED, "internal", None),
        ("not_json", 1, RunState.FAILED, "internal", None),
    ],
)
def test_an_error_is_the_status_and_never_a_result(tmp_path, end, code, state, reason, field):
    folder = task(tmp_path, end=end)
    assert done(folder) == code
    status = status_of(folder)
    assert (status.state, status.reason, status.field) == (state, reason, field)
    assert folder.read_result() is None


def test_a_request_that_is_wrong_fails_by_field(tmp_path):
    folder = task(tmp_path, count=0)
    assert done(folder) == 2
    status = status_of(folder)
    assert (status.reason, status.field) == ("invalid_spec", "count")
    assert status.message == "count: expected more than 0, got 0"


def test_a_task_of_another_stage_is_refused(tmp_path):
    folder = task(tmp_path)
    assert done(folder, "export") == 2
    assert "of the stage evaluate, not export" in (status_of(folder).message or "")


def test_a_second_process_leaves_the_folder_alone(tmp_path):
    folder = task(tmp_path)
    with folder.locked():
        assert done(folder) == 4
    assert folder.read_status() is None


def test_a_stop_before_the_work_begins_does_nothing(tmp_path):
    folder, stop = task(tmp_path), Stop()
    stop.request()
    assert done(folder, stop=stop) == 75
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.STOPPED, "stopped")
    assert not folder.work_path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_it_goes_on_where_it_was(tmp_path, number):
    folder = task(tmp_path, count=5, seconds=0.3)
    with started(folder) as child:
        counted = folder.work_path / "counted"
        wait_for(lambda: counted.exists() and counted.stat().st_size >= 2)
        child.send_signal(number)
        assert child.wait(60) == 75
    assert status_of(folder).state is RunState.STOPPED
    assert folder.read_result() is None
    assert done(folder) == 0
    result = folder.read_result()
    assert result is not None
    assert result["count"] == 5
    assert result["began_at"] >= 2


def test_a_killed_task_goes_on_and_the_kernel_frees_its_lock(tmp_path):
    folder = task(tmp_path, count=3, end="killed")
    with started(folder) as child:
        assert child.wait(60) == -signal.SIGKILL
    assert status_of(folder).state in (RunState.STARTING, RunState.RUNNING)
    with started(folder) as child:  # from 1 to 2
        assert child.wait(60) == -signal.SIGKILL
    assert folder.work_path.joinpath("counted").stat().st_size == 2
    assert "counts" in folder.log_path.read_text()


def test_it_stops_if_the_process_that_started_it_is_gone(tmp_path):
    folder = task(tmp_path, count=1000, seconds=0.1)
    with started(folder, "--stop-with-parent", stdin=subprocess.PIPE) as child:
        wait_for(lambda: folder.work_path.exists())
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 75
    assert status_of(folder).message == "stopped because the command that had started it was gone"
