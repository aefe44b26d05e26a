"""Forks and stops at a checkpoint with real trainers, of a run that trains."""

import os
import signal
from pathlib import Path

import pytest

from lectern.client import Client
from lectern_common.run.folder import checkpoint_steps
from lectern_common.run.status import RunState
from tests.support.servers import wait_for
from tests.support.stack import PATIENCE_SECONDS, control_plane, final_weights, folder_of
from tests.support.training.runs import Home, compared, lines_of, status_of

pytestmark = pytest.mark.long
STEPS = 120


def test_a_fork_of_a_training_run_and_that_run_end_with_the_same_bytes(tmp_path: Path) -> None:
    """The source stops at a checkpoint, its trainer is killed before, and it is deleted last."""
    home = Home(tmp_path)
    spec = home.spec(
        "source",
        schedule={"steps": STEPS, "warmup_steps": 5},
        evaluation={"every_steps": 20},
        checkpoint={"every_steps": 10, "keep_last": 2},
    )
    with control_plane(home, "--max-running-runs", "2") as plane:
        source = plane.create_run(spec).id
        folder = folder_of(home, source)
        wait_for(lambda: checkpoint_steps(folder.checkpoints_path), PATIENCE_SECONDS)
        fork = plane.fork_run(source)
        step = fork.json["forked_from"]["step"]
        assert fork.json["forked_from"] == {"run_id": source, "step": step} and step % 10 == 0
        _stops_at_checkpoint(plane, home, source)
        (ended,) = plane.wait([fork.id], timeout_seconds=PATIENCE_SECONDS)
        assert ended.state is RunState.SUCCEEDED, ended.message
        if plane.get_run(source).state is RunState.STOPPED:
            plane.resume_run(source)
        (ended,) = plane.wait([source], timeout_seconds=PATIENCE_SECONDS)
        assert ended.state is RunState.SUCCEEDED, ended.message
        weights = final_weights(folder)
        lines = [line for line in compared(folder) if line["step"] > step]
        plane.delete_run(source)
    forked = folder_of(home, fork.id)
    assert final_weights(forked) == weights
    assert [line["step"] for line in lines_of(forked)] == list(range(step, STEPS + 1))
    assert [line for line in compared(forked) if line["step"] > step] == lines


def _stops_at_checkpoint(plane: Client, home: Home, run_id: str) -> None:
    """Asks for the stop, and kills the trainer that was told: the next one is told as well."""
    folder = folder_of(home, run_id)
    first = plane.stop_run(run_id, "checkpoint")
    assert first.json["stop_at"] in ("checkpoint", None)
    os.kill(status_of(folder).pid, signal.SIGKILL)
    (run,) = plane.wait([run_id], timeout_seconds=PATIENCE_SECONDS)
    assert run.state in (RunState.STOPPED, RunState.SUCCEEDED), run.message
    if run.state is RunState.STOPPED:
        assert run.step == run.json["checkpoint_step"] and run.step % 10 == 0
        assert run.json["stop_at"] is None
