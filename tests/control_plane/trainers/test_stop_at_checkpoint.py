"""Stops at the next checkpoint: asked for, told to the trainer, and kept through every kill."""

from typing import Any

import pytest

from control_plane.runs.record import StopAt, Wanted
from lectern_common.errors import Conflict
from lectern_common.run.status import RunState
from tests.control_plane.conftest import Bench


def asked(bench: Bench, run_id: str, at: StopAt = StopAt.CHECKPOINT) -> Any:
    return bench.commands.request_stop(run_id, at)


def ends_at_checkpoint(bench: Bench, run_id: str, step: int = 5) -> None:
    """Makes the trainer stop as a real one does."""
    process = bench.processes.last(run_id)
    process.say("stopped", step=step, checkpoint_step=step, message="stopped at the checkpoint")
    process.end(0)
    bench.tick(1)


def test_a_running_run_goes_on_until_its_checkpoint(bench):
    run = bench.started()
    after = asked(bench, run.id)
    assert (after.state, after.wanted, after.stop_at) == (
        RunState.RUNNING,
        Wanted.RUNNING,
        StopAt.CHECKPOINT,
    )
    bench.tick(1)
    process = bench.processes.last(run.id)
    assert (process.told_of_checkpoint, process.terminated) == (1, 0)
    process.heard_of_checkpoint = True
    process.say("running", step=3)
    bench.tick(100)
    assert (process.told_of_checkpoint, process.killed) == (1, False)
    ends_at_checkpoint(bench, run.id)
    ended = bench.runs.get(run.id)
    assert (ended.state, ended.wanted, ended.reason) == (
        RunState.STOPPED,
        Wanted.STOPPED,
        "stopped",
    )
    assert (ended.stop_at, ended.message) == (None, "stopped at the checkpoint")
    assert not ended.resumes_itself
    entry = bench.runs.history(run.id)[3]
    assert (entry["state"], entry["reason"]) == ("running", "stop_at_checkpoint")


def test_it_is_told_again_until_it_says_that_it_knows(bench):
    run = bench.started()
    asked(bench, run.id)
    process = bench.processes.last(run.id)
    for _ in range(12):
        process.say("running", step=2)
        bench.tick(1)
    assert 2 <= process.told_of_checkpoint <= 4
    process.heard_of_checkpoint = True
    process.say("running", step=2)
    before = process.told_of_checkpoint
    bench.tick(60)
    assert process.told_of_checkpoint == before


def test_asking_twice_is_asking_once(bench):
    run = bench.started()
    first, again = asked(bench, run.id), asked(bench, run.id)
    assert again.revision == first.revision
    reasons = [entry["reason"] for entry in bench.runs.history(run.id)]
    assert reasons.count("stop_at_checkpoint") == 1


def test_now_after_checkpoint_stops_now_and_checkpoint_after_now_changes_nothing(bench):
    run = bench.started()
    asked(bench, run.id)
    after = asked(bench, run.id, StopAt.NOW)
    assert (after.state, after.stop_at) == (RunState.STOPPING, None)
    assert asked(bench, run.id).revision == after.revision
    bench.tick(1)
    assert bench.processes.last(run.id).terminated == 1


def test_a_run_without_a_trainer_stops_at_once(bench):
    queued = bench.create()
    assert asked(bench, queued.id).state is RunState.STOPPED
    waiting = bench.started("waits", teacher={"address": "h:1"}, objective={"alpha": 0.5})
    bench.processes.last(waiting.id).end(-9)
    bench.tick(0)
    assert bench.runs.get(waiting.id).resumes_itself
    after = asked(bench, waiting.id)
    assert (after.state, after.wanted) == (RunState.INTERRUPTED, Wanted.STOPPED)
    assert not after.resumes_itself and after.stop_at is None


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_run_that_has_ended_refuses(bench, state):
    run = bench.started()
    bench.processes.last(run.id).say(state)
    bench.processes.last(run.id).end(0)
    bench.tick(1)
    with pytest.raises(Conflict, match="there is nothing to stop"):
        asked(bench, run.id)


