"""The reconcile loop, with trainers that do what the test says."""

from typing import NoReturn

import pytest
import sqlalchemy as sa

from control_plane.runs.decisions import MAX_RESTARTS
from control_plane.trainers.devices import Devices
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Identity
from lectern_common.run.status import ATTEMPT_VARIABLE, RunState
from lectern_common.spec.load import parse_spec
from tests.control_plane.conftest import Bench, spec_body
from tests.support.fakes import FakeProcess


def seen(bench: Bench, run_id: str) -> tuple[str, str | None]:
    run = bench.runs.get(run_id)
    return run.state.value, run.reason


def test_a_queued_run_gets_a_folder_with_its_spec_and_a_process(bench):
    run = bench.create()
    bench.tick()
    started = bench.runs.get(run.id)
    process = bench.processes.last()
    assert started.state is RunState.STARTING
    assert (started.pid, started.slots) == (process.identity.pid, ["cpu"])
    assert bench.processes.resumed == [False]
    assert RunFolder(bench.roots.runs / run.id).read_spec() == run.run_spec


def test_a_run_that_stops_early_has_succeeded_and_says_why(bench):
    run = bench.create()
    bench.tick()
    process = bench.processes.last()
    process.say("succeeded", reason="early_stopped", message="no lower loss", step=8)
    process.end(0)
    bench.tick()
    ended = bench.runs.get(run.id)
    assert (str(ended.state), ended.reason, ended.message) == (
        "succeeded",
        "early_stopped",
        "no lower loss",
    )


def test_a_run_goes_from_queued_to_succeeded(bench):
    run = bench.started()
    assert run.state is RunState.RUNNING
    process = bench.processes.last()
    process.say("succeeded", step=20, checkpoint_step=20, latest={"loss/val": 2.5})
    bench.tick(1)
    assert seen(bench, run.id) == ("running", None)  # it is still there
    process.end(0)
    bench.tick(1)
    assert bench.states(run.id) == ["queued", "starting", "running", "succeeded"]
    ended = bench.runs.get(run.id)
    assert (ended.pid, ended.slots) == (None, None)
    assert ended.last_status.latest == {"loss/val": 2.5}


def test_a_run_beyond_the_limit_waits_for_a_free_place(bench):
    runs = [bench.create(f"run-{number}") for number in range(4)]
    bench.tick()
    assert [bench.runs.get(run.id).state.value for run in runs] == ["starting"] * 2 + ["queued"] * 2
    first = bench.processes.started[0]
    first.say("succeeded")
    first.end(0)
    bench.tick(1)
    states = [bench.runs.get(run.id).state.value for run in runs]
    assert states == ["succeeded", "starting", "starting", "queued"]


def test_each_cuda_device_takes_one_run_and_the_cpu_the_rest(tmp_path):
    bench = Bench.of(tmp_path, Devices(("0", "1"), max_running=4, cores=8))
    for name in ("a", "b", "c"):
        bench.create(name, device={"kind": "auto"})
    bench.create("d", device={"kind": "cpu"})
    bench.tick()
    given = [
        (each.get("CUDA_VISIBLE_DEVICES"), each["OMP_NUM_THREADS"])
        for each in bench.processes.environments
    ]
    assert given == [("0", "2"), ("1", "2"), (None, "2")]
    names = [process.folder.run_id[0] for process in bench.processes.started]
    assert names == ["a", "b", "d"]
    bench.store.close()


def test_a_run_on_two_gpus_gets_both_at_once_and_is_not_overtaken(tmp_path):
    bench = Bench.of(tmp_path, Devices(("0", "5"), max_running=4, cores=8))
    first = bench.started("first")
    both = bench.create("both", device={"count": 2})
    younger = bench.create("younger")
    bench.tick()
    assert seen(bench, both.id) == seen(bench, younger.id) == ("queued", None)
    bench.processes.last(first.id).say("succeeded")
    bench.processes.last(first.id).end(0)
    bench.tick(1)
    started = bench.runs.get(both.id)
    assert (started.slots, started.threads) == (["cuda:0", "cuda:5"], 1)
    assert bench.processes.environments[-1] == {
        "CUDA_VISIBLE_DEVICES": "0,5",
        "OMP_NUM_THREADS": "1",
        ATTEMPT_VARIABLE: "1",
    }
    assert seen(bench, younger.id) == ("queued", None)
    bench.processes.last(both.id).say("succeeded")
    bench.processes.last(both.id).end(0)
    bench.tick(1)
    assert bench.runs.get(both.id).slots is None
    assert bench.runs.get(younger.id).slots == ["cuda:0"]
    bench.store.close()


