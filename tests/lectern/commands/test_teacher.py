import os
import signal
import subprocess
import sys

import pytest

from lectern.local.processes import wait_until
from teacher_server.options import options_parser

DEADLINE_SECONDS = 30.0


def test_the_help_of_serve_is_the_servers_own():
    argv = [sys.executable, "-m", "lectern", "teacher", "serve", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0
    for action in options_parser()._actions:
        assert all(name in done.stdout for name in action.option_strings)


def test_serve_becomes_the_server(tmp_path):
    port_file = tmp_path / "port"
    options = ["--engine", "fixture", "--vocab-size", "97", "--bind", "127.0.0.1:0"]
    argv = [sys.executable, "-m", "lectern", "teacher", "serve", *options]
    with subprocess.Popen(
        [*argv, "--port-file", str(port_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as command:
        try:
            assert wait_until(port_file.exists, DEADLINE_SECONDS)
            command.send_signal(signal.SIGTERM)
            said, _ = command.communicate(timeout=DEADLINE_SECONDS)
        finally:
            command.kill()

    assert command.returncode == 0
    assert port_file.read_text().strip() in said


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--engine", "fixture"],
        ["--model", "x", "--max-draws", "257"],
    ],
)
def test_a_server_that_cannot_start_says_so_in_one_line(options):
    argv = [sys.executable, "-m", "lectern", "teacher", "serve", "--bind", "127.0.0.1:0"]
    done = subprocess.run([*argv, *options], capture_output=True, text=True)

    assert done.returncode not in (0, 1), done
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lectern teacher: ")


@pytest.mark.long
def test_a_model_is_looked_for_under_the_models_root_of_the_home(tmp_path):
    (tmp_path / "models/tiny-teacher").mkdir(parents=True)
    (tmp_path / "models/tiny-teacher/config.json").write_text("no json")
    argv = [sys.executable, "-m", "lectern", "teacher", "serve", "--bind", "127.0.0.1:0"]
    said = {}
    for model in ("tiny-teacher", "tiny-techer"):
        options = ["--home", str(tmp_path), "--model", model]
        done = subprocess.run([*argv, *options], capture_output=True, text=True)
        said[model] = done.stderr.splitlines()[-1]

    assert f"{tmp_path}/models/tiny-teacher" in said["tiny-teacher"]
    assert said["tiny-techer"].startswith(
        "lectern teacher: --model tiny-techer is not a folder here, nor under the models root "
        f"({tmp_path}/models); did you mean tiny-teacher? And "
    )


def test_an_absent_teacher_is_reported_as_unavailable(lectern):
    ended = lectern("teacher", "health", "127.0.0.1:1", "--timeout-seconds", "1", "--json")

    assert ended.code == 7
    assert "Traceback" not in ended.err
