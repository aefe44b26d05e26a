"""Running a stage in the foreground."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lectern.commands.stages.foreground import run_stage
from lectern.local.processes import ChildDied
from lectern_common.errors import Conflict, InvalidRequest, NotFound, TeacherUnavailable
from lectern_common.roots import Roots
from lectern_common.stages.folder import TaskFolder
from tests.support.servers import ROOT, wait_for
from tests.support.stand_in_stage import PROGRAM, CountRequest


@pytest.fixture(autouse=True)
def _python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(home: Path, folder: Path | None = None, **asked: object):
    request = CountRequest.model_validate(asked)
    return run_stage("evaluate", request, Roots.of_home(home), folder, program=PROGRAM)


def test_a_result_is_returned_with_its_text(tmp_path, capfd):
    result = run(tmp_path, count=3)
    assert result == {"count": 3, "began_at": 0, "score": 0.5, "markdown": "counted 3\n"}
    shown = capfd.readouterr()
    assert "counting from 0" in shown.err
    assert shown.out == ""


def test_a_folder_that_was_given_is_kept_and_gone_on_with(tmp_path):
    folder = tmp_path / "task"
    run(tmp_path, folder, count=3)
    (folder / "result.json").unlink()
    assert run(tmp_path, folder, count=3)["began_at"] == 3
    with pytest.raises(Conflict, match="asked something else"):
        run(tmp_path, folder, count=4)


@pytest.mark.parametrize(
    ("end", "kind", "said"),
    [
        ("missing", NotFound, "no such model"),
        ("wrong_field", InvalidRequest, "is too large"),
        ("teacher_away", TeacherUnavailable, "does not answer"),
        ("breaks", ChildDied, "RuntimeError: a bug"),
        ("killed", ChildDied, "ended by signal 9"),
    ],
)
def test_the_error_of_the_process_is_raised(tmp_path, end, kind, said):
    with pytest.raises(kind, match=said) as caught:
        run(tmp_path, end=end)
    if kind is InvalidRequest:
        assert caught.value.field == "count"


def test_an_interrupt_stops_the_process_which_can_go_on(tmp_path, capfd):
    folder = tmp_path / "task"
    program = (
        "import sys; from pathlib import Path\n"
        f"from {__name__} import run\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), count=100, seconds=0.1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        wait_for((folder / "work" / "counted").exists)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(60) == 1  # typer.Exit, which no command catches here
    said = capfd.readouterr().err
    assert "stopped; run the same command again to go on" in said
    status = TaskFolder(folder).read_status()
    assert status is not None
    assert status.state == "stopped"


def test_a_stopped_task_exits_as_interrupted(tmp_path):
    stopped = "import sys, os, signal; os.kill(os.getppid(), signal.SIGINT); import runpy; "
    stopped += f"sys.argv = sys.argv[1:]; runpy.run_path({PROGRAM[1]!r}, run_name='__main__')"
    program = (sys.executable, "-c", stopped, "x")
    request = CountRequest(count=1000, seconds=0.1)
    with pytest.raises(typer.Exit) as caught:
        run_stage("evaluate", request, Roots.of_home(tmp_path), program=program)
    assert caught.value.exit_code == 75