def test_a_run_of_several_processes_on_the_cpu_gets_threads_for_each(tmp_path):
    bench = Bench.of(tmp_path, Devices((), max_running=2, cores=12))
    run = bench.create("two", device={"kind": "cpu", "count": 2})
    own = bench.create("own", device={"kind": "cpu", "threads": 5})
    bench.tick()
    assert [bench.runs.get(one.id).slots for one in (run, own)] == [["cpu", "cpu"], ["cpu"]]
    assert [made["OMP_NUM_THREADS"] for made in bench.processes.environments] == ["3", "5"]
    bench.store.close()


def test_a_stop_signals_the_trainer_once_and_waits_for_its_status(bench):
    run = bench.started()
    process = bench.processes.last()
    bench.commands.request_stop(run.id)
    for _ in range(5):
        bench.tick(10)
    assert process.terminated == 1
    process.say("stopped", step=3, checkpoint_step=3)
    process.end(0)
    bench.tick(1)
    assert seen(bench, run.id) == ("stopped", "stopped")


def test_a_trainer_that_already_stops_is_not_signalled_by_the_next_control_plane(bench):
    run = bench.started()
    process = bench.processes.last()
    bench.commands.request_stop(run.id)
    bench.tick()
    process.say("stopping")
    bench.restart()
    bench.tick(20)
    assert process.terminated == 1


def test_a_signal_that_was_recorded_but_not_sent_is_sent_by_the_next_control_plane(bench):
    run = bench.started()
    bench.commands.request_stop(run.id)
    bench.commands.stop_sent(run.id)  # and then it died
    bench.restart()
    bench.tick(1)
    assert bench.processes.last().terminated == 0
    bench.tick(10)
    assert bench.processes.last().terminated == 1


def test_a_trainer_that_does_not_stop_is_killed_after_the_grace(bench):
    run = bench.started()
    process = bench.processes.last()
    process.say("running", step=9, checkpoint_step=5)
    bench.commands.request_stop(run.id)
    bench.tick(1)
    bench.tick(59)
    assert not process.killed
    bench.tick(2)
    assert process.killed
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "killed")
    assert "within 60 s" in bench.runs.get(run.id).message
    assert "checkpoint is step 5" in bench.runs.get(run.id).message
    bench.tick(1000)
    assert len(bench.processes.started) == 1


def test_a_restarted_run_that_ends_while_stopping_keeps_its_checkpoint(bench):
    run = bench.started()
    process = bench.processes.last()
    process.say("starting", reason="rank_lost", step=4, checkpoint_step=4)
    bench.commands.request_stop(run.id)
    process.end(-9)
    bench.tick()
    assert seen(bench, run.id) == ("interrupted", "killed")
    assert "the newest checkpoint is step 4" in (bench.runs.get(run.id).message or "")


def test_a_run_stopped_while_it_starts_ends_as_stopped(bench):
    run = bench.create()
    bench.tick()
    bench.commands.request_stop(run.id)
    bench.tick(1)
    assert bench.processes.last().terminated == 1
    bench.processes.last().end(-15)
    bench.tick(1)
    assert seen(bench, run.id) == ("stopped", "stopped")


def test_a_killed_trainer_is_interrupted_and_resumes_by_itself(bench):
    run = bench.started()
    bench.processes.last().end(-9)
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "killed")
    assert "SIGKILL" in bench.runs.get(run.id).message
    bench.tick(2)
    assert bench.runs.get(run.id).state is RunState.STARTING
    assert bench.processes.resumed == [False, True]
    bench.processes.last().say("running", step=2)
    bench.tick(1)
    assert seen(bench, run.id) == ("running", None)


def test_the_status_of_an_earlier_attempt_is_ignored(bench):
    run = bench.started()
    first = bench.processes.last()
    first.end(-9)
    bench.tick(1)
    bench.tick(2)
    first.say("succeeded")  # the file still holds what the dead one wrote
    bench.tick(1)
    assert seen(bench, run.id) == ("starting", None)
    bench.processes.last().end(-9)
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "killed")


