"""The contract of a backend, and what is Ray's own, over a real head; see also test_ray.py."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from control_plane.trainers.launching.ray.jobs import Jobs
from control_plane.trainers.launching.ray.launcher import RayLauncher, RayOptions
from control_plane.trainers.launching.seam import Handle, Needs, Sight
from lectern_common.errors import BackendDown, LaunchRefused
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from tests.control_plane.conftest import STAND_IN, spec
from tests.control_plane.trainers.launching.contract import *  # noqa: F403
from tests.control_plane.trainers.launching.contract import Backend
from tests.support.ray import CPUS, Head, ray_head, why_no_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(why_no_ray() is not None, reason=str(why_no_ray())),
]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("ray"), "a-token-of-this-test-only") as made:
        yield made


@pytest.fixture
def launchers() -> Iterator[list[RayLauncher]]:
    made: list[RayLauncher] = []
    yield made
    for one in made:
        one.close()


@pytest.fixture
def backend(head: Head, tmp_path: Path, launchers: list[RayLauncher]) -> Backend:
    def launcher(token_file: Path | None = head.token_file, grace: float = 8.0) -> RayLauncher:
        options = RayOptions(head.address, token_file, grace)
        launchers.append(RayLauncher(STAND_IN, options=options))
        return launchers[-1]

    def new_folder(*, crashes: bool = False, name: str = "steady") -> RunFolder:
        name = "crash" if crashes else name
        asked = spec(name, schedule={"steps": 100_000, "warmup_steps": 0})
        return RunFolder.create(tmp_path / "it's runs", f"{name}-1", asked)

    return Backend(launcher, new_folder, processes_of, patience_seconds=60)


def processes_of(folder: RunFolder) -> int:
    found = psutil.process_iter(["cmdline", "status"])
    alive = [one for one in found if one.info["status"] != psutil.STATUS_ZOMBIE]
    return sum(str(folder.path) in (one.info["cmdline"] or ()) for one in alive)


def test_ray_takes_a_submission_id_once(backend: Backend, head: Head) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    body = {"submission_id": handle.id, "entrypoint": "exec true"}
    with contextlib.closing(Jobs(head.address, head.token_file)) as jobs:
        assert jobs.submit(body) is False
        with pytest.raises(LaunchRefused, match="metadata"):
            jobs.submit({**body, "submission_id": "bad", "metadata": {"attempt": 1}})
    backend.until_it_trains(folder)
    assert launcher.look(handle).sight is Sight.ALIVE
    assert backend.processes(folder) == 1
    assert f"training {folder.run_id} from step 0" in folder.log_path.read_text()
    launcher.kill(handle)


def test_a_trainer_that_ignores_sigterm_is_killed_by_ray_after_its_wait(backend: Backend) -> None:
    launcher, folder = backend.launcher(grace=1.0), backend.folder(name="stubborn")
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    launcher.terminate(handle)
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    backend.until(lambda: backend.processes(folder) == 0)
    status = folder.read_status()
    assert status is not None and status.state is RunState.RUNNING


def test_a_job_waits_for_what_is_in_use_and_one_that_was_killed_in_line_does_not_train(
    backend: Backend,
) -> None:
    launcher, folder, other = backend.launcher(), backend.folder(), backend.folder(name="waits")
    needs = Needs(threads=CPUS)
    first = launcher.start(folder, attempt=1, resume=False, needs=needs, environment={})
    backend.until_it_trains(folder)
    second = launcher.start(other, attempt=1, resume=False, needs=needs, environment={})
    seen = launcher.look(second)
    assert seen.sight is Sight.WAITING and "waiting for resources" in (seen.why or "")
    assert launcher.find(other, 1) == second
    launcher.kill(second)
    launcher.kill(first)
    backend.until(lambda: launcher.look(second).sight is Sight.GONE)
    backend.until(lambda: backend.processes(folder) + backend.processes(other) == 0)
    status = other.read_status()
    assert status is None or status.state in (RunState.STARTING, RunState.STOPPED)


def test_several_nodes_are_refused(backend: Backend) -> None:
    with pytest.raises(LaunchRefused, match=r"device\.nodes is 2"):
        backend.launcher().start(
            backend.folder(), attempt=1, resume=False, needs=Needs(nodes=2), environment={}
        )


def test_a_token_that_is_wrong_or_missing_is_an_outage(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "wrong").write_text("not-the-token-of-this-test\n")
    folder = backend.folder()
    for token_file in (tmp_path / "wrong", None):
        with pytest.raises(BackendDown, match="refuses the token"):
            backend.start(backend.launcher(token_file), folder)


def test_a_head_that_dies_takes_its_jobs_along_and_the_next_attempt_starts_on_the_new_one(
    backend: Backend, head: Head
) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    head.kill()
    try:
        backend.until(lambda: launcher.look(handle).sight is Sight.UNKNOWN)
        assert "does not answer" in (launcher.look(handle).why or "")
        with pytest.raises(BackendDown):
            launcher.find(folder, 1)
        backend.until(lambda: backend.processes(folder) == 0)
    finally:
        head.start()
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    assert launcher.find(folder, 1) is None
    again: Handle = backend.start(launcher, folder, attempt=2)
    backend.until(lambda: launcher.look(again).sight is Sight.ALIVE)
    backend.until_it_trains(folder)
    launcher.kill(again)
    backend.until(lambda: backend.processes(folder) == 0)
