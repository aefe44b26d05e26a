"""The control plane looks after runs and tasks only while there are some to look after."""

import pytest
import sqlalchemy as sa

from control_plane.runs.record import ACTIVE
from control_plane.runs.store import runs
from lectern_common.run.status import RunState
from tests.control_plane.conftest import Bench


def with_row(bench: Bench, run_id: str, **values) -> None:
    with bench.store.writing() as connection:
        connection.execute(sa.update(runs).where(runs.c.id == run_id).values(**values))


def test_without_runs_nothing_is_looked_after(tmp_path):
    assert Bench.of(tmp_path).runs.at_rest()


@pytest.mark.parametrize("state", list(RunState))
def test_only_runs_that_have_ended_are_at_rest(tmp_path, state):
    bench = Bench.of(tmp_path)
    run = bench.create("a")
    with_row(bench, run.id, state=state, resume_at=None, waits_for=None)
    assert bench.runs.at_rest() == (state not in {*ACTIVE, RunState.QUEUED})


@pytest.mark.parametrize("why", [{"resume_at": 1.0}, {"waits_for": "the teacher answers"}])
def test_an_interrupted_run_that_goes_on_by_itself_is_not_at_rest(tmp_path, why):
    bench = Bench.of(tmp_path)
    run = bench.create("a")
    nothing = {"resume_at": None, "waits_for": None}
    with_row(bench, run.id, state=RunState.INTERRUPTED, **{**nothing, **why})
    assert not bench.runs.at_rest()
    with_row(bench, run.id, state=RunState.SUCCEEDED)
    assert bench.runs.at_rest()
