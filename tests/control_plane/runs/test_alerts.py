"""Alerts: which change makes which, exactly once, whatever users, trainers and kills do."""

from collections import Counter
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant

from control_plane.observing.disk import CLEAR_SECONDS, DiskAlert
from control_plane.runs.alerts import AlertKind, Alerts
from control_plane.trainers.overdue import SILENT_SECONDS, Overdue
from lectern_common.errors import Conflict
from lectern_common.run.status import RunState
from tests.control_plane.conftest import Bench
from tests.control_plane.runs.test_run_life import RunLife


def alerts_of(bench: Bench) -> Alerts:
    return Alerts(bench.store, bench.clock)


def kinds(bench: Bench) -> list[str]:
    return [alert.kind for alert in reversed(alerts_of(bench).newest())]


def newest(bench: Bench):
    return alerts_of(bench).newest()[0]


def ended(bench: Bench, state: str, *, exit_status: int = 0, **said):
    run = bench.started()
    bench.processes.last(run.id).say(state, step=7, **said)
    bench.processes.last(run.id).end(exit_status)
    bench.tick(1)
    bench.tick(1)
    return bench.runs.get(run.id)


# ---- what follows from a change of a run ---------------------------------------------------------


def test_a_run_that_succeeds_has_finished(bench):
    run = ended(bench, "succeeded", latest={"loss/val": 2.3456})
    alert = newest(bench)
    assert kinds(bench) == ["finished"]
    assert (alert.run_id, alert.name, alert.state, alert.step) == (run.id, "steady", "succeeded", 7)
    assert alert.message == f"{run.id} finished after 7 steps, validation loss 2.346"
    assert alert.at == pytest.approx(bench.clock.now, abs=2)


def test_a_run_that_fails_failed_and_one_that_diverged_diverged_only(bench):
    failed = ended(bench, "failed", reason="invalid_spec", message="no such field")
    assert kinds(bench) == ["failed"]
    assert newest(bench).message == f"{failed.id} failed at step 7: invalid_spec: no such field"
    assert newest(bench).reason == "invalid_spec"
    ended(bench, "failed", reason="diverged", message="the loss is nan; step 5 was good")
    assert kinds(bench) == ["failed", "diverged"]
    assert "the loss is nan" in newest(bench).message


def test_an_interrupted_run_that_waits_for_a_person_failed(bench):
    run = ended(bench, "interrupted", reason="teacher_unavailable", message="it is away")
    assert not run.resumes_itself  # its row names no teacher
    assert kinds(bench) == ["failed"]
    assert (newest(bench).state, newest(bench).reason) == ("interrupted", "teacher_unavailable")
    assert "waits for you" in newest(bench).message


def test_an_interrupted_run_that_goes_on_by_itself_makes_none(bench):
    run = ended(bench, "interrupted", reason="disk_full", message="full")
    assert run.resumes_itself
    assert kinds(bench) == []
    bench.commands.request_stop(run.id)
    assert kinds(bench) == []


def test_crashes_make_one_alert_when_they_end_in_failure(bench):
    run = bench.started()
    for _ in range(40):
        for process in bench.processes.alive():
            process.end(-9)
        bench.tick(70)
    assert bench.runs.get(run.id).reason == "crash_loop"
    assert kinds(bench) == ["failed"]
    assert bench.commands.restarts == Counter({"killed": 5})


def test_what_a_user_asked_for_makes_none(bench):
    run = bench.started()
    bench.commands.request_stop(run.id)
    bench.processes.last(run.id).say("stopped", step=3)
    bench.processes.last(run.id).end(0)
    bench.tick(1)
    assert bench.runs.get(run.id).state is RunState.STOPPED
    bench.commands.request_resume(run.id)
    bench.commands.request_stop(run.id)
    assert kinds(bench) == []


def test_asking_twice_makes_one(bench):
    run = ended(bench, "failed")
    with pytest.raises(Conflict):
        bench.commands.request_stop(run.id)
    bench.commands.ended(run.id, RunState.FAILED, "x", None)  # not active any more
    assert kinds(bench) == ["failed"]
    bench.commands.request_resume(run.id)
    bench.tick()
    bench.processes.last(run.id).say("failed")
    bench.processes.last(run.id).end(1)
    bench.tick(1)
    assert kinds(bench) == ["failed", "failed"]  # it happened twice


