"""The life of a run: what may follow what, and asking twice."""

from contextlib import ExitStack

import pytest

from control_plane.runs.commands import RunCommands
from control_plane.runs.decisions import MAX_RESTARTS
from control_plane.runs.record import ACTIVE, NEXT, Change, Wanted
from control_plane.runs.search import Search
from lectern_common.errors import Conflict, InvalidRequest, InvalidSpec, NotFound, Overloaded
from lectern_common.run.status import RESTING, RESUMABLE, RunState, Status
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import NAME_PATTERN
from tests.control_plane.conftest import spec, spec_body

POOL_CONNECTIONS = 15  # of SQLAlchemy: 5 that are kept, and 10 more


def status(state: RunState, **said) -> Status:
    return Status("x", state, 1.0, 2.0, 3, 4.0, **said)


def in_state(bench, state: RunState):
    """Returns a run that came to this state by allowed steps."""
    run = bench.create()
    if state is RunState.QUEUED:
        return run
    bench.commands.claim(run.id, ("cpu",))
    if state in (RunState.RUNNING, RunState.WAITING_FOR_TEACHER):
        return bench.commands.saw(run.id, status(state))
    if state in (RunState.STOPPING, RunState.STOPPED):
        run = bench.commands.request_stop(run.id)
        return run if state is run.state else bench.commands.ended(run.id, state, "stopped", None)
    if state in RESTING:
        return bench.commands.ended(run.id, state, None, None)
    return bench.runs.get(run.id)


def test_every_state_has_successors_and_a_run_that_rests_may_be_queued():
    assert set(NEXT) == set(RunState)
    assert all(NEXT.values())
    assert {state for state in RunState if RunState.QUEUED in NEXT[state]} == RESTING
    assert {RunState.SUCCEEDED} == RESTING - RESUMABLE
    assert ACTIVE.isdisjoint(RESTING)


@pytest.mark.parametrize("state", RunState)
@pytest.mark.parametrize("target", RunState)
def test_a_state_that_may_not_follow_is_refused_and_changes_nothing(bench, state, target):
    run = in_state(bench, state)
    assert run.state is state
    if target is state or target in NEXT[state]:
        assert bench.commands._change(run.id, lambda _: Change(target)).state is target
    else:
        with pytest.raises(ValueError, match=f"is {state}, which cannot become {target}"):
            bench.commands._change(run.id, lambda _: Change(target))
        assert bench.runs.get(run.id) == run


def test_a_new_run_is_queued_under_an_id_of_its_name(bench):
    import re

    run = bench.create("a" * 63)
    assert re.match(NAME_PATTERN, run.id)
    assert run.state is RunState.QUEUED
    assert run.wanted is Wanted.RUNNING
    assert run.run_spec == spec("a" * 63)
    assert bench.states(run.id) == ["queued"]


def test_an_id_that_a_folder_has_is_not_given(bench):
    taken = []

    def id_taken(run_id: str) -> bool:
        taken.append(run_id)
        return len(taken) < 3

    run = bench.commands.create(spec(), id_taken=id_taken)
    assert run.id == taken[2]


def test_one_key_makes_one_run(bench):
    first = bench.commands.create(spec(), "key", "body")
    assert bench.commands.create(spec(), "key", "body") == first
    assert bench.runs.made_by_key("key", "body") == first
    assert bench.runs.made_by_key("other", "body") is None
    assert len(bench.runs.search(Search(), None, 10).runs) == 1
    with pytest.raises(InvalidRequest, match=f"made run {first.id} from another body"):
        bench.commands.create(spec(), "key", "other body")


def test_stopping_a_queued_run_stops_it_at_once(bench):
    run = bench.create()
    stopped = bench.commands.request_stop(run.id)
    assert (stopped.state, stopped.wanted) == (RunState.STOPPED, Wanted.STOPPED)


@pytest.mark.parametrize("state", sorted(ACTIVE - {RunState.STOPPING}))
def test_stopping_an_active_run_twice_is_the_same_as_once(bench, state):
    run = in_state(bench, state)
    stopping = bench.commands.request_stop(run.id)
    assert (stopping.state, stopping.reason) == (RunState.STOPPING, "stopped")
    assert bench.commands.request_stop(run.id) == stopping


def test_stopping_a_stopped_run_changes_nothing(bench):
    run = in_state(bench, RunState.STOPPED)
    assert bench.commands.request_stop(run.id) == run


