"""A run whose teacher outlasts its outage budget goes on by itself, with real processes."""

from pathlib import Path
from typing import Any

import pytest

from lectern.client import Client, RunStatus
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process, wait_for
from tests.support.stack import PATIENCE_SECONDS, control_plane, folder_of, made_steps
from tests.support.training.runs import VOCAB_SIZE, Home, compared, trained

STEPS = 400


def options_of(home: Home, name: str, seed: int) -> tuple[str, ...]:
    """Writes a teacher's model; returns the options that serve it."""
    model = write_tiny_model(home.path / name, vocab_size=VOCAB_SIZE, hidden=16, seed=seed)
    return ("--model", str(model), "--threads", "1")


def waiting(plane: Client, run_id: str) -> RunStatus | None:
    """Returns the run once it has given its teacher up; None while it trains."""
    run = plane.get_run(run_id)
    assert run.state not in (RunState.SUCCEEDED, RunState.FAILED), run.message
    return run if run.state is RunState.INTERRUPTED else None


def waits_for(plane: Client, run_id: str) -> str:
    run = waiting(plane, run_id)
    assert run is not None, "it went on"
    return str(run.json["resumes_when"])


@pytest.mark.long
def test_a_run_goes_on_when_its_teacher_is_back_and_not_with_another(tmp_path: Path) -> None:
    home = Home(tmp_path)
    right, wrong = options_of(home, "teacher", 1), options_of(home, "another", 2)
    sections: dict[str, Any] = {
        "objective": {"alpha": 0.25},
        "schedule": {"steps": STEPS, "warmup_steps": 5},
        "evaluation": {"every_steps": 100},
        "checkpoint": {"every_steps": 1000},
    }
    with control_plane(home) as plane:
        with teacher_process(tmp_path, *right) as first:
            teaching = {"address": first.address, "outage_budget_seconds": 2}
            spec = home.spec("taught", teacher=teaching, **sections)
            undisturbed = RunFolder.create(home.roots.runs, "undisturbed", spec)
            assert trained(home, undisturbed) == 0
            run_id = plane.create_run(spec).id
            folder = folder_of(home, run_id)
            wait_for(lambda: made_steps(folder) >= 3, PATIENCE_SECONDS)
            first.kill()
        wait_for(lambda: waiting(plane, run_id), PATIENCE_SECONDS)
        run = plane.get_run(run_id)
        assert run.reason == "teacher_unavailable"
        assert run.json["resumes_when"] == f"the teacher at {first.address} answers again"
        assert run.json["heals"] == 0
        with teacher_process(tmp_path, *wrong, "--bind", first.address):
            wait_for(lambda: "now it is" in waits_for(plane, run_id), PATIENCE_SECONDS)
            assert plane.get_run(run_id).json["attempt"] == 1
        with teacher_process(tmp_path, *right, "--bind", first.address):
            (run,) = plane.wait([run_id], timeout_seconds=PATIENCE_SECONDS)
    assert run.state is RunState.SUCCEEDED, run.message
    assert (run.json["heals"], run.json["attempt"]) == (1, 2)
    assert compared(folder) == compared(undisturbed)
    states = [line.get("state") for line in read_json_lines(folder.events_path)]
    assert "interrupted" in states
