"""`lectern precompute` and its recorder, killed and stopped as real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from lectern_common.stages.folder import TaskFolder
from tests.support.models import write_tiny_model
from tests.support.servers import ROOT, TeacherProcess, teacher_process, wait_for
from tests.support.training.runs import VOCAB_SIZE, Home
from tests.support.training.shards import write_shards

pytestmark = pytest.mark.long

PATIENCE_SECONDS = 300.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    folder = tmp_path_factory.mktemp("served")
    model = write_tiny_model(folder / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)
    with teacher_process(folder, "--model", str(model), "--threads", "1") as teacher:
        yield teacher


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, 16_000)
    tokens[4_000:8_000] = tokens[:4_000]  # rows that are there twice
    write_shards(home.path / "data" / "long", tokens, vocab_size=VOCAB_SIZE)
    return home


def asked(home: Home, served: TeacherProcess, name: str) -> dict[str, Any]:
    spec = home.spec(
        "recording",
        data={"path": "long", "validation_fraction": 0.02},
        objective={"alpha": 0.2, "temperature": 2},
        teacher={"address": served.address, "representation": "sampled", "num_draws": 9},
    )
    return {
        "spec": spec.model_dump(mode="json"),
        "output": name,
        "options": {"eight_bit_hidden": False, "log_prob_bits": 8, "draw_sets": 2},
    }


def started(
    home: Home, served: TeacherProcess, name: str, *options: str
) -> "subprocess.Popen[str]":
    """Starts a task that records; the same one goes on until its record is made."""
    task = TaskFolder(home.path / "tasks" / name)
    if not task.task_path.exists():
        TaskFolder.create(task.path, "precompute", asked(home, served, name))
    task.status_path.unlink(missing_ok=True)
    words = [sys.executable, "-m", "student_trainer", "precompute", str(task.path)]
    return subprocess.Popen(
        [*words, "--home", str(home.path), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )


def bytes_of(record: Path) -> dict[str, bytes]:
    files = sorted(path for path in record.rglob("*") if path.is_file())
    return {str(path.relative_to(record)): path.read_bytes() for path in files}


def until_it_records(home: Home, child: "subprocess.Popen[str]", name: str) -> None:
    """Waits until the first row is on the disk, or the child has ended."""
    work = home.roots.data / f".{name}.recording" / "record" / "training-0"
    wait_for(lambda: work.exists() or child.poll() is not None, PATIENCE_SECONDS)


def killed(home: Home, child: "subprocess.Popen[str]", name: str, seconds: float) -> bool:
    """Kills the child so long after it has begun, or returns False: it had ended by itself."""
    with child:
        until_it_records(home, child, name)
        try:
            assert child.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            return True
        return False


@pytest.mark.parametrize("kills", [10])
def test_a_recorder_that_is_killed_at_any_instant_ends_with_the_same_bytes(home, served, kills):
    data = home.roots.data
    with started(home, served, "whole") as child:
        until_it_records(home, child, "whole")
        began = time.monotonic()
        assert child.wait(PATIENCE_SECONDS) == 0
        took = time.monotonic() - began
    expected = bytes_of(data / "whole")
    instants = np.random.default_rng(0)
    for number in range(kills):
        # The later part of the tries goes on with what the earlier ones left.
        child = started(home, served, "cut")
        was_killed = killed(home, child, "cut", took * instants.random())
        there = (data / "cut").exists()
        assert there or was_killed
        if there:
            assert bytes_of(data / "cut") == expected, number
            (data / "cut").rename(data / f"cut-{number}")
            shutil.rmtree(home.path / "tasks" / "cut")
    if (data / ".cut.recording").exists():
        with started(home, served, "cut") as child:
            child.communicate(timeout=PATIENCE_SECONDS)
        assert child.returncode == 0
        assert bytes_of(data / "cut") == expected
    assert not (data / ".cut.recording").exists()


@pytest.mark.parametrize("how", ["its input ends", "SIGTERM"])
def test_a_recorder_that_is_stopped_says_so_and_goes_on(home, served, how):
    with started(home, served, "cut", "--stop-with-parent") as child:
        until_it_records(home, child, "cut")
        if how == "SIGTERM":
            child.terminate()
        child.communicate(timeout=PATIENCE_SECONDS)  # closes its input
    assert child.returncode == 75
    assert not (home.roots.data / "cut").exists()
    with started(home, served, "cut") as child:
        child.communicate(timeout=PATIENCE_SECONDS)
    assert child.returncode == 0
    assert (home.roots.data / "cut" / "manifest.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 75)])
def test_the_command_takes_its_recorder_with_it(home, served, number, code):
    """Only the command gets the signal, as from `kill`: no terminal tells both."""
    path = home.path / "spec.yaml"
    path.write_text(yaml.safe_dump(asked(home, served, "answers")["spec"]))
    words = ["-m", "lectern", "precompute", path, "--output", "a/answers", "--home", home.path]
    work = home.roots.data / "a" / ".answers.recording"
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    ) as command:
        wait_for(lambda: (work / "record" / "training-0").exists(), PATIENCE_SECONDS)
        [recorder] = psutil.Process(command.pid).children()
        command.send_signal(number)
        assert command.wait(PATIENCE_SECONDS) == code
        recorder.wait(PATIENCE_SECONDS)
    assert not (home.roots.data / "a" / "answers").exists()
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0
    assert not work.exists()