def test_stopping_an_interrupted_run_keeps_it_from_going_on_by_itself(bench):
    run = in_state(bench, RunState.STARTING)
    run = bench.commands.crashed(run.id, "killed", "gone")
    assert run.resumes_itself
    run = bench.commands.request_stop(run.id)
    assert (run.state, run.reason) == (RunState.INTERRUPTED, "killed")
    assert not run.resumes_itself


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED])
def test_stopping_what_has_ended_is_a_conflict_that_names_the_state(bench, state):
    run = in_state(bench, state)
    with pytest.raises(Conflict, match=f"has {state}"):
        bench.commands.request_stop(run.id)


@pytest.mark.parametrize("state", sorted(RESUMABLE))
def test_a_resting_run_is_queued_again(bench, state):
    run = bench.commands.request_resume(in_state(bench, state).id)
    assert (run.state, run.wanted, run.reason) == (RunState.QUEUED, Wanted.RUNNING, None)


@pytest.mark.parametrize("state", sorted(set(RunState) - RESUMABLE))
def test_resuming_what_does_not_rest_is_a_conflict_that_names_the_state(bench, state):
    run = in_state(bench, state)
    with pytest.raises(Conflict, match=f"(is|has) {state}"):
        bench.commands.request_resume(run.id)


def test_a_resume_takes_the_changes_that_it_may_make(bench):
    run = in_state(bench, RunState.STOPPED)
    longer = parse_spec(spec_body(steps=40))
    assert bench.commands.request_resume(run.id, lambda _: longer).run_spec == longer


def test_a_resume_refuses_other_changes_and_names_them(bench):
    run = in_state(bench, RunState.STOPPED)
    other = parse_spec({**spec_body(), "seed": 7, "optimizer": {"learning_rate": 0.5}})
    with pytest.raises(InvalidSpec) as caught:
        bench.commands.request_resume(run.id, lambda _: other)
    assert [field for field, _ in caught.value.problems] == ["seed", "optimizer.learning_rate"]
    assert bench.runs.get(run.id) == run


def test_a_run_is_claimed_once(bench):
    run = bench.create()
    claimed = bench.commands.claim(run.id, ("cpu",))
    assert claimed is not None
    assert (claimed.state, claimed.slots, claimed.attempt) == (RunState.STARTING, ["cpu"], 1)
    assert bench.commands.claim(run.id, ("cpu",)) is None


def test_a_status_moves_a_run_only_as_it_may(bench):
    run = in_state(bench, RunState.RUNNING)
    again = bench.commands.saw(run.id, status(RunState.STARTING, message="starting again", step=40))
    assert (again.state, again.message) == (RunState.STARTING, "starting again")
    assert bench.commands.saw(run.id, status(RunState.RUNNING)).state is RunState.RUNNING
    assert bench.commands.saw(run.id, status(RunState.QUEUED)).state is RunState.RUNNING
    assert bench.commands.saw(run.id, status(RunState.SUCCEEDED)).state is RunState.RUNNING
    waiting = bench.commands.saw(run.id, status(RunState.WAITING_FOR_TEACHER, message="away"))
    assert (waiting.state, waiting.message) == (RunState.WAITING_FOR_TEACHER, "away")
    assert bench.commands.saw(run.id, status(RunState.RUNNING)).message is None


def test_a_run_that_stops_stays_so_whatever_its_trainer_says(bench):
    run = in_state(bench, RunState.STOPPING)
    seen = bench.commands.saw(run.id, status(RunState.RUNNING, step=9))
    assert (seen.state, seen.reason) == (RunState.STOPPING, "stopped")
    assert seen.last_status is not None
    assert seen.last_status.step == 9


def test_a_heartbeat_alone_is_news_every_few_seconds(bench):
    run = in_state(bench, RunState.RUNNING)
    beat = Status("x", RunState.RUNNING, 1.0, 3.0, 3, 4.0)
    assert bench.commands.saw(run.id, beat).revision == run.revision
    late = Status("x", RunState.RUNNING, 1.0, 9.0, 3, 4.0)
    assert bench.commands.saw(run.id, late).revision > run.revision