def test_a_transaction_that_fails_leaves_neither_change_nor_alert(bench, monkeypatch):
    run = bench.started()
    revision = bench.runs.newest_revision()

    def breaks(*_):
        raise sa.exc.OperationalError("full", None, OSError())

    monkeypatch.setattr("control_plane.runs.commands.sentence", breaks)
    with pytest.raises(sa.exc.OperationalError):
        bench.commands.ended(run.id, RunState.FAILED, "x", None)
    assert bench.runs.get(run.id).state is RunState.RUNNING
    assert (kinds(bench), bench.runs.newest_revision()) == ([], revision)


def test_an_alert_takes_part_in_the_order_of_changes_and_outlives_its_run(bench):
    before = bench.runs.newest_revision()
    run = ended(bench, "failed")
    changed = bench.runs.changed_since(before)
    revisions = [change.revision for change in changed]
    assert revisions == sorted(set(revisions))
    assert changed[-1] == newest(bench)
    bench.commands.delete(run.id, lambda: None)
    assert kinds(bench) == ["failed"]
    assert bench.runs.newest_revision() > newest(bench).revision


class Alerting(RunLife):
    """Runs' lives, with the alerts that their history asks for."""

    @invariant()
    def each_end_has_its_one_alert(self) -> None:
        expected: list[tuple[str, str]] = []
        for run_id in self.ids:
            for before, after in pairwise(self.bench.runs.history(run_id)):
                if before["state"] == after["state"]:
                    continue
                wanted = after["wanted"] == "running"
                stays = after["state"] == "interrupted" and after["reason"] == "teacher_unavailable"
                if after["state"] == "succeeded":
                    expected.append((run_id, "finished"))
                elif after["state"] == "failed" or (stays and wanted):
                    expected.append((run_id, "failed"))
        made = [
            (alert.run_id, alert.kind)
            for alert in alerts_of(self.bench).newest()
            if alert.kind in ("finished", "failed", "diverged")
        ]
        assert Counter(made) == Counter(expected)


