"""The recorder: states, heartbeat, and metrics that never block."""

import contextlib
import errno
import json
import math
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lectern_common.errors import DiskFull, Misconfigured
from lectern_common.json_lines import append_json_line, read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import identity_of
from lectern_common.run.status import RunState, Status
from lectern_common.spec.load import parse_spec
from student_trainer.journal.recorder import Recorder
from student_trainer.journal.sinks import Metrics, QueuedSink
from student_trainer.stop import Stop
from tests.support.fakes import FakeClock
from tests.support.servers import wait_for


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    spec = {
        "name": "r",
        "student": {"config": "c"},
        "data": {"kind": "synthetic"},
        "objective": {"alpha": 1},
    }
    return RunFolder.create(tmp_path, "r", parse_spec(spec))


def said(folder: RunFolder) -> Status:
    status = folder.read_status()
    assert status is not None
    return status


def states(folder: RunFolder) -> list[str]:
    lines = read_json_lines(folder.events_path)
    return [line["state"] for line in lines if line["kind"] == "state"]


def step_metrics(tokens: float, seconds: float, waited: float) -> dict[str, float]:
    return {
        "loss/total": 1.0,
        "perf/tokens_per_second": tokens / seconds,
        "time/step_seconds": seconds,
        "time/teacher_wait_seconds": waited,
    }


def test_a_run_is_starting_from_its_first_status(folder: RunFolder) -> None:
    with Recorder(folder, Stop()):
        status = said(folder)
    assert status.state is RunState.STARTING
    assert status.pid > 0
    assert status.process == identity_of(os.getpid())


def test_a_restarting_run_says_from_where_and_why_until_it_runs(folder: RunFolder) -> None:
    recorder = Recorder(folder, Stop())
    recorder.start_again_from(40, "rank 1 of 2 was killed by SIGKILL (1 of 3 restarts)")
    with recorder:
        status = said(folder)
        recorder.set_state(RunState.RUNNING)
    assert (status.state, status.reason) == (RunState.STARTING, "rank_lost")
    assert (status.step, status.checkpoint_step) == (40, 40)
    why = "restarting from step 40: rank 1 of 2 was killed by SIGKILL (1 of 3 restarts)"
    assert status.message == why
    assert [line["message"] for line in read_json_lines(folder.events_path)] == [why, None]
    assert (said(folder).step, said(folder).reason, said(folder).message) == (40, None, None)


def test_a_checkpoint_at_step_0_counts(folder: RunFolder) -> None:
    for found in (0, None):
        recorder = Recorder(folder, Stop())
        recorder.start_again_from(found, None)
        with recorder:
            status = said(folder)
            recorder.after_checkpoint(0)
        assert (status.step, status.checkpoint_step) == (0, found)
        assert status.message == "restarting from step 0"
        assert said(folder).checkpoint_step == 0


