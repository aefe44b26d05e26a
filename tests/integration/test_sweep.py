"""A sweep with a real teacher and real trainers costs the teacher one pass over the rows.

Costs are the teacher's own counts (GetStats), never times.
"""

from pathlib import Path
from typing import Any

import pytest

from lectern.client import Client, SweepStatus
from lectern_common.run.status import RunState
from protos import teacher_pb2
from tests.support.asking import connect, stub
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process
from tests.support.stack import PATIENCE_SECONDS, control_plane
from tests.support.training.runs import Home

VOCAB_SIZE = 300
SEQ_LEN, STEPS, ROWS_A_STEP, TRAINING, VALIDATION = 16, 8, 4, 45, 11
# Every training row at most once, and the validation rows.
ONE_PASS = (STEPS * ROWS_A_STEP + VALIDATION) * SEQ_LEN


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.model("student", vocab_size=VOCAB_SIZE, tokenizer=True, weights=False)
    home.tokenized("rows")
    return home


def sweep_of(address: str, grid: dict[str, list[Any]]) -> dict[str, Any]:
    base = {
        "teacher": {"address": address},
        "student": {"config": "student"},
        "data": {"path": "rows", "seq_len": SEQ_LEN, "validation_fraction": 0.2},
        "objective": {"alpha": 0.3},
        "schedule": {"steps": STEPS, "warmup_steps": 1},
        "batch": {"sequences_per_step": ROWS_A_STEP},
        "evaluation": {"every_steps": 4},
        "device": {"kind": "cpu", "threads": 1},
    }
    return {"name": "rates", "base": base, "grid": grid}


def finished(plane: Client, body: dict[str, Any]) -> SweepStatus:
    made = plane.create_sweep(body)
    runs = plane.wait([run.run_id for run in made.runs], timeout_seconds=PATIENCE_SECONDS)
    assert {run.state for run in runs} == {RunState.SUCCEEDED}, [run.message for run in runs]
    return plane.sweep(made.id)


def stats_of(address: str) -> teacher_pb2.Stats:
    with connect(address) as channel:
        found: teacher_pb2.Stats = stub(channel).GetStats(
            teacher_pb2.GetStatsRequest(protocol_version=1)
        )
        return found


@pytest.mark.long
def test_four_learning_rates_cost_the_teacher_one_pass(home: Home) -> None:
    assert 900 // SEQ_LEN == TRAINING + VALIDATION and STEPS * ROWS_A_STEP <= TRAINING
    model = write_tiny_model(
        home.path / "teacher", seed=1, vocab_size=VOCAB_SIZE, hidden=32, tokenizer=True
    )
    options = ("--model", str(model), "--threads", "1")
    rates: dict[str, list[Any]] = {"optimizer.learning_rate": [0.03, 0.01, 0.003, 0.001]}
    with teacher_process(home.path, *options) as teacher:
        body = sweep_of(teacher.address, rates)
        with control_plane(home, "--max-running-runs", "4") as plane:
            estimate = plane.check_sweep(body)["estimate"]
            table = finished(plane, body)
            stats = stats_of(teacher.address)
            seeds: dict[str, list[Any]] = {"seed": [0, 1], "optimizer.learning_rate": [0.01, 0.003]}
            spread = finished(plane, {**sweep_of(teacher.address, seeds), "name": "seeds"})
    assert stats.scored_tokens == ONE_PASS
    assert table.teacher is not None
    computed, asked = table.teacher["computed_tokens"], table.teacher["asked_tokens"]
    assert table.teacher["counted_runs"] == 4
    assert abs(computed - ONE_PASS) <= 4  # each run's part is rounded
    # Four times the rows of the steps, the validation rows, and those of the probe before a run.
    assert asked >= 4 * ONE_PASS
    assert table.teacher["shared"] == pytest.approx(1 - computed / asked)
    assert estimate["teacher_tokens"] == 4 * estimate["teacher_tokens_shared"]
    best = min(table.runs, key=lambda run: run.best or 0.0)
    assert table.best == best.run_id
    assert [(group.n, group.spread) for group in table.groups] == [(1, None)] * 4

    assert [group.n for group in spread.groups] == [2, 2]
    assert all(group.spread and group.spread > 0 for group in spread.groups)
    assert spread.best_group == min((0, 1), key=lambda at: spread.groups[at].mean or 0.0)


@pytest.mark.long
def test_runs_that_do_not_fit_at_once_share_only_through_the_cache(home: Home) -> None:
    model = write_tiny_model(
        home.path / "teacher", seed=1, vocab_size=VOCAB_SIZE, hidden=32, tokenizer=True
    )
    options = ("--model", str(model), "--threads", "1", "--cache-bytes", "0")
    with teacher_process(home.path, *options) as teacher:
        body = sweep_of(teacher.address, {"optimizer.learning_rate": [0.01, 0.003]})
        with control_plane(home, "--max-running-runs", "1") as plane:
            [advice] = plane.check_sweep(body)["advice"]
            finished(plane, body)
            assert stats_of(teacher.address).scored_tokens >= 2 * ONE_PASS
    assert advice.startswith("at most 1 of the 2 runs")
    assert "--cache-bytes" in advice