TestAlerting = Alerting.TestCase
TestAlerting.settings = settings(
    max_examples=8,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


# ---- what changes with time alone ----------------------------------------------------------------


def stall(bench: Bench, run, seconds: int, **said) -> None:
    """Lets the heart beat for so long while no step is made."""
    for _ in range(seconds // 5):
        bench.clock.advance(5)
        said["activity_seconds"] = said.get("activity_seconds", 0) + 5
        bench.processes.last(run.id).say("running", activity="step", usual_seconds=2, **said)
        bench.tick()


def test_a_stall_makes_one_alert_and_the_next_stall_another(bench):
    run = bench.started()
    stall(bench, run, 60, step=3)
    assert kinds(bench) == []
    stall(bench, run, 100, step=3, activity_seconds=60)
    assert kinds(bench) == ["stalled"]
    assert newest(bench).message.startswith(f"{run.id} has made no progress for 1 min (step 3)")
    bench.restart()
    stall(bench, run, 100, step=3, activity_seconds=160)
    assert kinds(bench) == ["stalled"]
    stall(bench, run, 10, step=4)
    stall(bench, run, 100, step=4, activity_seconds=10)
    assert kinds(bench) == ["stalled", "stalled"]


def overdue_of(bench: Bench, minutes: float = 60) -> Overdue:
    return Overdue(bench.runs, bench.commands, minutes, bench.clock, bench.clock)


def test_a_run_that_waits_too_long_in_the_queue_makes_one_alert(bench):
    first, second, third = (bench.create(name) for name in ("a", "b", "c"))
    bench.tick()
    overdue = overdue_of(bench)
    for _ in range(59):
        bench.clock.advance(60)
        overdue.look()
    assert kinds(bench) == []
    for _ in range(200):
        bench.clock.advance(60)
        overdue.look()
    overdue_of(bench).look()  # of another control plane
    assert kinds(bench) == ["waiting"]
    alert = newest(bench)
    assert (alert.run_id, alert.state) == (third.id, "queued")
    assert f"waits until one of these ends: {first.id}, {second.id}" in alert.message
    assert bench.runs.get(third.id).overdue_since == third.since
    bench.commands.request_stop(third.id)
    bench.commands.request_resume(third.id)
    assert bench.runs.get(third.id).overdue_since is None
    bench.clock.advance(3700)
    overdue.look()
    bench.clock.advance(3700)
    overdue.look()
    assert kinds(bench) == ["waiting", "waiting"]


@pytest.mark.parametrize("state", ["waiting_for_teacher", "interrupted"])
def test_waiting_for_a_teacher_or_to_heal_is_waiting_too(bench, state):
    run = bench.started()
    said = {"reason": "disk_full"} if state == "interrupted" else {"message": "no teacher"}
    bench.processes.last(run.id).say(state, step=2, **said)
    if state == "interrupted":
        bench.processes.last(run.id).end(0)
    bench.tick(1)
    overdue = overdue_of(bench, minutes=1)
    overdue.look()
    bench.clock.advance(62)
    overdue.look()
    assert kinds(bench) == ["waiting"]
    assert newest(bench).message.endswith(
        "it goes on when there is room on its disk again" if said.get("reason") else "no teacher"
    )


def test_how_long_a_run_has_waited_outlives_a_restart_and_no_clock_that_jumps_adds_to_it(bench):
    for name in ("a", "b", "c"):
        bench.create(name)
    bench.tick()
    bench.clock.advance(3000)
    overdue = overdue_of(bench)
    overdue.look()
    overdue._clock = lambda: bench.clock.now + 1e7  # set forward
    bench.clock.advance(500)
    overdue.look()
    assert kinds(bench) == []
    bench.clock.advance(200)
    overdue.look()
    assert kinds(bench) == ["waiting"]


def test_a_trainer_that_lives_in_silence_is_called_stalled_once(bench):
    run = bench.started()
    overdue = overdue_of(bench)

    def silence(seconds: int) -> None:
        for _ in range(seconds // 6):
            bench.tick(6)
            overdue.look()

    silence(int(SILENT_SECONDS) - 12)
    assert (kinds(bench), bench.runs.get(run.id).stale_since is not None) == ([], True)
    silence(300)
    assert kinds(bench) == ["stalled"]
    assert "has said nothing for" in newest(bench).message
    bench.processes.last(run.id).say("running", step=2)
    bench.tick(6)
    overdue.look()
    assert bench.runs.get(run.id).overdue_since is None
    silence(300)
    assert kinds(bench) == ["stalled", "stalled"]


def test_a_damaged_row_stops_no_other(bench):
    broken, other = bench.create("a"), bench.create("b")
    with bench.store.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET since = 'x' WHERE id = ?", (broken.id,))
    overdue = overdue_of(bench)
    overdue.look()
    bench.clock.advance(4000)
    overdue.look()
    assert [alert.run_id for alert in alerts_of(bench).newest()] == [other.id]


# ---- the disk ------------------------------------------------------------------------------------


def test_a_full_disk_makes_one_alert_until_it_has_been_clear_for_a_while(bench):
    alerts = alerts_of(bench)
    woken = []
    alerts.added = lambda: woken.append(1)
    disk = DiskAlert(alerts, bench.clock)
    for warning in (None, "3 GB free, 4 GB needed", "2 GB free, 4 GB needed", None, "1 GB free"):
        bench.clock.advance(20)
        disk.seen(warning)
    DiskAlert(alerts, bench.clock).seen("1 GB free")  # after a restart
    assert kinds(bench) == ["disk"]
    alert = newest(bench)
    assert (alert.message, alert.run_id, alert.step) == ("3 GB free, 4 GB needed", None, None)
    assert woken == [1]
    disk.seen(None)
    bench.clock.advance(CLEAR_SECONDS)
    disk.seen(None)
    disk.seen("again")
    assert kinds(bench) == ["disk", "disk"]


def test_alerts_after_a_seq_newest_first(bench):
    alerts = alerts_of(bench)
    with bench.store.writing() as connection:
        for number in range(5):
            alerts.add(connection, AlertKind.DISK, f"m{number}")
    assert [alert.message for alert in alerts.newest(2)] == ["m4", "m3", "m2"]
    assert [alert.seq for alert in alerts.newest(0, 2)] == [5, 4]
    assert alerts.newest(5) == []
