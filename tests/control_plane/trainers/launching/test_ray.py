"""What is asked of Ray's head, and what its answers mean; see also test_ray_site.py."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.trainers.launching.choice import add_launcher_options, launcher_from
from control_plane.trainers.launching.ray.jobs import AGAIN_SECONDS, FRESH_SECONDS
from control_plane.trainers.launching.ray.launcher import RayLauncher
from control_plane.trainers.launching.seam import Handle, Needs, Sight
from lectern_common.errors import BackendDown, LaunchRefused, Misconfigured
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import spec
from tests.support.fake_ray import FakeRay, fake_ray
from tests.support.fakes import FakeClock


@pytest.fixture
def ray() -> Iterator[FakeRay]:
    with fake_ray() as head:
        yield head


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "it's runs", "steady-1", spec())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def start(
    launcher: RayLauncher,
    folder: RunFolder,
    attempt: int = 1,
    needs: Needs | None = None,
    *,
    resume: bool = False,
) -> Handle:
    return launcher.start(
        folder,
        attempt=attempt,
        resume=resume,
        needs=needs or Needs(),
        environment={"LECTERN_ATTEMPT": str(attempt)},
    )


def test_a_job_asks_for_what_the_run_needs(ray, folder, clock):
    needs = Needs(gpus=2, processes=2, threads=4, memory_bytes=2**30)
    start(ray.launcher(clock, grace_seconds=7.5), folder, needs=needs)
    (body,) = ray.bodies
    asked = [body[f"entrypoint_{name}"] for name in ("num_gpus", "num_cpus", "memory")]
    assert asked == [2, 8, 2**30]
    variables = body["runtime_env"]["env_vars"]
    assert variables["LECTERN_ATTEMPT"] == "1"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 7.5
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"


def test_the_command_is_ours_quoted_and_ends_in_the_runs_log(ray, folder, clock):
    start(ray.launcher(clock), folder, resume=True)
    entrypoint = ray.bodies[0]["entrypoint"]
    words = shlex.split(entrypoint)
    assert words[:6] == ["exec", "python", "-m", "trains", str(folder.path), "--resume"]
    assert words[6:] == [f">>{folder.log_path}", "2>&1", "</dev/null"]


def test_no_secret_is_where_ray_shows_it(ray, folder, clock):
    secret = {"HF_TOKEN": "s3cret", "WANDB_API_KEY": "s3cret", "OTHER": "s3cret"}
    secret |= {"HUGGING_FACE_HUB_TOKEN": "s3cret", "HTTPS_PROXY": "http://me:s3cret@proxy"}
    kept = {"TOKENIZERS_PARALLELISM": "false", "HTTP_PROXY": "http://proxy:1", "HF_HOME": "/hf"}
    launcher = ray.launcher(clock, {**secret, **kept, "CUDA_VISIBLE_DEVICES": "3"})
    start(launcher, folder)
    variables = ray.bodies[0]["runtime_env"]["env_vars"]
    assert "s3cret" not in str(ray.bodies)
    assert kept.items() <= variables.items()
    assert "CUDA_VISIBLE_DEVICES" not in variables


def test_an_attempt_is_submitted_once_whoever_asks_again(ray, folder, clock):
    first = start(ray.launcher(clock), folder)
    assert start(ray.launcher(clock), folder) == first
    ray.jobs[first.id]["status"] = "SUCCEEDED"
    assert start(ray.launcher(clock), folder) == first
    assert ray.launcher(clock).find(folder, 1) is None
    assert len(ray.bodies) == 1
    assert start(ray.launcher(clock), folder, attempt=2) != first


def test_a_submit_that_ray_has_taken_already_is_no_second_job(ray, folder, clock):
    """As after a submit that timed out, and came through after the look for it."""
    launcher = ray.launcher(clock)
    assert launcher.find(folder, 1) is None
    first = start(ray.launcher(clock), folder)
    assert start(launcher, folder) == first
    assert len(ray.bodies) == 2 and len(ray.jobs) == 1


@pytest.mark.parametrize(
    ("status", "exit_code", "sight"),
    [
        ("PENDING", None, Sight.WAITING),
        ("RUNNING", None, Sight.ALIVE),
        ("STOPPED", None, Sight.GONE),
        ("SUCCEEDED", 0, Sight.GONE),
        ("FAILED", -9, Sight.GONE),
    ],
)
def test_what_ray_says_of_a_job_is_seen(ray, folder, clock, status, exit_code, sight):
    launcher = ray.launcher(clock)
    handle = start(launcher, folder)
    ray.jobs[handle.id] |= {"status": status, "driver_exit_code": exit_code}
    clock.advance(FRESH_SECONDS)
    seen = launcher.look(handle)
    assert (seen.sight, seen.exit_status) == (sight, exit_code)
    if sight is Sight.WAITING:
        assert "waiting for resources" in (seen.why or "")
    assert (launcher.find(folder, 1) == handle) is (sight is not Sight.GONE)


def test_a_new_head_that_knows_no_job_means_gone(ray, folder, clock):
    launcher = ray.launcher(clock)
    handle = start(launcher, folder)
    ray.jobs.clear()
    clock.advance(FRESH_SECONDS)
    assert launcher.look(handle).sight is Sight.GONE
    assert launcher.look(handle).exit_status is None
    launcher.kill(handle)
    assert not any(call.endswith("/stop") for call in ray.calls)


@pytest.mark.parametrize(
    "answer",
    [
        (500, "Traceback\nRuntimeError: no agent"),
        (502, "bad gateway"),
        (404, "<html>another program</html>"),
        (302, ""),
        (200, "<html>another program</html>"),
        (200, "[]"),
        (200, "{}"),
    ],
)
def test_a_head_that_does_not_answer_well_is_down_and_changes_nothing(ray, folder, clock, answer):
    launcher = ray.launcher(clock)
    handle = start(launcher, folder)
    ray.answers = answer
    clock.advance(FRESH_SECONDS)
    seen = launcher.look(handle)
    assert seen.sight is Sight.UNKNOWN and "does not answer" in (seen.why or "")
    for ask in (launcher.terminate, launcher.kill, launcher.stop_at_checkpoint):
        with pytest.raises(BackendDown):
            ask(handle)
    with pytest.raises(BackendDown):
        launcher.find(folder, 1)
    with pytest.raises(BackendDown):
        start(launcher, folder, attempt=2)
    ray.answers = None
    clock.advance(AGAIN_SECONDS)
    assert launcher.look(handle).sight is Sight.WAITING


def test_a_head_that_is_away_is_not_asked_again_at_once(folder, clock):
    with fake_ray() as head:
        launcher = head.launcher(clock)
    with pytest.raises(BackendDown, match="does not answer"):
        start(launcher, folder)
    with fake_ray() as head:
        launcher = head.launcher(clock)
        head.answers = 500, ""
        for _ in range(3):
            with pytest.raises(BackendDown):
                launcher.find(folder, 1)
        assert len(head.calls) == 1
        clock.advance(AGAIN_SECONDS)
        head.answers = None
        assert launcher.find(folder, 1) is None


@pytest.mark.parametrize(
    "answer",
    [
        (400, "Traceback (most recent call last):\nTypeError: memory must be a number"),
        (500, "Request failed with status code 400: \nTypeError: memory must be a number\n."),
    ],
)
def test_a_submit_that_ray_refuses_says_so_in_its_words(ray, folder, clock, answer):
    launcher = ray.launcher(clock)
    launcher.find(folder, 1)
    ray.answers = answer
    with pytest.raises(LaunchRefused, match="TypeError: memory must be a number"):
        start(launcher, folder)


def test_a_run_on_several_nodes_is_refused_by_name(ray, folder, clock):
    with pytest.raises(LaunchRefused, match=r"device\.nodes is 2"):
        start(ray.launcher(clock), folder, needs=Needs(nodes=2, processes=2))
    assert ray.bodies == []


@pytest.mark.parametrize("entrypoint", ["exec python -m trains /elsewhere", "rm -r {0}", "'"])
def test_another_job_of_our_id_is_not_ours(ray, folder, clock, entrypoint):
    launcher = ray.launcher(clock)
    handle = start(launcher, folder)
    ray.jobs[handle.id] |= {"entrypoint": entrypoint.format(folder.path), "status": "RUNNING"}
    clock.advance(FRESH_SECONDS)
    assert launcher.look(handle).sight is Sight.GONE
    assert launcher.find(folder, 1) is None
    launcher.kill(handle)
    assert not any(call.endswith("/stop") for call in ray.calls)
    with pytest.raises(LaunchRefused, match=f"has a job {handle.id} that is not of this folder"):
        start(launcher, folder)


def test_a_stop_that_ray_does_not_pass_on_is_to_be_sent_again(ray, folder, clock):
    launcher = ray.launcher(clock)
    handle = start(launcher, folder)
    ray.stops = False
    with pytest.raises(BackendDown, match="did not pass the stop on"):
        launcher.terminate(handle)
    ray.jobs[handle.id]["status"] = "STOPPED"
    clock.advance(FRESH_SECONDS)
    launcher.terminate(handle)


def test_a_stop_at_a_checkpoint_is_a_file_of_the_attempt(ray, folder, clock):
    launcher = ray.launcher(clock)
    handle = start(launcher, folder, attempt=3)
    path = Path(ray.bodies[0]["runtime_env"]["env_vars"]["LECTERN_STOP_AT_CHECKPOINT_FILE"])
    assert not path.exists()
    launcher.stop_at_checkpoint(handle)
    assert path.exists() and path.parent == folder.path and path.name.endswith("-3")
    assert not any(call.endswith("/stop") for call in ray.calls)


def test_the_token_of_the_file_is_sent_and_a_wrong_one_is_an_outage(ray, folder, clock, tmp_path):
    ray.token = "right"
    path = tmp_path / "token"
    path.write_text("wrong\n")
    launcher = ray.launcher(clock, token_file=path)
    for content in ("wrong\n", None):
        path.write_text(content) if content else path.unlink()
        clock.advance(AGAIN_SECONDS)
        with pytest.raises(BackendDown, match="--ray-token-file") as raised:
            launcher.find(folder, 1)
        assert "wrong" not in str(raised.value)
    path.write_text("right\n")
    clock.advance(AGAIN_SECONDS)
    assert launcher.find(folder, 1) is None


def chosen(*words: str) -> RayLauncher:
    parser = argparse.ArgumentParser()
    add_launcher_options(parser.add_argument)
    options = parser.parse_args(words)
    options.stop_grace_seconds = 60.0
    made = launcher_from(options, ("python",), {}, lambda: None)
    assert isinstance(made, RayLauncher)
    return made


def test_options_of_ray_choose_it_and_are_checked(tmp_path: Path) -> None:
    chosen("--launcher", "ray").close()
    empty = tmp_path / "empty"
    empty.touch()
    for words in (
        ("--ray-address", "http://head:8265"),
        ("--launcher", "ray", "--slurm-partition", "big"),
        ("--launcher", "ray", "--ray-address", "ray://head:10001"),
        ("--launcher", "ray", "--ray-address", "http://me:secret@head:8265"),
        ("--launcher", "ray", "--ray-token-file", str(tmp_path / "missing")),
        ("--launcher", "ray", "--ray-token-file", str(empty)),
    ):
        with pytest.raises(Misconfigured, match=r"--(ray|slurm)-") as raised:
            chosen(*words)
        assert "secret" not in str(raised.value)
