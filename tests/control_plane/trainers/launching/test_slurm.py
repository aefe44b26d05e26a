"""What is asked of Slurm's commands, and what their answers mean; see also test_slurm_site.py."""

from pathlib import Path

import pytest

from control_plane.trainers.launching.seam import Handle, Needs, Sight
from control_plane.trainers.launching.slurm.commands import FIRST_WAIT_SECONDS
from control_plane.trainers.launching.slurm.launcher import SlurmLauncher
from control_plane.trainers.launching.slurm.script import claim_path
from lectern_common.errors import BackendDown, LaunchRefused
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import spec
from tests.support.fake_slurm import FakeSlurm
from tests.support.fakes import FakeClock

LIMIT = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit, user's size and/or time limits)"
)
TOO_LONG = LIMIT.replace("QOSMaxSubmitJobPerUserLimit", "QOSMaxWallDurationPerJobLimit")
AWAY = "squeue: error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    (tmp_path / "slurm").mkdir()
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "steady-1", spec())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def start(
    launcher: SlurmLauncher, folder: RunFolder, attempt: int = 1, needs: Needs | None = None
) -> Handle:
    return launcher.start(
        folder,
        attempt=attempt,
        resume=False,
        needs=needs or Needs(),
        environment={"LECTERN_ATTEMPT": str(attempt)},
    )


def test_a_job_asks_for_what_the_run_needs_and_inherits_no_secret(slurm, folder, clock):
    options = {"partition": "big", "account": "us", "gres": "gpu:a100", "time_limit": "8:00:00"}
    launcher = slurm.launcher(clock, **options, signal_seconds=90)
    handle = start(launcher, folder, needs=Needs(gpus=2, processes=2, threads=4))
    (call,) = slurm.calls("sbatch")
    words = call["words"]
    expected = ("big", "us", "gpu:a100:2", "8:00:00", "B:TERM@90", "8", "1", "singleton")
    names = (
        *("partition", "account", "gres", "time", "signal", "cpus-per-task", "nodes"),
        "dependency",
    )
    for name, value in zip(names, expected, strict=True):
        assert f"--{name}={value}" in words
    assert "--requeue" in words
    assert call["environment"]["LECTERN_ATTEMPT"] == "1"
    assert "SECRET" not in call["environment"]
    assert "exec " in call["stdin"] and str(folder.path) in call["stdin"]
    assert str(handle).startswith("slurm:1/")