def test_a_run_without_another_checkpoint_succeeds(bench):
    run = bench.started()
    asked(bench, run.id)
    bench.processes.last(run.id).say("succeeded", step=20, checkpoint_step=20)
    bench.processes.last(run.id).end(0)
    bench.tick(1)
    ended = bench.runs.get(run.id)
    assert (ended.state, ended.stop_at) == (RunState.SUCCEEDED, None)


def test_the_wish_outlives_the_control_plane(bench):
    """C1: the next control plane tells a trainer that was not told, and leaves one that was."""
    run = bench.started()
    asked(bench, run.id)
    bench.restart()  # before its trainer was told
    bench.tick(1)
    process = bench.processes.last(run.id)
    assert process.told_of_checkpoint == 1
    bench.restart()
    process.heard_of_checkpoint = True
    process.say("running", step=2)
    bench.tick(1)
    assert process.told_of_checkpoint == 1
    bench.restart()
    ends_at_checkpoint(bench, run.id)
    assert bench.runs.get(run.id).state is RunState.STOPPED


def test_the_wish_outlives_the_trainer(bench):
    """C2: the trainer that goes on is told as well."""
    run = bench.started()
    asked(bench, run.id)
    bench.tick(1)
    bench.processes.last(run.id).end(-9)
    bench.tick(1)
    assert bench.runs.get(run.id).stop_at is StopAt.CHECKPOINT
    bench.tick(5)
    bench.tick(1)
    second = bench.processes.last(run.id)
    assert second.alive and second.told_of_checkpoint == 0
    second.say("running", step=2)
    bench.tick(1)
    assert second.told_of_checkpoint == 1
    ends_at_checkpoint(bench, run.id)
    assert bench.runs.get(run.id).state is RunState.STOPPED


def test_a_trainer_that_has_not_said_anything_is_not_signalled(bench):
    """The signal would kill it: it does not know it yet."""
    run = bench.create()
    bench.tick()
    asked(bench, run.id)
    for _ in range(3):
        bench.tick(10)
    process = bench.processes.last(run.id)
    assert process.told_of_checkpoint == 0
    process.say("starting")
    bench.tick(1)
    assert process.told_of_checkpoint == 1
    ends_at_checkpoint(bench, run.id)
    assert bench.runs.get(run.id).state is RunState.STOPPED


def test_a_trainer_of_an_earlier_release_is_not_signalled(bench):
    run = bench.started()
    process = bench.processes.last(run.id)
    process.say("running", step=2, stops_at=None)
    bench.tick(1)
    with pytest.raises(Conflict, match="earlier release"):
        asked(bench, run.id)
    bench.commands.request_stop(run.id)
    assert bench.runs.get(run.id).state is RunState.STOPPING


def test_whoever_stops_it_meanwhile_fulfils_the_wish(bench):
    """A SIGTERM from outside, or of a control plane that ends with its trainers."""
    outside = bench.started("outside")
    asked(bench, outside.id)
    ends_at_checkpoint(bench, outside.id, 3)
    assert bench.runs.get(outside.id).state is RunState.STOPPED
    run = bench.started("drained")
    asked(bench, run.id)

    def obey(_seconds: float) -> None:
        process = bench.processes.last(run.id)
        process.say("stopped", step=4, checkpoint_step=4)
        process.end(0)

    bench.reconciler.stop_all(sleep=obey)
    assert bench.runs.get(run.id).state is RunState.STOPPED


def test_a_resume_clears_it(bench):
    run = bench.started()
    asked(bench, run.id)
    ends_at_checkpoint(bench, run.id)
    assert bench.commands.request_resume(run.id).stop_at is None
    bench.tick(1)
    process = bench.processes.last(run.id)
    process.say("running", step=6)
    bench.tick(1)
    assert process.alive and process.told_of_checkpoint == 0


def test_a_wish_ends_with_a_run_that_fails_or_waits_for_a_person(bench):
    for state, reason in (("failed", "diverged"), ("interrupted", "of_no_kind")):
        run = bench.started()
        asked(bench, run.id)
        bench.processes.last(run.id).say(state, reason=reason)
        bench.processes.last(run.id).end(1)
        bench.tick(1)
        assert (str(bench.runs.get(run.id).state), bench.runs.get(run.id).stop_at) == (state, None)