def test_a_run_whose_trainer_keeps_crashing_fails(bench):
    run = bench.create()
    for _ in range(MAX_RESTARTS + 1):
        bench.tick(100)
        bench.processes.last().say("running", step=1)
        bench.tick(1)
        bench.processes.last().end(1)
        bench.tick(1)
    assert seen(bench, run.id) == ("failed", "crash_loop")
    bench.tick(1000)
    assert len(bench.processes.started) == MAX_RESTARTS + 1
    assert bench.commands.request_resume(run.id).state is RunState.QUEUED


def test_a_trainer_without_any_status_fails_with_its_last_log_line(bench):
    run = bench.create()
    bench.tick()
    RunFolder(bench.roots.runs / run.id).log_path.write_text("ImportError: no torch\n\n")
    bench.processes.last().end(1)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "start_failed")
    assert bench.runs.get(run.id).message.endswith("ImportError: no torch")


def test_an_exit_status_is_known_until_the_end_of_the_run_is_recorded(bench):
    run = bench.create()
    bench.tick()
    process, kill = bench.processes.last(), bench.processes.kill
    process.end(1)

    def kills_and_forgets(identity):
        kill(identity)
        process.exit_status = None

    bench.processes.kill = kills_and_forgets
    with bench.store.writing():  # the database is busy
        bench.tick(1)
    assert bench.runs.get(run.id).state is RunState.STARTING
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "start_failed")


@pytest.mark.parametrize("reason", ["teacher_unavailable", "some_other_reason"])
def test_a_run_whose_end_does_not_heal_waits_for_the_user(bench, reason):
    run = bench.started()  # without a teacher that could answer again
    bench.processes.last().say("interrupted", reason=reason, message="why")
    bench.processes.last().end(75)
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", reason)
    bench.tick(10_000)
    assert len(bench.processes.started) == 1
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert bench.processes.resumed == [False, True]


def test_a_failed_run_says_why(bench):
    run = bench.started()
    bench.processes.last().say("failed", reason="diverged", message="the loss is not finite")
    bench.processes.last().end(1)
    bench.tick(1)
    assert seen(bench, run.id) == ("failed", "diverged")
    assert bench.runs.get(run.id).message == "the loss is not finite"


def test_a_trainer_stopped_from_outside_resumes(bench):
    run = bench.started()
    bench.processes.last().say("stopped", step=4, checkpoint_step=4)
    bench.processes.last().end(0)
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "stopped_from_outside")
    bench.tick(5)
    assert bench.processes.resumed == [False, True]


def test_a_trainer_that_has_ended_but_does_not_exit_is_killed(bench):
    run = bench.started()
    process = bench.processes.last()
    process.say("succeeded")
    bench.tick()
    bench.tick(29)
    assert not process.killed
    bench.tick(5)
    assert process.killed
    bench.tick(1)
    assert seen(bench, run.id) == ("succeeded", None)


def test_running_trainers_are_adopted_by_the_next_control_plane(bench):
    runs = [bench.started("one"), bench.started("two")]
    bench.restart()
    bench.tick(1)
    assert [bench.runs.get(run.id).pid for run in runs] == [run.pid for run in runs]
    assert len(bench.processes.started) == 2


def test_a_run_that_ended_without_a_control_plane_is_recorded_as_it_ended(bench):
    run, other = bench.started("one"), bench.started("two")
    first, second = bench.processes.started
    first.say("succeeded")
    first.end(0)
    second.end(-9)
    bench.restart()
    bench.tick(1)
    assert seen(bench, run.id) == ("succeeded", None)
    assert seen(bench, other.id) == ("interrupted", "killed")


def test_a_process_without_a_recorded_pid_is_found_and_not_started_again(bench):
    """The control plane died between starting the process and recording its pid."""
    run = bench.create()
    bench.commands.claim(run.id, ("cpu",))
    folder = RunFolder.create(bench.roots.runs, run.id, run.run_spec)
    made = bench.processes.start(folder, resume=False, environment={})
    bench.restart()
    bench.tick(1)
    assert bench.runs.get(run.id).pid == made.pid
    assert len(bench.processes.started) == 1


def test_a_claim_without_a_process_is_completed(bench):
    """The control plane died between marking the run and starting the process."""
    run = bench.create()
    bench.commands.claim(run.id, ("cpu",))
    bench.restart()
    bench.tick(1)
    assert len(bench.processes.started) == 1
    assert bench.runs.get(run.id).pid == bench.processes.last().identity.pid