def test_several_nodes_get_a_torchrun_each_and_signals_go_to_their_steps(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    handle = start(launcher, folder, needs=Needs(gpus=4, nodes=2, processes=8))
    (call,) = slurm.calls("sbatch")
    assert {"--nodes=2", "--ntasks=2", "--gres=gpu:4", "--signal=TERM@120"} <= set(call["words"])
    script = call["stdin"]
    assert "exec srun" in script and "--nnodes=2 --nproc-per-node=4" in script
    slurm.set_job("1", state="RUNNING")
    clock.advance(5)
    launcher.terminate(handle)
    launcher.stop_at_checkpoint(handle)
    said = [call["words"] for call in slurm.calls("scancel")]
    assert said == [["scancel", "--signal=TERM", "1"], ["scancel", "--signal=USR1", "1"]]


def test_a_job_without_steps_is_signalled_through_its_batch_script(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    handle = start(launcher, folder)
    slurm.set_job("1", state="RUNNING")
    clock.advance(5)
    launcher.terminate(handle)
    (call,) = slurm.calls("scancel")
    assert call["words"] == ["scancel", "--signal=TERM", "--batch", "1"]


def test_an_attempt_is_submitted_once_whoever_asks_again(slurm, folder, clock):
    first = start(slurm.launcher(clock), folder)
    assert start(slurm.launcher(clock), folder) == first
    slurm.set_job("1", state="COMPLETED")
    assert start(slurm.launcher(clock), folder) == first
    assert slurm.launcher(clock).find(folder, 1) is None
    claim_path(folder, 1).write_text("1\n")
    slurm.forget_jobs()
    assert start(slurm.launcher(clock), folder) == first
    assert len(slurm.calls("sbatch")) == 1
    assert start(slurm.launcher(clock), folder, attempt=2) != first


def test_the_job_that_claimed_an_attempt_is_the_one_of_the_attempt(slurm, folder, clock):
    start(slurm.launcher(clock), folder)
    (call,) = slurm.calls("sbatch")
    again = call["words"][1:]
    slurm.launcher(clock)._slurm.submit(again, "", {})
    claim_path(folder, 1).write_text("2\n")
    found = slurm.launcher(clock).find(folder, 1)
    assert found is not None and found.id.startswith("2/")
    slurm.launcher(clock).kill(found)
    assert slurm.calls("scancel")[-1]["words"] == ["scancel", "1", "2"]


def test_a_claim_of_another_runs_job_is_not_believed(slurm, folder, clock, tmp_path):
    other = RunFolder.create(tmp_path / "runs", "other-1", spec("other"))
    start(slurm.launcher(clock), other)
    claim_path(folder, 1).write_text("1\n")
    assert slurm.launcher(clock).find(folder, 1) is None


def test_all_jobs_are_asked_for_at_once_and_not_twice_a_second(slurm, folder, clock, tmp_path):
    launcher = slurm.launcher(clock)
    folders = [RunFolder.create(tmp_path / "runs", f"run-{n}", spec()) for n in range(3)]
    handles = [start(launcher, one) for one in folders]
    clock.advance(5)
    before = len(slurm.calls("squeue"))
    assert {launcher.look(handle).why for handle in handles} == {"PENDING (Priority)"}
    assert len(slurm.calls("squeue")) == before + 1


@pytest.mark.parametrize(
    ("state", "raw", "sight", "exit_status"),
    [
        ("PENDING", "0", Sight.WAITING, None),
        ("CONFIGURING", "0", Sight.WAITING, None),
        ("RUNNING", "0", Sight.ALIVE, None),
        ("SUSPENDED", "0", Sight.ALIVE, None),
        ("COMPLETING", "0", Sight.ALIVE, None),
        ("COMPLETED", "0", Sight.GONE, 0),
        ("FAILED", "768", Sight.GONE, 3),
        ("FAILED", "9", Sight.GONE, -9),
        ("CANCELLED", "0", Sight.GONE, None),
        ("TIMEOUT", "0", Sight.GONE, None),
        ("NODE_FAIL", "256", Sight.GONE, None),
    ],
)
def test_states_of_jobs(slurm, folder, clock, state, raw, sight, exit_status):
    launcher = slurm.launcher(clock)
    handle = start(launcher, folder)
    slurm.set_job("1", state=state, raw=raw)
    clock.advance(5)
    seen = launcher.look(handle)
    assert (seen.sight, seen.exit_status) == (sight, exit_status)


def test_a_job_that_slurm_has_forgotten_is_gone_and_so_is_one_of_another_name(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    handle = start(launcher, folder)
    slurm.set_job("1", state="RUNNING", name="somebody-elses")
    clock.advance(5)
    assert launcher.look(handle).sight is Sight.GONE
    slurm.forget_jobs()
    clock.advance(5)
    assert launcher.look(handle).sight is Sight.GONE


def test_a_controller_that_is_away_is_unknown_and_asked_rarely(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    handle = start(launcher, folder)
    slurm.say("away", AWAY)
    clock.advance(5)
    before = len(slurm.calls("squeue"))
    for _ in range(10):
        seen = launcher.look(handle)
        clock.advance(0.1)
    assert seen.sight is Sight.UNKNOWN
    assert "Unable to contact slurm controller" in (seen.why or "")
    assert len(slurm.calls("squeue")) == before + 1
    for call in (launcher.terminate, launcher.kill, launcher.stop_at_checkpoint):
        with pytest.raises(BackendDown):
            call(handle)
    slurm.say("away", "")
    clock.advance(5)
    assert launcher.look(handle).sight is Sight.WAITING


def test_a_signal_that_slurm_did_not_take_is_an_outage_unless_the_job_is_over(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    handle = start(launcher, folder)
    slurm.set_job("1", state="RUNNING")
    clock.advance(5)
    launcher.look(handle)
    slurm.say("away", "scancel: error: Kill job error on job id 1: Socket timed out on send/recv")
    with pytest.raises(BackendDown, match="did not take the signal"):
        launcher.terminate(handle)
    slurm.say("away", "")
    clock.advance(5)
    launcher.look(handle)
    slurm.say(
        "away",
        "scancel: error: Kill job error on job id 1: Job/step already completing or completed",
    )
    launcher.terminate(handle)


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        TOO_LONG,
    ],
)
def test_what_can_never_start_is_refused_in_slurms_words(slurm, folder, clock, said):
    slurm.say("refuses", said)
    with pytest.raises(LaunchRefused) as refused:
        start(slurm.launcher(clock), folder)
    assert said.splitlines()[0].split(" error: ")[1] in str(refused.value)


def test_a_limit_on_submits_is_tried_again_after_growing_waits(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    slurm.say("refuses", LIMIT)
    for _ in range(20):
        with pytest.raises(BackendDown, match="QOSMaxSubmitJobPerUserLimit"):
            start(launcher, folder)
        clock.advance(FIRST_WAIT_SECONDS)
    assert len(slurm.calls("sbatch")) == 5  # at 0, 15, 45, 105 and 225 of 300 s
    assert launcher.slowed() is not None
    slurm.say("refuses", "")
    clock.advance(600)
    assert start(launcher, folder).backend == "slurm"
    assert launcher.slowed() is None


def test_a_submit_that_was_not_answered_but_came_through_is_found(slurm, folder, clock):
    launcher = slurm.launcher(clock)
    slurm.say("refuses", "sbatch: error: Batch job submission failed: Socket timed out on send")
    with pytest.raises(BackendDown):
        start(launcher, folder)
    (call,) = slurm.calls("sbatch")
    slurm.say("refuses", "")
    slurm.launcher(clock)._slurm.submit(call["words"][1:], "", {})
    assert start(launcher, folder) == slurm.launcher(clock).find(folder, 1)
    assert len(slurm.calls("sbatch")) == 2
