"""kill -9 of an on-policy trainer while it writes, is scored or learns changes no byte."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder, checkpoint_steps
from tests.support.servers import ROOT, teacher_process
from tests.support.training.runs import Home, compared, lines_of, status_of, trained

pytestmark = pytest.mark.long

STEPS = 12
# Rollouts, requests or micro-batches of rollouts until each kill; a step has four or two of them.
KILLS = {"writing": (6, 17, 3), "scoring": (9, 2, 14), "learning": (3, 8, 5)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("teacher", hidden=32, layers=2, seed=7, spread=0.3)
    home.model("init", seed=3, eos_token_id=5)
    return home


@pytest.fixture(scope="module")
def teacher(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, model = tmp_path_factory.mktemp("teacher"), str(home.path / "models" / "teacher")
    options = ("--model", model, "--dtype", "float32", "--device", "cpu")
    with teacher_process(folder, *options) as process:
        yield process.address


def run_of(home: Home, address: str, rollout: dict[str, Any], alpha: float) -> RunFolder:
    return home.run(
        student={"init": "init", "config": None},
        teacher={"address": address},
        objective={"alpha": alpha, "temperature": 1.0, "divergence": "reverse_kl"},
        rollout={"prompt_tokens": 4, "max_new_tokens": 6, **rollout},
        schedule={"steps": STEPS, "warmup_steps": 1},
        batch={"sequences_per_step": 4, "micro_batch_sequences": 2},
    )


def ended_by(home: Home, folder: RunFolder, phase: str, count: int) -> int:
    """Runs a trainer that kills itself; returns its exit status."""
    command = [sys.executable, "-m", "tests.support.training.killed_trainer", phase, str(count)]
    resume = ["--resume"] if folder.status_path.exists() else []
    with folder.log_path.open("ab") as log:
        done = subprocess.run(
            [*command, str(folder.path), "--home", str(home.path), *resume],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            timeout=400,
        )
    return done.returncode


def weights(folder: RunFolder) -> bytes:
    return Path(folder.export_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("phase", KILLS)
@pytest.mark.parametrize(
    ("rollout", "alpha"),
    [({"fraction": 1}, 0), ({"fraction": 0.7, "stale_steps": 1}, 0.3)],
    ids=["fresh", "stale"],
)
def test_a_killed_run_is_the_undisturbed_run(
    home: Home, teacher: str, phase: str, rollout: dict[str, Any], alpha: float
) -> None:
    whole = run_of(home, teacher, rollout, alpha)
    assert trained(home, whole) == 0, status_of(whole).message
    folder = run_of(home, teacher, rollout, alpha)
    for count in KILLS[phase]:
        assert ended_by(home, folder, phase, count) == -9, folder.log_path.read_text()[-3000:]
        assert max(checkpoint_steps(folder.checkpoints_path), default=0) < STEPS
    assert ended_by(home, folder, phase, 0) == 0, folder.log_path.read_text()[-3000:]
    assert weights(folder) == weights(whole)
    assert compared(folder) == compared(whole)
    assert read_json_lines(folder.rollouts_path) == read_json_lines(whole.rollouts_path)
    assert [line["step"] for line in lines_of(folder)] == list(range(STEPS + 1))