def test_a_folder_without_its_spec_is_completed(bench):
    """The control plane died between creating the folder and writing the spec."""
    run = bench.create()
    bench.commands.claim(run.id, ("cpu",))
    (bench.roots.runs / run.id).mkdir()
    bench.restart()
    bench.tick(1)
    assert RunFolder(bench.roots.runs / run.id).read_spec() == run.run_spec
    assert bench.processes.resumed == [False]


def test_a_run_that_ended_before_its_pid_was_recorded_is_not_started_again(bench):
    run = bench.create()
    bench.commands.claim(run.id, ("cpu",))
    folder = RunFolder.create(bench.roots.runs, run.id, run.run_spec)
    bench.processes.start(folder, resume=False, environment={ATTEMPT_VARIABLE: "1"})
    bench.processes.last().say("succeeded")
    bench.processes.last().end(0)
    bench.restart()
    bench.tick(1)
    assert seen(bench, run.id) == ("succeeded", None)
    assert len(bench.processes.started) == 1


def test_a_trainer_started_by_hand_is_adopted_by_its_status(bench):
    run = bench.started()
    bench.processes.last().end(-9)
    bench.tick(1)
    folder = RunFolder(bench.roots.runs / run.id)
    by_hand = bench.processes.start(folder, resume=True, environment={})
    bench.processes.last().say("running", step=7)
    bench.tick(5)
    assert len(bench.processes.started) == 2
    assert bench.runs.get(run.id).pid == by_hand.pid


def test_a_folder_locked_by_another_process_is_left_alone(bench):
    run = bench.create()
    folder = RunFolder.create(bench.roots.runs, run.id, run.run_spec)
    with folder.locked():
        bench.tick(1)
    assert seen(bench, run.id) == ("failed", "launch_failed")
    assert "another" in bench.runs.get(run.id).message
    assert bench.processes.started == []


def test_a_process_that_cannot_be_started_fails_only_its_run(bench):
    first, second = bench.create("one"), bench.create("two")
    bench.processes.fail_next = OSError(12, "Cannot allocate memory")
    bench.tick()
    assert seen(bench, first.id) == ("failed", "launch_failed")
    assert seen(bench, second.id) == ("starting", None)


def test_an_unreadable_status_does_not_end_a_living_run(bench):
    run, other = bench.started("one"), bench.started("two")
    RunFolder(bench.roots.runs / run.id).status_path.write_text("{")
    bench.processes.last(other.id).say("running", step=5)
    bench.tick(1)
    assert seen(bench, run.id) == ("running", "status_unreadable")
    assert bench.runs.get(other.id).last_status.step == 5


def test_text_that_is_not_valid_unicode_does_not_hide_a_run(bench):
    run = bench.started()
    bench.processes.last().say("waiting_for_teacher", message="no file \udcff")
    bench.tick(1)
    assert seen(bench, run.id) == ("waiting_for_teacher", None)
    assert bench.runs.get(run.id).message == "no file ?"


def test_the_spec_of_a_resume_reaches_the_folder(bench):
    run = bench.started()
    bench.commands.request_stop(run.id)
    bench.processes.last().say("stopped", checkpoint_step=4)
    bench.processes.last().end(0)
    bench.tick(1)
    longer = parse_spec(spec_body(steps=99))
    bench.commands.request_resume(run.id, lambda _: longer)
    bench.tick(1)
    assert RunFolder(bench.roots.runs / run.id).read_spec() == longer
    assert bench.processes.resumed == [False, True]


def test_stop_all_checkpoints_every_run_and_the_next_start_resumes_them(bench):
    running, queued = [bench.started("one"), bench.started("two")], bench.create("three")

    def obey(_seconds: float) -> None:
        for process in bench.processes.alive():
            if process.terminated:
                process.say("stopped", step=6, checkpoint_step=6)
                process.end(0)

    bench.reconciler.stop_all(sleep=obey)
    assert bench.processes.alive() == []
    assert [process.terminated for process in bench.processes.started] == [1, 1]
    for run in running:
        assert seen(bench, run.id) == ("interrupted", "control_plane_stopped")
    assert seen(bench, queued.id) == ("queued", None)

    bench.restart()
    bench.tick(1)
    assert [process.folder.run_id for process in bench.processes.alive()] == [
        run.id for run in running
    ]
    assert bench.processes.resumed == [False, False, True, True]


