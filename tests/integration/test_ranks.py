"""A run on two ranks over gloo matches one process, even if a rank dies or the run is stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.numpy

from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import identity_of
from lectern_common.run.status import RunState
from lectern_common.spec.load import dump_spec, parse_spec
from teacher_server.engine.fixture import FixtureEngine
from tests.student_trainer.test_main import process
from tests.support.servers import ROOT, teacher_thread, wait_for
from tests.support.training.runs import (
    VOCAB_SIZE,
    Home,
    compared,
    events_of,
    lines_of,
    status_of,
    trained,
)

pytestmark = pytest.mark.long
TWO = {"kind": "cpu", "threads": 1, "count": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("tied", weights=False, tied=True, layers=2)
    return home


@pytest.fixture(scope="module")
def teacher() -> Iterator[dict[str, Any]]:
    with teacher_thread(FixtureEngine(VOCAB_SIZE)) as address:
        yield {"address": address, "representation": "top_k", "top_k": 8}


def agree(folder: RunFolder, other: RunFolder) -> None:
    """Requires that all losses and the exported weights agree up to the order of sums."""
    ours, theirs = compared(folder), compared(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    weights = safetensors.numpy.load_file(folder.export_path / "model.safetensors")
    expected_weights = safetensors.numpy.load_file(other.export_path / "model.safetensors")
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        assert tensor == pytest.approx(expected_weights[name], rel=1e-3, abs=1e-5), name


def ranks_of(trainer: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(trainer.pid).children()


def test_a_killed_rank_leaves_the_losses_those_of_one_process(
    home: Home, teacher: dict[str, Any]
) -> None:
    """S11: all ranks end and restart from the checkpoint; no process is left behind."""
    run: dict[str, Any] = {
        "student": {"config": "tied"},
        "objective": {"alpha": 0.3},
        "teacher": teacher,
        "schedule": {"steps": 60, "warmup_steps": 2},
        "evaluation": {"every_steps": 20},
        "checkpoint": {"every_steps": 5},
    }
    alone = home.run(**run)
    assert trained(home, alone) == 0
    folder = home.run(**run, device=TWO)
    with process(home, folder) as trainer:
        wait_for(lambda: folder.checkpoints_path.exists(), 300)
        doomed = ranks_of(trainer)
        status = status_of(folder)
        assert status.process == identity_of(trainer.pid)
        doomed[1].kill()
        assert trainer.wait(400) == 0, folder.log_path.read_text()[-3000:]
    assert not any(rank.is_running() for rank in doomed)
    (lost,) = events_of(folder, "rank_lost")
    assert lost["what"] == "rank 1 of 2 was killed by SIGKILL"
    assert status_of(folder).state is RunState.SUCCEEDED
    assert [line["data/tokens_seen"] for line in lines_of(folder)[1:]] == [
        line["data/tokens_seen"] for line in lines_of(alone)[1:]
    ]
    agree(folder, alone)


def test_a_run_goes_from_one_rank_to_two_and_back(home: Home) -> None:
    """S10: checkpoints hold whole tensors, so any number of ranks can resume from them."""
    run: dict[str, Any] = {
        "schedule": {"steps": 6, "warmup_steps": 1, "decay": "constant"},
        "student": {"config": "tied"},
        "evaluation": {"every_steps": 2},
    }
    whole = home.run(**run)
    assert trained(home, whole) == 0
    folder = home.run(**{**run, "schedule": {**run["schedule"], "steps": 2}})
    assert trained(home, folder) == 0

    longer(folder, steps=4, device=TWO)
    started = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
            *("-m", "student_trainer", str(folder.path), "--home", str(home.path), "--resume"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert started.returncode == 0, started.stderr[-3000:]
    assert [event["ranks"] for event in events_of(folder, "assembled")] == [1, 2]

    longer(folder, steps=6, device={"kind": "cpu", "threads": 1})
    assert trained(home, folder, resume=True) == 0
    agree(folder, whole)


def test_a_stop_ends_both_ranks_at_one_step_with_a_checkpoint(
    home: Home, teacher: dict[str, Any]
) -> None:
    folder = home.run(
        teacher=teacher,
        objective={"alpha": 0.3},
        schedule={"steps": 100_000},
        checkpoint={"every_steps": 100_000},
        device=TWO,
    )
    with process(home, folder) as trainer:
        wait_for(lambda: len(lines_of(folder)) > 3, 300)
        ranks = ranks_of(trainer)
        os.kill(trainer.pid, signal.SIGTERM)
        assert trainer.wait(400) == 0, folder.log_path.read_text()[-3000:]
    assert not any(rank.is_running() for rank in ranks)
    status = status_of(folder)
    assert status.state is RunState.STOPPED
    assert status.checkpoint_step == status.step > 0
    assert (folder.checkpoints_path / f"step-{status.step:08d}").is_dir()


def test_two_ranks_stop_after_the_same_checkpoint(home: Home, teacher: dict[str, Any]) -> None:
    folder = home.run(
        teacher=teacher,
        objective={"alpha": 0.3},
        schedule={"steps": 100_000},
        checkpoint={"every_steps": 7},
        device=TWO,
    )
    with process(home, folder) as trainer:
        wait_for(lambda: len(lines_of(folder)) > 3, 300)
        os.kill(trainer.pid, signal.SIGUSR1)
        assert trainer.wait(400) == 0, folder.log_path.read_text()[-3000:]
    status = status_of(folder)
    assert (status.state, status.step) == (RunState.STOPPED, status.checkpoint_step)
    assert status.step > 0 and status.step % 7 == 0
    assert lines_of(folder)[-1]["step"] == status.step


def longer(folder: RunFolder, steps: int, device: dict[str, Any]) -> None:
    spec = folder.read_spec().model_dump(mode="json")
    spec["schedule"]["steps"] = steps
    spec["device"] = device
    Path(folder.spec_path).write_text(dump_spec(parse_spec(spec)))
