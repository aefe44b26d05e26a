"""Pruned runs: only those that rest and meet every criterion; what that frees is measured."""

import os

import pytest

from control_plane.runs.keeping import pruning
from control_plane.runs.keeping.deletion import delete_run
from control_plane.runs.keeping.pruning import Criteria, prune
from control_plane.runs.record import Run
from control_plane.runs.search import Search
from lectern_common.errors import InvalidRequest
from lectern_common.run.folder import RunFolder
from tests.control_plane.api.test_routes import problem_of, started
from tests.control_plane.api.test_routes import stopped as stopped_over_rest
from tests.control_plane.runs.keeping.test_sizes import measured

DAY = 86400


def ended(bench, state: str, name: str = "steady", reason: str | None = None, **sections) -> str:
    """Returns the id of a run that has come to rest in a state."""
    run: Run = bench.started(name, **sections)
    if state == "stopped":
        bench.commands.request_stop(run.id)
    bench.processes.last(run.id).say(state, step=4, checkpoint_step=4, reason=reason)
    bench.processes.last(run.id).end(0)
    bench.tick()
    assert bench.runs.get(run.id).state == state
    return run.id


def pruned(bench, **criteria):
    return prune(
        bench.runs, bench.commands, bench.roots.runs, Criteria(**criteria), bench.clock.now
    )


def ids(found) -> list[str]:
    return [run.id for run, _ in found.runs]


def left(bench) -> set[str]:
    return {run.id for run in bench.runs.search(Search(), None, 99).runs}


@pytest.mark.parametrize(
    "given", [{}, {"states": []}, {"dry_run": False}, {"states": [], "group": None}]
)
def test_without_a_criterion_nothing_is_pruned(bench, given):
    run_id = ended(bench, "failed")
    with pytest.raises(InvalidRequest, match="at least one of states, older_than_days"):
        pruned(bench, **given)
    assert left(bench) == {run_id}


def test_every_criterion_must_be_met(bench):
    old_failed = ended(bench, "failed", group="a")
    old_stopped = ended(bench, "stopped", group="a")
    bench.clock.advance(10 * DAY)
    young = ended(bench, "failed", group="a")
    other = ended(bench, "failed", group="b")
    assert ids(pruned(bench, states=["failed"])) == [old_failed, young, other]
    assert ids(pruned(bench, older_than_days=9)) == [old_failed, old_stopped]
    assert ids(pruned(bench, older_than_days=10.5)) == []
    assert ids(pruned(bench, group="a", states=["failed"], older_than_days=1)) == [old_failed]
    assert ids(pruned(bench, group="none")) == []
    assert left(bench) == {old_failed, old_stopped, young, other}


def test_the_newest_are_kept_whatever_their_age(bench):
    first, second, third = (ended(bench, "succeeded", group="g") for _ in range(3))
    elsewhere = ended(bench, "succeeded")
    bench.clock.advance(DAY)
    assert ids(pruned(bench, keep_newest=1, group="g")) == [first, second]
    assert ids(pruned(bench, keep_newest=2, older_than_days=0.5, group="g")) == [first]
    assert ids(pruned(bench, keep_newest=9)) == []
    assert ids(pruned(bench, keep_newest=1)) == [first, second, third]
    assert elsewhere in left(bench)


def test_active_queued_and_self_resuming_runs_are_never_pruned(bench):
    gone = ended(bench, "interrupted")
    waits = ended(bench, "interrupted", reason="disk_full")
    crashed, active = bench.started(), bench.started()
    bench.processes.last(crashed.id).end(-9)
    bench.tick()
    assert bench.runs.get(crashed.id).resumes_itself and bench.runs.get(waits).resumes_itself
    queued = bench.create()
    found = pruned(bench, states=["interrupted", "stopped", "failed", "succeeded"], dry_run=False)
    assert (ids(found), found.deleted) == ([gone], 1)
    assert left(bench) == {waits, crashed.id, active.id, queued.id}


