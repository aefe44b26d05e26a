"""Tasks of a real run, with the real stages, through a real control plane."""

import json
from pathlib import Path

import pytest

from lectern.client import Client, TaskStatus
from lectern_common.run.status import RunState
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process, wait_for
from tests.support.stack import PATIENCE_SECONDS, control_plane, folder_of
from tests.support.training.runs import VOCAB_SIZE, Home

pytestmark = pytest.mark.long


def done(plane: Client, task: TaskStatus) -> TaskStatus:
    """Returns a task that has succeeded."""
    found = plane.wait_for_task(task.id, poll_seconds=0.2)
    assert found.state is RunState.SUCCEEDED, (found.message, plane.task_log(task.id))
    return found


def test_a_trained_run_is_evaluated_and_exported(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with control_plane(home) as plane:
        run_id = plane.create_run(home.spec("student")).id
        [run] = plane.wait([run_id])
        assert run.state is RunState.SUCCEEDED, run.message
        before, after = (
            plane.evaluate_run(run_id, {"suites": ["perplexity"], **weights})
            for weights in ({"weights": "initial"}, {})
        )
        losses = []
        for task in (before, after):
            result = done(plane, task).result
            assert result is not None
            losses.append(result["suites"]["perplexity"]["loss"])
        assert losses[1] < losses[0]
        assert losses[1] == pytest.approx(run.latest["loss/val"], rel=1e-3)

        exported = done(plane, plane.export_run(run_id))
        kept = folder_of(home, run_id).path / "tasks" / exported.id / "result.json"
        assert json.loads(kept.read_bytes()) == exported.result
        wrong = plane.wait_for_task(
            plane.evaluate_run(
                run_id,
                {
                    "suites": ["perplexity"],
                    "text": {"data": "none"},
                },
            ).id
        )
        assert wrong.state is RunState.FAILED
        assert "none" in (wrong.message or "")


def test_a_teacher_is_recorded_over_rest_and_a_run_learns_from_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    model = write_tiny_model(tmp_path / "teacher", vocab_size=VOCAB_SIZE, hidden=16, seed=1)
    with control_plane(home) as plane:
        with teacher_process(tmp_path, "--model", str(model), "--threads", "1") as teacher:
            spec = home.spec(
                "online", objective={"alpha": 0.2}, teacher={"address": teacher.address}
            )
            result = done(plane, plane.record_teacher(spec, "answers")).result
            assert result is not None
        assert [one["path"] for one in plane._transport.json("GET", "/records")["records"]] == [
            "answers"
        ]
        taught = home.spec("offline", objective={"alpha": 0.2}, teacher={"record": "answers"})
        run_id = plane.create_run(taught).id
        wait_for(lambda: plane.get_run(run_id).rests, PATIENCE_SECONDS)
        assert plane.get_run(run_id).state is RunState.SUCCEEDED
