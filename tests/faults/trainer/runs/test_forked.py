"""Forked processes are told apart, signalled and judged like any others."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.processes import ROOT, environment
from faults.trainer.runs.forked import ForkServer
from tests.support.servers import wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    forks = ForkServer(tmp_path / "forked", environment(), ROOT, modules=())
    yield forks
    forks.close()


def words(*options: str) -> list[str]:
    return ["lectern", "--", *options]


def test_a_forked_program_is_the_program_with_its_own_log_and_status(
    server: ForkServer, tmp_path: Path
) -> None:
    right = server.start(words("--help"), tmp_path / "right")
    wrong = server.start(words("nonsense"), tmp_path / "wrong")
    assert (right.wait(60), wrong.wait(60)) == (0, 2)
    assert "data" in (tmp_path / "right").read_text()
    assert "nonsense" in (tmp_path / "wrong").read_text()


def test_a_killed_process_reports_its_signal_and_others_continue(
    server: ForkServer, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    waiting = words("teacher", "serve", "--engine", "fixture", "--vocab-size", "97")
    processes = [server.start(waiting, tmp_path / str(number)) for number in range(2)]
    wait_for(lambda: all((tmp_path / str(number)).exists() for number in range(2)))
    assert [process.poll() for process in processes] == [None, None]
    processes[0].kill()
    assert processes[0].wait(60) == -signal.SIGKILL
    processes[0].send_signal(signal.SIGKILL)  # reaches nobody
    with pytest.raises(subprocess.TimeoutExpired):
        processes[1].wait(0.01)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[1].wait(60) == -signal.SIGKILL


def test_a_server_that_does_not_start_says_so(tmp_path: Path) -> None:
    broken = ForkServer(tmp_path / "forked", environment(), ROOT, modules=("no_such_module",))
    with pytest.raises(RuntimeError, match="did not start"):
        broken.start(words("--help"), tmp_path / "log")