def test_stop_all_kills_trainers_that_do_not_stop_in_time(bench):
    run = bench.started()
    times = iter(range(0, 10_000, 10))
    bench.reconciler.stop_all(sleep=lambda _: None, monotonic=lambda: next(times))
    assert bench.processes.last().killed
    assert seen(bench, run.id) == ("interrupted", "control_plane_stopped")
    assert bench.runs.get(run.id).resumes_itself


def fill_database(bench: Bench) -> None:
    """From now on nothing can be written, as on a full disk."""

    def full() -> NoReturn:
        raise sa.exc.OperationalError("UPDATE", {}, Exception("database or disk is full"))

    bench.store.writing = full  # type: ignore[method-assign]  # for the rest of the test


def test_stop_all_signals_every_trainer_even_if_the_database_is_full(bench):
    """A trainer that is not told to stop would die with its container, without a checkpoint."""
    runs = [bench.started("one"), bench.started("two")]
    fill_database(bench)
    times = iter(range(0, 10_000, 10))

    def obey(_seconds: float) -> None:
        for process in bench.processes.alive():
            if process.terminated:
                process.say("stopped", step=6, checkpoint_step=6)
                process.end(0)

    bench.reconciler.stop_all(sleep=obey, monotonic=lambda: next(times))
    assert [process.terminated for process in bench.processes.started] == [1, 1]
    assert not any(process.killed for process in bench.processes.started)

    del bench.store.writing
    bench.restart()
    bench.tick(1)
    bench.tick(2)
    assert bench.processes.resumed == [False, False, True, True]
    assert {bench.runs.get(run.id).state.value for run in runs} == {"starting"}


def test_a_full_database_does_not_keep_a_run_from_being_stopped(bench):
    bench.started("one")
    run = bench.started("two")
    bench.commands.request_stop(run.id)
    bench.processes.started[0].say("running", step=7)
    fill_database(bench)
    bench.reconciler.tick()
    bench.reconciler.tick()
    assert [process.terminated for process in bench.processes.started] == [0, 1]


def belongs_to_another_user(bench: Bench, of_another_user: FakeProcess) -> None:
    terminate = bench.processes.terminate

    def refuse(process: Identity) -> None:
        if process == of_another_user.identity:
            raise PermissionError("it belongs to another user")
        terminate(process)

    bench.processes.terminate = refuse  # type: ignore[method-assign]  # for the rest of the test


def test_a_trainer_that_cannot_be_signalled_does_not_keep_others_from_being_stopped(bench):
    for run in [bench.started("one"), bench.started("two")]:
        bench.commands.request_stop(run.id)
    first, second = bench.processes.started
    belongs_to_another_user(bench, first)
    bench.tick(1)
    assert (first.terminated, second.terminated) == (0, 1)


def test_stop_all_kills_a_trainer_that_cannot_be_signalled_last(bench):
    for name in ("one", "two"):
        bench.started(name)
    first, second = bench.processes.started
    belongs_to_another_user(bench, first)
    times = iter(range(0, 10_000, 10))
    bench.reconciler.stop_all(sleep=lambda _: second.end(0), monotonic=lambda: next(times))
    assert (first.terminated, second.terminated) == (0, 1)
    assert (first.killed, second.killed) == (True, False)


def test_a_run_killed_with_its_control_plane_during_stop_all_resumes(bench):
    """A container's grace is over: SIGTERM reached the trainer, its end was never recorded."""
    run = bench.started()
    bench.processes.last().say("stopped", step=6, checkpoint_step=6)
    bench.processes.last().end(0)
    bench.restart()
    bench.tick(1)
    bench.tick(2)
    assert bench.processes.resumed == [False, True]
    assert bench.runs.get(run.id).state is RunState.STARTING


def test_a_reused_pid_is_not_taken_for_the_trainer(bench):
    run = bench.started()
    bench.processes.last().end(-9)
    stranger = bench.processes.start(
        RunFolder(bench.roots.runs / "other"), resume=False, environment={}
    )
    bench.processes.last().identity = Identity(run.pid, "this-boot", stranger.start_ticks)
    bench.restart()
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "killed")
    assert not bench.processes.last().killed
