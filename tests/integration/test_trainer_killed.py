"""kill -9 of trainers under a real control plane does not change their results."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lectern.client import Client
from lectern.commands.runs.steering import resume
from lectern_common.errors import Conflict
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState, Status
from lectern_common.spec.run_spec import RunSpec
from tests.support.servers import teacher_process, wait_for
from tests.support.stack import (
    PATIENCE_SECONDS,
    control_plane,
    final_weights,
    folder_of,
    made_steps,
    random_source,
)
from tests.support.training.runs import VOCAB_SIZE, Home, compared, lines_of, trained

STEPS = 250
KILLS_OF_EACH = 5


@pytest.mark.long
def test_runs_killed_ten_times_equal_undisturbed_runs(tmp_path: Path) -> None:
    """S1: one run on cross entropy, one distilled; each killed five times, at random steps."""
    home, draw = Home(tmp_path), random_source()
    fixture = ("--engine", "fixture", "--vocab-size", str(VOCAB_SIZE))
    with teacher_process(tmp_path, *fixture) as teacher:
        specs = specs_of(home, teacher.address)
        with control_plane(home, "--max-running-runs", "2") as plane:
            ids = [plane.create_run(spec).id for spec in specs]
            victims = [Victim(plane, run_id, folder_of(home, run_id), draw) for run_id in ids]
            lives = [victim.life() for victim in victims]
            wait_for(lambda: not sum(next(life, 0) for life in lives), PATIENCE_SECONDS)
            ended = plane.wait(ids, timeout_seconds=PATIENCE_SECONDS)
        for spec, run, victim in zip(specs, ended, victims, strict=True):
            assert run.state is RunState.SUCCEEDED, run.message
            assert run.json["attempt"] == KILLS_OF_EACH + 1
            assert [line["step"] for line in lines_of(victim.folder)] == list(range(STEPS + 1))
            undisturbed = RunFolder.create(home.roots.runs, f"undisturbed-{spec.name}", spec)
            assert trained(home, undisturbed) == 0
            assert compared(victim.folder) == compared(undisturbed)
            assert final_weights(victim.folder) == final_weights(undisturbed)
    assert sum(victim.resumed_by_command for victim in victims) > 0


def specs_of(home: Home, teacher_address: str) -> list[RunSpec]:
    common = {
        "schedule": {"steps": STEPS, "warmup_steps": 5},
        "evaluation": {"every_steps": 25},
        "checkpoint": {"every_steps": 7},
    }
    teacher = {"address": teacher_address, "representation": "dense"}
    return [
        home.spec("cross-entropy", **common),
        home.spec("distilled", teacher=teacher, objective={"alpha": 0.5}, **common),
    ]


class Victim:
    """A run whose trainer is killed again and again."""

    def __init__(self, plane: Client, run_id: str, folder: RunFolder, draw: random.Random) -> None:
        self.folder = folder
        self.resumed_by_command = 0
        self._plane = plane
        self._run_id = run_id
        self._draw = draw

    def life(self) -> Iterator[int]:
        """Kills the trainer again and again; yields 1 while it waits, ends after the last kill.

        Every second time, the user's command resumes the run; otherwise the control plane does.
        """
        pid: int | None = None
        for attempt in range(1, KILLS_OF_EACH + 1):
            while (status := self._of_new_trainer(pid)) is None:
                yield 1
            pid, target = status.pid, (status.checkpoint_step or 0) + self._draw.randint(0, 25)
            while made_steps(self.folder) < target:
                yield 1
            os.kill(pid, signal.SIGKILL)
            print(f"{self._run_id}: killed at step {made_steps(self.folder)}")
            while not self._has_noticed(attempt):
                yield 1
            if attempt % 2:
                self._resume()

    def _of_new_trainer(self, old_pid: int | None) -> Status | None:
        """Returns the status of a new trainer once it is training, else None."""
        run, status = self._plane.get_run(self._run_id), self.folder.read_status()
        assert run.state not in (RunState.SUCCEEDED, RunState.FAILED), run.message
        if status is None or status.state is not RunState.RUNNING:
            return None
        return status if status.pid != old_pid else None

    def _has_noticed(self, attempt: int) -> bool:
        run = self._plane.get_run(self._run_id)
        return run.state is RunState.INTERRUPTED or run.json["attempt"] > attempt

    def _resume(self) -> None:
        """Calls `lectern runs resume`; does nothing if the run has just resumed by itself."""
        with contextlib.suppress(Conflict):
            resume([self._run_id], url=self._plane.url)
            self.resumed_by_command += 1