def test_the_last_state_stays_after_the_recorder_is_closed(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder.set_progress(steps=9, device="cpu", checkpoint_step=4)
        recorder.set_state(RunState.RUNNING)
        recorder.set_state(RunState.FAILED, "diverged", "it went wrong")
    status = said(folder)
    assert (status.state, status.reason, status.message) == (
        RunState.FAILED,
        "diverged",
        "it went wrong",
    )
    assert (status.steps, status.device, status.checkpoint_step) == (9, "cpu", 4)
    assert states(folder) == ["starting", "running", "failed"]


def test_the_heartbeat_goes_on_while_the_state_stays(folder: RunFolder) -> None:
    with Recorder(folder, Stop(), heartbeat_seconds=0.01):
        first = said(folder)
        wait_for(lambda: said(folder).heartbeat > first.heartbeat)
        assert said(folder).since == first.since
    assert states(folder) == ["starting"]


def test_a_run_waits_while_its_teacher_is_away(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder.set_state(RunState.RUNNING)
        recorder.teacher_away("no teacher at here")
        status = said(folder)
        assert status.state is RunState.WAITING_FOR_TEACHER
        assert status.message == "no teacher at here"
        recorder.teacher_away(None)
        assert said(folder).state is RunState.RUNNING
        assert said(folder).message is None
    assert states(folder) == ["starting", "running", "waiting_for_teacher", "running"]


def test_an_absent_teacher_does_not_change_a_final_state(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder.teacher_away("gone")
        recorder.set_state(RunState.INTERRUPTED, "teacher_unavailable", "gone for good")
        recorder.teacher_away(None)
    assert said(folder).state is RunState.INTERRUPTED


def test_a_requested_stop_shows_without_the_loop(folder: RunFolder) -> None:
    stop = Stop()
    with Recorder(folder, stop, heartbeat_seconds=0.01) as recorder:
        recorder.set_state(RunState.RUNNING)
        stop.request()
        wait_for(lambda: said(folder).state is RunState.STOPPING)
        recorder.set_state(RunState.STOPPED, "stopped")
    assert said(folder).state is RunState.STOPPED


def test_metrics_are_written_in_order_and_shown_in_the_status(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder.open_metrics([], 0)
        recorder.record(0, {"loss/val": 5.0})
        recorder.record(1, step_metrics(100, 2.0, 0.5))
        recorder.record(2, {**step_metrics(300, 2.0, 1.5), "loss/total": math.nan})
        recorder.before_checkpoint()
        assert [line["step"] for line in read_json_lines(folder.metrics_path)] == [0, 1, 2]
    last = read_json_lines(folder.metrics_path)[-1]
    assert (last["loss/total"], last["non_finite"]) == (None, ["loss/total"])
    status = said(folder) if said(folder).step == 2 else None
    recorder.set_state(RunState.SUCCEEDED)
    status = said(folder)
    assert status.step == 2
    assert status.latest["loss/val"] == 5.0
    assert status.latest["loss/total"] is None
    assert status.tokens_per_second == pytest.approx(100.0)
    assert status.teacher_wait_share == pytest.approx(0.5)


def test_a_run_without_a_teacher_has_no_share_of_waiting(folder: RunFolder) -> None:
    shares = []
    for share in ({}, {"time/teacher_wait_share": 0.0}):
        with Recorder(folder, Stop()) as recorder:
            recorder.open_metrics([], 0)
            recorder.record(1, {**step_metrics(100, 2.0, 0.0), **share})
            recorder.set_state(RunState.SUCCEEDED)
        shares.append(said(folder).teacher_wait_share)
    assert shares == [None, 0.0]


class Held:
    """A sink that writes only once released."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def write(self, step: int, metrics: Metrics) -> None:
        self.go.wait(20)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_dropped_lines_are_reported_during_the_run_and_at_its_end(folder: RunFolder) -> None:
    """S14: at the first dropped line, at ten times as many, at the end, and in every line."""
    held = Held()
    with Recorder(folder, Stop()) as recorder:
        recorder.open_metrics([], 0)
        # One line is being written and one waits, so the third is the first to be dropped.
        slow = QueuedSink(held, limit=1, may_fail=True)
        recorder._sinks.append(slow)
        for step in range(40):
            recorder.record(step, {"loss/total": 1.0})
        dropped = slow.dropped
        assert dropped >= 38
        events = [line for line in read_json_lines(folder.events_path) if "lines" in line]
        assert [line["lines"] for line in events] == [1, 11]
        assert events[0]["by"] == {"Held": 1}
        held.go.set()
    events = [line for line in read_json_lines(folder.events_path) if "lines" in line]
    assert [line["lines"] for line in events] == [1, 11, dropped]
    lines = read_json_lines(folder.metrics_path)
    assert [line["step"] for line in lines] == list(range(40))
    assert "telemetry/dropped_lines" not in lines[0]
    counts = [line["telemetry/dropped_lines"] for line in lines[-30:]]
    assert counts == sorted(counts)
    assert counts[-1] == dropped - 1  # counted before this line


def test_a_sink_that_may_fail_does_not_end_the_run_and_says_why(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder.open_metrics([], 0)
        recorder._sinks.append(
            QueuedSink(Failing(lambda: ConnectionError("no network")), may_fail=True)
        )
        for step in range(3):
            recorder.record(step, {})
        recorder.before_checkpoint()
    [*_, last] = [line for line in read_json_lines(folder.events_path) if "lines" in line]
    assert (last["lines"], last["message"]) == (3, "ConnectionError: no network")
    assert len(read_json_lines(folder.metrics_path)) == 3


def test_a_clock_that_jumps_back_gives_no_negative_age(folder: RunFolder) -> None:
    """S12: no negative duration; lines stay in order of steps."""
    clock = FakeClock(5000.0)
    with Recorder(folder, Stop(), heartbeat_seconds=3600, clock=clock) as recorder:
        recorder.open_metrics([], 0)
        recorder.set_state(RunState.RUNNING)
        recorder.record(1, step_metrics(100, 2.0, 0.5))
        clock.now = 1000.0
        recorder.record(2, step_metrics(100, 2.0, 0.5))
        recorder.teacher_away(None)  # writes the status
        status = said(folder)
        assert (status.heartbeat, status.since) == (1000.0, 1000.0)
        clock.advance(7)
        recorder.teacher_away(None)
        status = said(folder)
        assert status.heartbeat - status.since == 7
        assert status.tokens_per_second == pytest.approx(50.0)
    assert [line["step"] for line in read_json_lines(folder.metrics_path)] == [1, 2]


def test_a_stalled_status_does_not_delay_a_step(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, free = threading.Event(), threading.Event()
    with Recorder(folder, Stop(), heartbeat_seconds=0.01) as recorder:
        recorder.open_metrics([], 0)
        write = RunFolder.write_status

        def stalled(own: RunFolder, status: Status) -> None:
            stuck.set()
            free.wait(60)
            write(own, status)

        monkeypatch.setattr(RunFolder, "write_status", stalled)
        assert stuck.wait(60)
        step = threading.Thread(target=lambda: recorder.record(1, step_metrics(100, 2.0, 0.5)))
        step.start()
        step.join(5)
        went_on = not step.is_alive()
        free.set()
        step.join()
        assert went_on
        wait_for(lambda: said(folder).step == 1)


def test_metrics_that_cannot_be_cut_for_lack_of_space_end_the_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_json_line(folder.metrics_path, {"step": 1})
    before = folder.metrics_path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("student_trainer.journal.recorder.keep_lines_before", full)
    full_disk = pytest.raises(DiskFull, match=r"metrics\.jsonl; free some")
    with Recorder(folder, Stop()) as recorder, full_disk:
        recorder.open_metrics([], 1)
    assert folder.metrics_path.read_bytes() == before


class Failing:
    def __init__(self, error: Callable[[], Exception]) -> None:
        self._error = error

    def write(self, step: int, metrics: Metrics) -> None:
        raise self._error()

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_a_full_disk_of_the_metrics_is_raised_in_the_loop(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder._sinks = [QueuedSink(Failing(lambda: OSError(errno.ENOSPC, "full")))]
        recorder.record(1, {})
        with pytest.raises(DiskFull):
            recorder.before_checkpoint()
        with pytest.raises(DiskFull):
            recorder.record(2, {})


def test_a_status_that_cannot_be_written_does_not_end_the_heartbeat(folder: RunFolder) -> None:
    with Recorder(folder, Stop(), heartbeat_seconds=0.01) as recorder:
        while not folder.status_path.is_dir():
            folder.status_path.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # a heartbeat has just been written
                folder.status_path.mkdir()
        (folder.status_path / "in-the-way").touch()
        recorder.set_state(RunState.RUNNING)
        (folder.status_path / "in-the-way").unlink()
        folder.status_path.rmdir()
        wait_for(folder.status_path.is_file)
    assert said(folder).state is RunState.RUNNING


def test_tensorboard_gets_the_same_numbers(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Recorder(folder, Stop()) as recorder:
        recorder.open_metrics(["tensorboard"], 0)
        recorder.record(1, {"loss/total": 2.5})
        recorder.record(2, {"loss/total": 1.5, "loss/kd": None})
    events: Any = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(entry.step, entry.value) for entry in events.Scalars("loss/total")] == [
        (1, 2.5),
        (2, 1.5),
    ]
    assert len(read_json_lines(folder.metrics_path)) == 2


def test_a_missing_tensorboard_is_refused_with_advice(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        Recorder(folder, Stop()) as recorder,
        pytest.raises(Misconfigured, match=r"install lectern\[tensorboard\]"),
    ):
        recorder.open_metrics(["tensorboard"], 0)


def test_the_status_is_plain_json(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        recorder.open_metrics([], 0)
        recorder.record(1, {"loss/total": math.inf})
        recorder.set_state(RunState.RUNNING)
    assert json.loads(folder.status_path.read_text())["latest"] == {"loss/total": None}


class FullWhileReserved(RunFolder):
    """A folder on a disk that is full as long as the reserve exists."""

    def _require_room(self) -> None:
        if (self.path / ".reserve").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    def write_status(self, status: Status) -> None:
        self._require_room()
        super().write_status(status)

    def append_event(self, kind: str, **details: Any) -> None:
        self._require_room()
        super().append_event(kind, **details)


def test_a_full_disk_still_has_space_for_the_final_state(folder: RunFolder) -> None:
    with Recorder(folder, Stop()) as recorder:
        assert (folder.path / ".reserve").stat().st_size > 0
        recorder._folder = FullWhileReserved(folder.path)
        recorder.set_state(RunState.INTERRUPTED, "disk_full", "no space left")
    assert (said(folder).state, said(folder).reason) == (RunState.INTERRUPTED, "disk_full")
    assert states(folder) == ["starting", "interrupted"]
    assert not (folder.path / ".reserve").exists()


def test_the_status_tells_how_long_the_loop_has_made_no_progress(folder: RunFolder) -> None:
    """C25: the heart beats in a thread of its own, so it says nothing about the loop."""
    monotonic, wall = FakeClock(50.0), FakeClock()

    def shown() -> tuple[str | None, float | None, float | None]:
        recorder.set_progress()
        recorder._publish()
        status = said(folder)
        return status.activity, status.activity_seconds, status.usual_seconds

    with Recorder(folder, Stop(), clock=wall, monotonic=monotonic) as recorder:
        monotonic.advance(7)
        assert shown() == ("starting", 7, None)
        recorder.set_state(RunState.RUNNING)
        assert shown() == ("step", 0, None)
        for step in range(3):
            monotonic.advance(3)
            recorder.record(step, step_metrics(10, 2.0 + step, 0.0))
        wall.advance(-5000)  # a clock that is set back changes nothing
        monotonic.advance(40)
        assert shown() == ("step", 40, 3.0)
        assert said(folder).stalled_seconds is None
        monotonic.advance(30)
        assert said(folder).stalled_seconds is None
        assert shown() == ("step", 70, 3.0)
        assert said(folder).stalled_seconds == 70
        recorder.teacher_away("no answer")
        monotonic.advance(500)
        recorder.teacher_away(None)
        assert shown() == ("step", 0, 3.0)  # an outage of the teacher is no lack of progress


def test_evaluations_and_checkpoints_are_timed_by_themselves(folder: RunFolder) -> None:
    monotonic = FakeClock()
    with Recorder(folder, Stop(), heartbeat_seconds=3600, monotonic=monotonic) as recorder:
        recorder.set_state(RunState.RUNNING)
        for seconds in (100, 300):
            recorder.doing("evaluation")
            monotonic.advance(seconds)
            recorder.doing("evaluation")  # its next batch
            monotonic.advance(2)
            recorder.record(1, step_metrics(10, 2.0, 0.0))
            recorder.before_checkpoint()
            monotonic.advance(20)
            recorder.after_checkpoint(1)
        recorder.doing("evaluation")
        monotonic.advance(2000)
        recorder.teacher_away(None)
        monotonic.advance(2000)
        recorder._publish()
        status = said(folder)
        assert (status.activity, status.activity_seconds) == ("evaluation", 2000)
        assert status.usual_seconds == 202
        assert status.stalled_seconds is None
        recorder.before_checkpoint()
        monotonic.advance(700)
        recorder._publish()
        assert said(folder).stalled_seconds == 700  # checkpoints took 20 s


def test_the_status_names_the_step_of_the_validation_loss_and_the_lowest_one(
    folder: RunFolder,
) -> None:
    def validation() -> tuple[float | None, ...]:
        keys = ("loss/val", "loss/val_step", "loss/val_best", "loss/val_best_step")
        return tuple(said(folder).latest.get(key) for key in keys)

    with Recorder(folder, Stop()) as recorder:
        recorder.record(0, {"loss/total": 7.0})
        recorder.set_state(RunState.RUNNING)
        assert validation() == (None, None, None, None)
        for step, loss in ((0, 7.0), (10, 3.0), (20, 4.0), (30, math.nan)):
            recorder.record(step, {"loss/val": loss})
        recorder.record(31, {"loss/total": 1.0})
    assert validation() == (None, 20, 3.0, 10)
    # A resumed run goes on with what its checkpoint knows.
    with Recorder(folder, Stop()) as recorder:
        recorder.go_on_with_best(2.5, 15)
        recorder.record(20, {"loss/val": 4.0})
    assert validation() == (4.0, 20, 2.5, 15)


@pytest.mark.parametrize(("checkpoint", "is_kept"), [(20, True), (40, True), (19, False)])
def test_a_resumed_run_shows_its_last_evaluation_up_to_the_checkpoint(
    folder: RunFolder, checkpoint: int, is_kept: bool
) -> None:
    measured = {"loss/val": 3.0, "val/kl": 0.5, "code/pass_at_1": 0.25}
    with Recorder(folder, Stop()) as recorder:
        recorder.record(20, measured)
        recorder.record(45, {"loss/total": 1.0})
    recorder = Recorder(folder, Stop())
    recorder.start_again_from(checkpoint, None)
    with recorder:
        latest = said(folder).latest
    kept = {**measured, "loss/val_step": 20, "loss/val_best": 3.0, "loss/val_best_step": 20}
    assert latest == (kept if is_kept else {})


def test_the_status_has_the_time_of_the_checkpoint_and_the_pace(folder: RunFolder) -> None:
    clock = FakeClock()
    with Recorder(folder, Stop(), clock=clock) as recorder:
        recorder.record(1, step_metrics(10, 2.0, 0.0))
        recorder.record(2, step_metrics(10, 4.0, 0.0))
        recorder.after_checkpoint(2)
        clock.advance(60)
    status = said(folder)
    assert (status.checkpoint_at, status.seconds_per_step) == (1_000_000.0, 3.0)
    with Recorder(folder, Stop()) as recorder:
        recorder.go_on_from(status)
    assert said(folder).checkpoint_at == 1_000_000.0


def test_a_resumed_run_says_when_its_checkpoint_was_complete(folder: RunFolder) -> None:
    for step, at in ((20, 1000.0), (40, 2000.0)):
        path = folder.checkpoints_path / f"step-{step:08d}"
        path.mkdir(parents=True)
        os.utime(path, (at, at))
    recorder = Recorder(folder, Stop())
    recorder.start_again_from(40, None)
    with recorder:
        assert (said(folder).checkpoint_step, said(folder).checkpoint_at) == (40, 2000.0)
        recorder.set_progress(step=20, checkpoint_step=20)  # the newest one was damaged
        recorder.set_state(RunState.RUNNING)
        assert (said(folder).checkpoint_step, said(folder).checkpoint_at) == (20, 1000.0)