def test_a_run_that_became_active_meanwhile_is_left_out_and_named(bench, monkeypatch):
    resumed, trained, gone = (ended(bench, "stopped") for _ in range(3))
    chosen = Criteria.chosen

    def and_then(self, runs, now):
        found = chosen(self, runs, now)
        bench.commands.request_resume(resumed)
        return found

    monkeypatch.setattr(pruning.Criteria, "chosen", and_then)
    with RunFolder(bench.roots.runs / trained).locked():
        found = pruned(bench, states=["stopped"], dry_run=False)
    assert (ids(found), found.deleted) == ([gone], 1)
    assert [run_id for run_id, _ in found.left_out] == [resumed, trained]
    assert "is queued; stop it first" in found.left_out[0][1]
    assert "trained by another process" in found.left_out[1][1]
    assert left(bench) == {resumed, trained}
    assert (bench.roots.runs / trained / "spec.yaml").exists()


def test_what_is_freed_is_what_no_other_run_holds(bench):
    first, second = ended(bench, "stopped", "one"), ended(bench, "stopped", "two", group="g")
    kept = bench.roots.runs / first / "checkpoints" / "step-00000004" / "model.safetensors"
    kept.write_bytes(b"x" * 65536)
    shared = bench.roots.runs / second / "checkpoints" / "step-00000004" / kept.name
    shared.unlink()
    os.link(kept, shared)
    whole = measured(bench.roots.runs / second)
    plan = pruned(bench, group="g")
    assert plan.runs[0][1] == whole and plan.freed == whole - 65536
    assert plan.deleted == 0
    both = pruned(bench, states=["stopped"])
    assert both.freed == plan.freed + measured(bench.roots.runs / first)
    done = pruned(bench, group="g", dry_run=False)
    assert (done.freed, done.deleted) == (plan.freed, 1)
    assert kept.stat().st_nlink == 1


def test_prune_over_rest_lists_first_and_deletes_when_told(client, processes):
    run = stopped_over_rest(client, processes)
    going = started(client, processes, name="going")
    plan = client.post("/runs/prune", json={"states": ["stopped"]}).json()
    assert [one["run_id"] for one in plan["runs"]] == [run["id"]]
    assert plan["deleted"] == 0 and plan["left_out"] == [] and plan["bytes"] > 0
    assert client.get(f"/runs/{run['id']}").status_code == 200
    done = client.post("/runs/prune", json={"states": ["stopped"], "dry_run": False}).json()
    assert (done["deleted"], done["runs"]) == (1, plan["runs"])
    problem_of(client.get(f"/runs/{run['id']}"), 404, "not_found")
    assert client.get(f"/runs/{going['id']}").status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"states": ["running"]}, "states.0"),
        ({"states": "failed"}, "states"),
        ({"older_than_days": 0}, "older_than_days"),
        ({"older_than_days": "30"}, "older_than_days"),
        ({"keep_newest": 0}, "keep_newest"),
        ({"keep_newest": True}, "keep_newest"),
        ({"group": 3}, "group"),
        ({"states": ["failed"], "dry_run": "no"}, "dry_run"),
        ({"states": ["failed"], "all": True}, "all"),
    ],
)
def test_wrong_criteria_are_refused_by_field(client, body, field):
    found = problem_of(client.post("/runs/prune", json=body), 422, "invalid_request")
    assert [error["field"] for error in found["errors"]] == ([] if field is None else [field])


def test_a_run_that_was_resumed_and_stopped_while_others_were_deleted_stays(bench, monkeypatch):
    first, second = ended(bench, "stopped"), ended(bench, "stopped")
    bench.clock.advance(40 * DAY)

    def slowly(commands, folder, since):
        if folder.run_id == first:  # so long that somebody resumes the other one meanwhile
            commands.request_resume(second)
            bench.tick(1)
            bench.processes.last(second).say("running", step=6)
            bench.tick(1)
            commands.request_stop(second)
            bench.processes.last(second).say("stopped", step=9, checkpoint_step=9)
            bench.processes.last(second).end(0)
            bench.tick(1)
            assert bench.runs.get(second).state == "stopped"
        return delete_run(commands, folder, since)

    monkeypatch.setattr(pruning, "delete_run", slowly)
    found = pruned(bench, older_than_days=30, dry_run=False)
    assert (ids(found), found.deleted, left(bench)) == ([first], 1, {second})
    [(run_id, why)] = found.left_out
    assert run_id == second
    assert "resumed meanwhile" in why
    assert RunFolder(bench.roots.runs / second).path.is_dir()
