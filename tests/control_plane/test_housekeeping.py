"""Logs have a limit, and what killed processes leave behind goes away."""

import os
import time
from pathlib import Path

import pytest

from control_plane.housekeeping import GONE_SECONDS, OLD_SECONDS, sweep
from lectern_common.logs import cap_log
from lectern_common.run.folder import RunFolder
from lectern_common.stages.folder import TaskFolder
from tests.control_plane.conftest import spec

GONE = 2**22 + 1  # above any pid


def test_a_log_keeps_its_first_and_last_lines_and_says_what_is_missing(tmp_path):
    log = tmp_path / "trainer.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(10_000):
            writer.write(b"line %05d\n" % number)
        cut = cap_log(log, 50_000, 1_000, 2_000)
        writer.write(b"after\n")
    lines = log.read_text().splitlines()
    assert lines[0] == "line 00000"
    assert lines[-2:] == ["line 09999", "after"]
    [note] = [line for line in lines if "cut out" in line]
    assert f"[{cut:,} bytes" in note
    assert log.stat().st_size < 4_000
    assert all(len(line) == 10 for line in lines if line.startswith("line"))


def test_a_log_of_one_endless_line_is_cut_too(tmp_path):
    log = tmp_path / "trainer.log"
    log.write_bytes(b"x" * 300_000)
    assert cap_log(log, 100_000, 1_000, 2_000) > 0
    assert log.stat().st_size < 4_000


def test_a_missing_or_small_log_is_left_alone(tmp_path):
    assert cap_log(tmp_path / "none") == 0
    (tmp_path / "log").write_text("small")
    assert cap_log(tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == "small"


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


@pytest.fixture
def runs_root(tmp_path: Path) -> Path:
    RunFolder.create(tmp_path, "run-a", spec())
    return tmp_path


def test_leftovers_of_killed_processes_are_swept(runs_root):
    (runs_root / ".new-abc").mkdir()
    (runs_root / ".new-abc" / "spec.yaml").write_text("half")
    left = {
        aged(runs_root / ".new-abc", OLD_SECONDS + 60),
        runs_root / f".lock-{GONE}-1",
        runs_root / "run-a" / f".status.json.{GONE}.tmp",
        runs_root / "run-a" / f".spec.yaml.{GONE}.tmp",
    }
    for path in left:
        if not path.exists():
            path.write_text("half")
            aged(path, GONE_SECONDS + 5)
    assert set(sweep(runs_root)) == left
    assert [path.name for path in runs_root.iterdir()] == ["run-a"]
    assert sweep(runs_root) == []


def test_what_may_be_in_use_or_is_not_ours_stays(runs_root):
    (runs_root / ".new-young").mkdir()
    kept = [
        # A pid of another container's namespace does not exist here.
        runs_root / f".lock-{GONE}-1",
        runs_root / "run-a" / f".spec.yaml.{GONE}.tmp",
        runs_root / "run-a" / f".status.json.{os.getpid()}.tmp",
        runs_root / "notes.tmp",
        runs_root / "run-a" / "mine.tmp",
        runs_root / ".hidden",
    ]
    for path in kept:
        path.write_text("kept")
    assert sweep(runs_root) == []


def test_a_run_that_is_trained_is_not_touched(runs_root):
    half = runs_root / "run-a" / f".status.json.{GONE}.tmp"
    half.write_text("half")
    aged(half, GONE_SECONDS + 5)
    with RunFolder(runs_root / "run-a").locked():
        assert sweep(runs_root) == []
    assert sweep(runs_root) == [half]


def test_leftovers_in_the_folders_of_tasks_are_swept_unless_one_is_worked_on(runs_root):
    run = RunFolder(runs_root / "run-a")
    of_run = TaskFolder.create(run.tasks_path / "evaluate-a", "evaluate", {})
    of_none = TaskFolder.create(runs_root / ".tasks" / "precompute-a", "precompute", {})
    half = run.tasks_path / ".new-evaluate-b"
    half.mkdir()
    left = {aged(half, OLD_SECONDS + 5)}
    for folder in (of_run, of_none):
        path = folder.path / f".status.json.{GONE}.tmp"
        path.touch()
        left.add(aged(path, GONE_SECONDS + 5))
    with of_run.locked():
        assert set(sweep(runs_root)) == left - {of_run.path / f".status.json.{GONE}.tmp"}
    assert sweep(runs_root) == [of_run.path / f".status.json.{GONE}.tmp"]
    assert of_run.read_asked() == ("evaluate", {})