def test_crashes_are_resumed_with_growing_delays_and_end_as_failed(bench):
    run = bench.create()
    delays = []
    for _ in range(MAX_RESTARTS):
        bench.commands.claim(run.id, ("cpu",))
        crashed = bench.commands.crashed(run.id, "killed", "gone")
        assert crashed.state is RunState.INTERRUPTED
        delays.append(crashed.resume_at - bench.clock())
        bench.commands.requeue(run.id)
    assert delays == [1, 2, 4, 8, 16]
    bench.commands.claim(run.id, ("cpu",))
    failed = bench.commands.crashed(run.id, "killed", "gone")
    assert (failed.state, failed.reason) == (RunState.FAILED, "crash_loop")
    assert "6 times in a row" in failed.message
    assert not failed.resumes_itself


def test_a_new_checkpoint_begins_the_count_of_crashes_anew(bench):
    run = bench.create()
    for number in range(3 * MAX_RESTARTS):
        bench.commands.claim(run.id, ("cpu",))
        said = status(RunState.RUNNING, checkpoint_step=number)
        crashed = bench.commands.crashed(run.id, "killed", "gone", said)
        assert (crashed.state, crashed.restarts) == (RunState.INTERRUPTED, 1)
        bench.commands.requeue(run.id)


def test_a_crash_of_a_run_that_is_to_stop_is_not_resumed(bench):
    run = in_state(bench, RunState.STOPPING)
    crashed = bench.commands.crashed(run.id, "killed", "gone")
    assert (crashed.state, crashed.resume_at) == (RunState.INTERRUPTED, None)


def test_the_end_of_a_run_that_has_ended_changes_nothing(bench):
    run = in_state(bench, RunState.SUCCEEDED)
    assert bench.commands.ended(run.id, RunState.FAILED, "late", None) == run
    assert bench.commands.crashed(run.id, "killed", "late") == run
    assert bench.commands.saw(run.id, status(RunState.RUNNING)) == run


def test_only_time_with_a_trainer_counts_as_elapsed(bench):
    run = bench.create()
    bench.clock.advance(100)
    bench.commands.claim(run.id, ("cpu",))
    bench.clock.advance(10)
    bench.commands.ended(run.id, RunState.INTERRUPTED, "killed", None)
    bench.clock.advance(1000)
    bench.commands.request_resume(run.id)
    bench.commands.claim(run.id, ("cpu",))
    bench.clock.advance(5)
    assert bench.runs.get(run.id).elapsed_seconds(bench.clock()) == 15


def test_an_unknown_run_is_not_found(bench):
    for ask in (bench.runs.get, bench.commands.request_stop, bench.commands.request_resume):
        with pytest.raises(NotFound, match="no run nobody"):
            ask("nobody")


def test_pages_go_back_in_time_without_gap_or_double(bench):
    made = [bench.create(f"run-{number}").id for number in range(7)]
    bench.commands.request_stop(made[3])
    first = bench.runs.search(Search(), None, 3).runs
    second = bench.runs.search(Search(), first[-1].seq, 3).runs
    third = bench.runs.search(Search(), second[-1].seq, 3).runs
    assert [run.id for run in [*first, *second, *third]] == made[::-1]
    stopped = bench.runs.search(Search(states=[RunState.STOPPED]), None, 10).runs
    assert [run.id for run in stopped] == [made[3]]


def test_changes_since_a_revision_are_each_run_once_as_it_is(bench):
    first, second = bench.create("one"), bench.create("two")
    revision = bench.runs.newest_revision()
    assert bench.runs.changed_since(revision) == []
    bench.commands.claim(first.id, ("cpu",))
    bench.commands.request_stop(second.id)
    stopping = bench.commands.request_stop(first.id)
    changed = bench.runs.changed_since(revision)
    assert [run.id for run in changed] == [second.id, first.id]
    assert changed[-1] == stopping


def test_a_resume_needs_only_one_connection_so_that_many_at_once_cannot_block_each_other(bench):
    run = in_state(bench, RunState.STOPPED)
    with ExitStack() as stack:
        for _ in range(POOL_CONNECTIONS - 1):
            stack.enter_context(bench.store.reading())
        assert bench.commands.request_resume(run.id).state is RunState.QUEUED


def test_a_resume_into_a_full_queue_changes_nothing(bench):
    run = in_state(bench, RunState.STOPPED)
    commands = RunCommands(bench.store, max_queued=1)
    bench.create()
    with pytest.raises(Overloaded):
        commands.request_resume(run.id)
    assert bench.runs.get(run.id) == run
