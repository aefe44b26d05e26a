"""Facts that change with time alone become columns, and each change is a revision."""

import pytest

from control_plane.runs.record import Run
from control_plane.trainers.devices import Devices
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import Bench


def now(bench: Bench, run: Run) -> Run:
    return bench.runs.get(run.id)


def beat(bench: Bench, run: Run, seconds: float, **said) -> Run:
    """Returns the run after so many seconds with a heartbeat every 5 of them."""
    state = said.pop("state", "running")
    for _ in range(int(seconds // 5)):
        bench.clock.advance(5)
        if said.get("activity") is not None:
            said["activity_seconds"] = said.get("activity_seconds", 0) + 5
        bench.processes.last(run.id).say(state, **said)
        bench.tick()
    return now(bench, run)


def test_a_queue_that_moves_is_written_and_each_move_is_a_revision(bench):
    runs = [bench.create(f"r-{number}") for number in range(5)]
    assert [run.queue_position for run in runs] == [1, 2, 3, 4, 5]  # before any look
    bench.tick()
    after = [now(bench, run) for run in runs]
    assert [run.queue_position for run in after] == [None, None, 1, 2, 3]
    why = "at most 2 runs train at once; waits until one of these ends: "
    assert after[2].waits_for == f"{why}{runs[0].id}, {runs[1].id}"
    assert after[0].waits_for is None
    revision = bench.runs.newest_revision()
    bench.tick(1)
    assert bench.runs.newest_revision() == revision  # nothing changed
    bench.commands.request_stop(runs[2].id)
    bench.tick(1)
    changed = bench.runs.changed_since(revision)
    assert [run.id for run in changed] == [runs[2].id, runs[3].id, runs[4].id]
    assert [run.queue_position for run in changed] == [None, 1, 2]
    assert changed[0].waits_for is None


def test_a_run_that_is_queued_again_stands_before_younger_ones(bench):
    first, *others = [bench.create(f"r-{number}") for number in range(4)]
    bench.commands.request_stop(first.id)
    bench.tick()
    again = bench.commands.request_resume(first.id)
    assert again.queue_position == 1
    bench.tick()
    assert [now(bench, run).queue_position for run in others] == [None, None, 2]


def test_a_device_that_is_taken_by_others_is_named_anew(tmp_path):
    bench = Bench.of(tmp_path, Devices(("0",), max_running=3))
    first, second, third = (bench.create(name) for name in ("a", "b", "c"))
    bench.tick()
    assert first.id in (now(bench, second).waits_for or "")
    bench.processes.last(first.id).say("succeeded")
    bench.processes.last(first.id).end(0)
    bench.tick(1)
    assert now(bench, second).waits_for is None
    assert second.id in (now(bench, third).waits_for or "")
    bench.store.close()


def test_a_trainer_whose_heart_stops_is_stale_since_its_last_beat(bench):
    run = bench.started()
    heartbeat = bench.runs.get(run.id).last_status.heartbeat
    bench.tick(10)
    assert now(bench, run).stale_since is None
    revision = bench.runs.newest_revision()
    bench.tick(6)
    stale = now(bench, run)
    assert (stale.stale_since, stale.revision) == (heartbeat, revision + 1)
    bench.restart()
    bench.tick(1)
    assert now(bench, run).stale_since == heartbeat  # another control plane knows it, too
    assert beat(bench, run, 5).stale_since is None


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0, 1e8])
def test_a_wall_clock_that_jumps_makes_nothing_stale(bench, seconds):
    run = bench.started()
    bench.conditions._clock = lambda: bench.clock.now + seconds
    process = bench.processes.last(run.id)
    for step in range(10):
        bench.clock.advance(4)
        process.say("running", step=step, heartbeat=bench.clock.now + seconds)
        bench.tick()
    after = now(bench, run)
    assert (after.stale_since, after.stalled_since) == (None, None)


def test_a_run_that_is_resumed_is_not_stale_while_its_trainer_imports(bench):
    run = bench.started()
    bench.commands.request_stop(run.id)
    bench.processes.last(run.id).say("stopped")
    bench.processes.last(run.id).end(0)
    bench.tick(100)
    bench.commands.request_resume(run.id)
    for _ in range(8):
        bench.tick(5)
    after = now(bench, run)
    assert (str(after.state), after.stale_since, after.stalled_since) == ("starting", None, None)


def test_a_trainer_that_beats_without_progress_is_stalled(bench):
    """C25: the heart beats, no step is made."""
    run = bench.started()
    assert beat(bench, run, 60, step=3, activity="step", usual_seconds=2).stalled_since is None
    begun = bench.clock.now
    revision = bench.runs.newest_revision()
    stuck = beat(bench, run, 70, step=3, activity="step", usual_seconds=2)
    assert stuck.stalled_since == pytest.approx(begun, abs=5)
    assert (str(stuck.state), stuck.stale_since) == ("running", None)
    assert stuck.revision > revision
    since = stuck.stalled_since
    said = {"step": 3, "activity": "step", "activity_seconds": 99, "usual_seconds": 2}
    assert beat(bench, run, 30, **said).stalled_since == since
    bench.restart()
    assert beat(bench, run, 5, **said).stalled_since == since
    assert beat(bench, run, 5, step=4, activity="step", usual_seconds=2).stalled_since is None


def test_waiting_for_the_teacher_is_not_stalled_but_a_long_evaluation_is(bench):
    run = bench.started()
    said = {"step": 3, "activity": "step", "activity_seconds": 5000, "usual_seconds": 2}
    assert beat(bench, run, 60, state="waiting_for_teacher", **said).stalled_since is None
    said |= {"activity": "evaluation", "usual_seconds": 1000}
    assert beat(bench, run, 10, **said).stalled_since is None
    said |= {"activity_seconds": 10_001}
    assert beat(bench, run, 10, **said).stalled_since is not None


def test_a_trainer_of_an_earlier_release_is_timed_here(bench):
    run = bench.started()
    said = {"step": 3, "latest": {"time/step_seconds": 2.0}}
    assert beat(bench, run, 595, **said).stalled_since is None
    assert beat(bench, run, 20, **said).stalled_since is not None
    bench.restart()
    assert beat(bench, run, 20, **said).stalled_since is not None
    assert beat(bench, run, 5, step=4, latest=said["latest"]).stalled_since is None


def test_a_trainer_that_says_nothing_at_all_is_stalled_after_half_an_hour(bench):
    run = bench.create()
    bench.tick()
    bench.tick(1790)
    assert now(bench, run).stalled_since is None
    bench.tick(20)
    assert now(bench, run).stalled_since == bench.clock.now - 1810


def test_the_end_of_a_run_ends_its_conditions(bench):
    run = bench.started()
    beat(bench, run, 70, step=3, activity="step", activity_seconds=100, usual_seconds=2)
    bench.tick(30)
    assert None not in (now(bench, run).stale_since, now(bench, run).stalled_since)
    bench.processes.last(run.id).end(-9)
    bench.tick()
    after = now(bench, run)
    assert (after.stale_since, after.stalled_since) == (None, None)
    assert RunFolder(bench.roots.runs / run.id).path.exists()
