"""The life of a run: states, exit statuses, signals, kills, resumption."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import torch

from lectern_common.errors import DiskFull
from lectern_common.json_lines import read_json_lines
from lectern_common.ranks import RANK_LOST
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState, Status
from student_trainer.__main__ import main
from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.journal.recorder import QuietRecorder, Recorder
from student_trainer.ranks.supervisor import RanksLost
from student_trainer.run.life import live
from student_trainer.stop import Stop, StopRequested
from tests.support.servers import wait_for
from tests.support.training.runs import (
    Home,
    compared,
    curve,
    events_of,
    lines_of,
    status_of,
    trained,
)
from tests.support.training.wire_teacher import PROBES, Serving, WireTeacher, of_training, refused

ROOT = Path(__file__).parent.parent.parent
# Long enough to be killed midway: about 10 ms per step.
LONG: dict[str, Any] = {
    "schedule": {"steps": 60, "warmup_steps": 5},
    "evaluation": {"every_steps": 20},
    "checkpoint": {"every_steps": 10},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@contextlib.contextmanager
def process(
    home: Home, folder: RunFolder, *options: str, stdin: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the trainer in its own process; kills it by its pid."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with folder.log_path.open("ab") as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "student_trainer",
                str(folder.path),
                "--home",
                str(home.path),
                *options,
            ],
            cwd=ROOT,
            env=environment,
            stdin=stdin,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(60)


def state_is(folder: RunFolder, *states: RunState) -> bool:
    status = folder.read_status()
    return status is not None and status.state in states


def made_steps(folder: RunFolder) -> int:
    lines = lines_of(folder)
    return lines[-1]["step"] if lines else 0


def final_bytes(folder: RunFolder) -> tuple[bytes, bytes]:
    steps = sorted(folder.checkpoints_path.glob("step-*"))
    return (
        (steps[-1] / "model.safetensors").read_bytes(),
        (folder.export_path / "model.safetensors").read_bytes(),
    )


@pytest.fixture(scope="module")
def undisturbed(home: Home) -> RunFolder:
    """The long run, uninterrupted."""
    folder = home.run("undisturbed", **LONG)
    assert trained(home, folder) == 0
    return folder


@pytest.fixture(scope="module")
def distilled(home: Home) -> RunFolder:
    """The long run with a teacher, uninterrupted."""
    with Serving(WireTeacher()) as serving:
        folder = home.run("distilled", **with_teacher(serving))
        assert trained(home, folder) == 0
    return folder


def with_teacher(serving: Serving, **changes: Any) -> dict[str, Any]:
    """Spec sections of a run without prefetch, so that the n-th answer is for step n."""
    teacher = {"address": serving.address, "prefetch_steps": 0, **changes}
    return {"teacher": teacher, "objective": {"alpha": 0.5}, **LONG}


@contextlib.contextmanager
def held_at(serving: Serving, step: int) -> Iterator[threading.Event]:
    """Keeps the teacher from answering for `step` and later until the event that it yields."""
    go = threading.Event()

    def hold(request: Any, context: Any) -> Iterator[Any]:
        go.wait(120)
        yield from serving.teacher.answer(request)

    serving.teacher.takes_fault = of_training
    serving.teacher.faults += [None] * (PROBES + step) + [hold] * 100
    try:
        yield go
    finally:
        go.set()


def require_same_as(undisturbed: RunFolder, folder: RunFolder) -> None:
    assert status_of(folder).state is RunState.SUCCEEDED
    assert final_bytes(folder) == final_bytes(undisturbed)
    assert compared(folder) == compared(undisturbed)


# ---- whole runs --------------------------------------------------------------------------------


def test_a_run_goes_from_starting_to_succeeded(home: Home, undisturbed: RunFolder) -> None:
    states = [event["state"] for event in events_of(undisturbed, "state")]
    assert states == ["starting", "running", "succeeded"]
    status = status_of(undisturbed)
    assert (status.step, status.steps, status.checkpoint_step) == (60, 60, 60)
    assert status.device == "cpu"
    assert status.latest["loss/val"] == curve(undisturbed, "loss/val")[-1]
    assert [line["step"] for line in lines_of(undisturbed)] == list(range(61))


def test_two_runs_of_one_spec_are_equal_bit_for_bit(home: Home, undisturbed: RunFolder) -> None:
    folder = home.run("again", **LONG)
    assert trained(home, folder) == 0
    require_same_as(undisturbed, folder)


def test_threads_are_set(home: Home) -> None:
    before = torch.get_num_threads()
    try:
        folder = home.run(device={"threads": 2}, schedule={"steps": 1, "warmup_steps": 0})
        assert trained(home, folder) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        os.environ["OMP_NUM_THREADS"] = "1"


def test_metrics_go_to_tensorboard_on_request(home: Home) -> None:
    folder = home.run(report_to=["tensorboard"])
    assert trained(home, folder) == 0
    assert list((folder.path / "tensorboard").glob("events.out.*"))


# ---- runs that may not start -------------------------------------------------------------------


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restores the signal handlers that main() replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_run_that_another_process_trains_is_left_alone(home: Home) -> None:
    folder = home.run()
    with folder.locked():
        assert main([str(folder.path), "--home", str(home.path)]) == 1
    assert folder.read_status() is None


@pytest.mark.usefixtures("handlers")
def test_checkpoints_without_resume_are_left_alone(home: Home, undisturbed: RunFolder) -> None:
    before = undisturbed.status_path.read_bytes()
    assert main([str(undisturbed.path), "--home", str(home.path)]) == 1
    assert undisturbed.status_path.read_bytes() == before


@pytest.mark.usefixtures("handlers")
def test_a_missing_folder_is_reported(home: Home, tmp_path: Path) -> None:
    assert main([str(tmp_path / "nothing"), "--home", str(home.path)]) == 1


# ---- how a run ends ----------------------------------------------------------------------------


def test_a_finished_rank_cannot_be_aborted_by_its_interpreter(tmp_path: Path) -> None:
    program = (
        "import atexit, os, runpy\n"
        "atexit.register(os.abort)\n"
        "runpy.run_module('student_trainer', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "none")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "not_started" in done.stdout + done.stderr


def test_the_status_says_what_is_wrong(home: Home) -> None:
    folder = home.run(data={"path": "nothing"})
    assert trained(home, folder) == 1
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.FAILED, "not_found")
    assert "data.path: no dataset 'nothing' under the data root" in str(status.message)
    assert "lectern data prepare" in str(status.message)
    assert "then resume the run" in str(status.message)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"data": {"validation_path": "gone", "validation_fraction": None}}, "data.validation_pa"),
        ({"student": {"config": "gone"}}, "student.config: no model folder 'gone' under"),
    ],
)
def test_what_was_removed_after_the_run_was_accepted_is_named(
    home: Home, sections: dict[str, Any], says: str
) -> None:
    folder = home.run(**sections)
    assert trained(home, folder) == 1
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.FAILED, "not_found")
    assert says in str(status.message) and "'gone'" in str(status.message)
    assert "put it back" in str(status.message) and "resume the run" in str(status.message)


def test_the_status_says_that_the_spec_is_broken(home: Home) -> None:
    folder = home.run()
    folder.spec_path.write_text("name: [")
    assert trained(home, folder) == 1
    assert status_of(folder).reason == "invalid_spec"


def test_a_run_that_lost_its_ranks_reports_its_progress(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home.run(device={"kind": "cpu", "threads": 1, "count": 2})

    def lost(*_: object, **__: object) -> int:
        with Recorder(folder, Stop()) as first_rank:
            first_rank.set_progress(step=41, steps=60, checkpoint_step=40, device="cpu")
            first_rank.set_state(RunState.RUNNING)
        raise RanksLost("rank 1 of 2 was killed by SIGKILL")

    monkeypatch.setattr("student_trainer.run.life.supervise", lost)
    assert main([str(folder.path), "--home", str(home.path)]) == 75
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.INTERRUPTED, "rank_lost")
    assert (status.step, status.steps, status.checkpoint_step, status.device) == (41, 60, 40, "cpu")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("environment", "reason", "message"),
    [
        ({}, None, "restarting from step 6"),
        (
            {"LECTERN_RESTARTED": "rank 1 of 2 was killed by SIGKILL (1 of 3 restarts)"},
            "rank_lost",
            "restarting from step 6: rank 1 of 2 was killed by SIGKILL (1 of 3 restarts)",
        ),
    ],
)
def test_the_first_status_of_a_resumed_run_is_at_its_checkpoint(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    reason: str | None,
    message: str,
) -> None:
    folder, seen, first = home.run(), list[Status](), list[tuple[int, int]]()
    for step in (4, 6):
        (folder.checkpoints_path / f"step-{step:08d}").mkdir(parents=True)

    def looked_at(*_: object, **__: object) -> None:
        seen.append(status_of(folder))
        raise StopRequested

    def written(self: RunFolder, status: Status) -> None:
        first.extend([] if first else [(status.step, status.steps)])
        write_status(self, status)

    write_status = RunFolder.write_status
    monkeypatch.setattr(RunFolder, "write_status", written)
    monkeypatch.setattr("student_trainer.run.assemble.assemble", looked_at)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([str(folder.path), "--home", str(home.path), "--resume"]) == 0
    (status,) = seen
    assert (status.state, status.reason, status.message) == (RunState.STARTING, reason, message)
    assert (status.step, status.checkpoint_step) == (6, 6)
    assert first == [(6, folder.read_spec().schedule.steps)]


def test_a_run_whose_checkpoints_are_all_broken_reports_none(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = home.run(), list[Status]()
    (folder.checkpoints_path / "step-00000006").mkdir(parents=True)

    def looked_at(*_: object) -> bool:
        seen.append(status_of(folder))
        return False

    monkeypatch.setattr("student_trainer.run.loop.train", looked_at)
    assert main([str(folder.path), "--home", str(home.path), "--resume"]) == 0
    (status,) = seen
    assert (status.state, status.step, status.checkpoint_step) == (RunState.RUNNING, 0, None)


def test_an_unexpected_error_is_a_failed_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprising(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("student_trainer.run.assemble.assemble", surprising)
    folder = home.run()
    assert trained(home, folder) == 1
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.FAILED, "internal")
    assert status.message == "ZeroDivisionError: of all things; see trainer.log"


@pytest.mark.parametrize(
    ("went", "level", "event"),
    [(True, "warning", "ended because another rank ended"), (False, "error", "ended")],
)
def test_a_rank_that_ended_with_another_says_so_without_a_traceback(
    home: Home, monkeypatch: pytest.MonkeyPatch, went: bool, level: str, event: str
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer\nand more")

    monkeypatch.setattr("student_trainer.run.assemble.assemble", cut_off)
    monkeypatch.setattr("student_trainer.run.life.another_rank_went", lambda seconds: went)
    monkeypatch.setenv("RANK", "1")
    with structlog.testing.capture_logs() as logged:
        ended = live(home.run(), Roots.of_home(home.path), QuietRecorder(), Stop(), resume=False)
    (line,) = logged
    assert ended == RANK_LOST
    assert (line["log_level"], line["event"]) == (level, event)
    assert line["error"] == "RuntimeError: Connection closed by peer"
    assert ("exception" in line) is not went


def test_a_failed_export_is_a_failed_run(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("student_trainer.student.export._write_tokenizer", broken)
    folder = home.run()
    assert trained(home, folder) == 1
    assert status_of(folder).state is RunState.FAILED
    assert not folder.export_path.exists()
    monkeypatch.undo()
    assert trained(home, folder, resume=True) == 0
    assert folder.export_path.exists()


def test_a_full_disk_interrupts_a_run_that_continues_once_there_is_space(
    home: Home, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CheckpointStore.save

    def filling_up(store: CheckpointStore, step: int, *rest: Any) -> Path:
        if step == 30:
            raise DiskFull("no space left to write a checkpoint")
        return original(store, step, *rest)

    folder = home.run("full-disk", **LONG)
    monkeypatch.setattr(CheckpointStore, "save", filling_up)
    assert trained(home, folder) == 75
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.INTERRUPTED, "disk_full")
    assert status.checkpoint_step == 20
    monkeypatch.undo()
    assert trained(home, folder, resume=True) == 0
    require_same_as(undisturbed, folder)


def test_no_space_for_a_metric_interrupts_the_run_too(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("student_trainer.journal.sinks.append_json_line", full)
    folder = home.run()
    assert trained(home, folder) == 75
    assert status_of(folder).reason == "disk_full"


def test_a_teacher_that_stays_away_interrupts_the_run(home: Home, distilled: RunFolder) -> None:
    with Serving(WireTeacher()) as serving:
        serving.teacher.takes_fault = of_training
        serving.teacher.faults += [None] * (PROBES + 25)
        serving.teacher.faults += [refused(grpc.StatusCode.UNAVAILABLE, "gone")] * 200
        folder = home.run(
            "teacher-gone",
            **with_teacher(serving, outage_budget_seconds=0.3),
        )
        assert trained(home, folder) == 75
        status = status_of(folder)
        assert (status.state, status.reason) == (RunState.INTERRUPTED, "teacher_unavailable")
        assert status.checkpoint_step == status.step == 25
        serving.teacher.faults.clear()
        assert trained(home, folder, resume=True) == 0
        require_same_as(distilled, folder)


# ---- stopped and killed ------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_stops_at_a_step_boundary_and_a_resume_is_bit_equal(
    home: Home, distilled: RunFolder
) -> None:
    with Serving(WireTeacher()) as serving, held_at(serving, 23):
        folder = home.run("terminated", **with_teacher(serving))
        with process(home, folder) as child:
            wait_for(lambda: made_steps(folder) == 23)
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
        status = status_of(folder)
        assert status.pid == child.pid
        assert (status.state, status.reason) == (RunState.STOPPED, "stopped")
        assert (status.step, status.checkpoint_step) == (23, 23)
    with Serving(WireTeacher()) as serving:
        move(folder, serving)
        with process(home, folder, "--resume") as child:
            assert child.wait(60) == 0
    require_same_as(distilled, folder)


@pytest.mark.long
def test_usr1_ends_a_run_after_its_next_checkpoint_which_resumes_bit_equal(
    home: Home, distilled: RunFolder
) -> None:
    with Serving(WireTeacher()) as serving:
        with held_at(serving, 23) as go:
            folder = home.run("told-usr1", **with_teacher(serving))
            with process(home, folder) as child:
                wait_for(lambda: made_steps(folder) == 23)
                assert status_of(folder).stops_at == "end"
                for _ in range(2):
                    child.send_signal(signal.SIGUSR1)
                wait_for(lambda: status_of(folder).stops_at == "checkpoint")
                assert state_is(folder, RunState.RUNNING)
                go.set()
                assert child.wait(60) == 0
        status = status_of(folder)
        assert (status.state, status.reason) == (RunState.STOPPED, "stopped")
        assert status.message == "stopped at the checkpoint of step 30, as asked"
        assert (status.step, status.checkpoint_step, made_steps(folder)) == (30, 30, 30)
        with process(home, folder, "--resume") as child:
            assert child.wait(60) == 0
    require_same_as(distilled, folder)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_equal(home: Home, distilled: RunFolder) -> None:
    """S1: kill -9 at some step; the final weights are byte-identical, metrics have no gap."""
    with Serving(WireTeacher()) as serving, held_at(serving, 37):
        folder = home.run("killed", **with_teacher(serving))
        with process(home, folder) as child:
            wait_for(lambda: made_steps(folder) == 37)
            assert folder.is_locked()
            child.kill()
            child.wait(60)
    assert not folder.is_locked()
    assert status_of(folder).state is RunState.RUNNING  # a killed process cannot update it
    with Serving(WireTeacher()) as serving:
        move(folder, serving)
        assert trained(home, folder, resume=True) == 0
    assert [line["step"] for line in lines_of(folder)] == list(range(61))
    require_same_as(distilled, folder)


def move(folder: RunFolder, serving: Serving) -> None:
    """Sets the teacher's new address in the run's spec."""
    spec = folder.read_spec()
    assert spec.teacher is not None
    teacher = spec.teacher.model_copy(update={"address": serving.address})
    folder.write_spec(spec.model_copy(update={"teacher": teacher}))


def test_resume_without_a_checkpoint_starts_at_the_first_step(
    home: Home, undisturbed: RunFolder
) -> None:
    folder = home.run("resumed-fresh", **LONG)
    folder.metrics_path.write_text('{"step": 0, "loss/val": 1.0}\n{"step": 1}\n')
    assert trained(home, folder, resume=True) == 0
    require_same_as(undisturbed, folder)


def test_a_corrupt_newest_checkpoint_falls_back_and_changes_no_bit(
    home: Home, undisturbed: RunFolder
) -> None:
    folder = home.run("corrupt", **LONG)
    stop = Stop()
    watch(lambda: made_steps(folder) >= 33, stop)
    assert trained(home, folder, stop=stop) == 0
    assert status_of(folder).state is RunState.STOPPED
    newest = sorted(folder.checkpoints_path.glob("step-*"))[-1] / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 8
    newest.write_bytes(bytes(data))
    assert trained(home, folder, resume=True) == 0
    (event,) = events_of(folder, "checkpoint_set_aside")
    assert event["path"] == f"checkpoints/broken-{newest.parent.name}"
    require_same_as(undisturbed, folder)


def watch(condition: Callable[[], object], stop: Stop) -> None:
    """Requests a stop once the condition holds."""

    def wait() -> None:
        wait_for(condition)
        stop.request()

    threading.Thread(target=wait, daemon=True).start()


def test_a_trainer_stops_with_a_checkpoint_when_its_parent_is_gone(home: Home) -> None:
    folder = home.run("orphan", **{**LONG, "schedule": {"steps": 100_000, "warmup_steps": 0}})
    ours, theirs = os.pipe()
    with process(home, folder, "--stop-with-parent", stdin=ours) as child:
        os.close(ours)
        wait_for(lambda: made_steps(folder) >= 3, 120)
        os.close(theirs)  # as the kernel does for a killed process
        assert child.wait(60) == 0
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.STOPPED, "stopped")
    assert status.message == "stopped because the command that had started it was gone"
    assert status.checkpoint_step == status.step >= 3


@pytest.mark.long
def test_without_the_option_a_trainer_outlives_its_parent(home: Home) -> None:
    folder = home.run("outlives", **{**LONG, "schedule": {"steps": 30, "warmup_steps": 0}})
    ours, theirs = os.pipe()
    os.close(theirs)
    with process(home, folder, stdin=ours) as child:
        os.close(ours)
        assert child.wait(120) == 0
    assert status_of(folder).state is RunState.SUCCEEDED


def test_a_stop_is_obeyed_while_waiting_for_the_teacher(home: Home) -> None:
    with Serving(WireTeacher()) as serving:
        folder = home.run("stopped-waiting", **with_teacher(serving, outage_budget_seconds=3600))
        serving.down()
        stop = Stop()
        watch(lambda: state_is(folder, RunState.WAITING_FOR_TEACHER), stop)
        assert trained(home, folder, stop=stop) == 0
        assert status_of(folder).state is RunState.STOPPED
        assert not list(folder.checkpoints_path.glob("*"))


def test_a_second_signal_ends_the_trainer_at_once(home: Home) -> None:
    folder = home.run("impatient", student={"config": "stuck"})
    stuck = home.path / "models" / "stuck"
    shutil.copytree(home.path / "models" / "small", stuck)
    (stuck / "config.json").unlink()
    os.mkfifo(stuck / "config.json")  # reading it blocks forever
    with process(home, folder) as child:
        wait_for(lambda: (folder.events_path).exists())
        child.send_signal(signal.SIGTERM)
        wait_for(lambda: state_is(folder, RunState.STOPPING))
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 75


def test_a_run_stopped_in_its_first_moments_can_be_resumed(
    home: Home, undisturbed: RunFolder
) -> None:
    folder = home.run("early", **LONG)
    stop = Stop()
    stop.request()
    assert trained(home, folder, stop=stop) == 0
    assert status_of(folder).state is RunState.STOPPED
    assert trained(home, folder, resume=True) == 0
    require_same_as(undisturbed, folder)


def test_the_events_of_a_resumed_run_cover_its_whole_life(home: Home) -> None:
    folder = home.run("told", **LONG)
    stop = Stop()
    watch(lambda: made_steps(folder) >= 5, stop)
    assert trained(home, folder, stop=stop) == 0
    assert trained(home, folder, resume=True) == 0
    states = [event["state"] for event in read_json_lines(folder.events_path) if "state" in event]
    assert states[0] == "starting"
    assert states[-1] == "succeeded"
    assert "stopped" in states
