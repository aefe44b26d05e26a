"""The contract of backends (contract.py), and more, kept by a real Slurm of two nodes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from control_plane.trainers.launching.seam import Handle, Needs, Sight
from control_plane.trainers.launching.slurm.launcher import SlurmLauncher
from control_plane.trainers.launching.slurm.script import SlurmOptions
from faults.launchers.cluster import Cluster, cluster, why_no_slurm
from lectern_common.errors import BackendDown, LaunchRefused
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import ATTEMPT_VARIABLE, RunState
from tests.control_plane.conftest import STAND_IN, spec
from tests.control_plane.trainers.launching.contract import *  # noqa: F403
from tests.control_plane.trainers.launching.contract import Backend

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_no_slurm() is not None, reason=str(why_no_slurm())),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm"), max_jobs=30) as made:
        yield made


@pytest.fixture
def backend(site: Cluster, tmp_path: Path) -> Backend:
    return backend_of(site, tmp_path)


def backend_of(site: Cluster, folder: Path) -> Backend:
    def new_folder(*, crashes: bool = False) -> RunFolder:
        name = "crash" if crashes else "steady"
        asked = spec(name, schedule={"steps": 100_000, "warmup_steps": 0})
        return RunFolder.create(folder, f"{name}-1", asked)

    return Backend(lambda: launcher_of(site), new_folder, processes_of)


def launcher_of(site: Cluster, **options: Any) -> SlurmLauncher:
    return SlurmLauncher(STAND_IN, options=SlurmOptions(**options), env=site.environment)


def processes_of(folder: RunFolder) -> int:
    found = psutil.process_iter(["cmdline", "status"])
    alive = [one for one in found if one.info["status"] != psutil.STATUS_ZOMBIE]
    return sum(str(folder.path) in (one.info["cmdline"] or ()) for one in alive)


def number_of(handle: Handle) -> str:
    return handle.id.partition("/")[0]


def launches(folder: RunFolder) -> list[dict]:
    path = folder.path / "launches.jsonl"
    return list(read_json_lines(path)) if path.exists() else []


def test_a_requeued_job_ends_at_a_checkpoint_waits_and_resumes_the_same_attempt(
    backend: Backend, site: Cluster
) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    site.preempt(number_of(handle))
    backend.until(lambda: launcher.look(handle).sight is Sight.WAITING)
    status = folder.read_status()
    assert status is not None and status.state is RunState.STOPPED
    assert status.checkpoint_step == status.step
    assert launcher.find(folder, 1) == handle
    backend.until(lambda: len(launches(folder)) == 2)
    backend.until_it_trains(folder)
    again = folder.read_status()
    assert again is not None and again.step >= status.step
    assert [launch["resume"] for launch in launches(folder)] == [False, True]
    assert {one["environment"][ATTEMPT_VARIABLE] for one in launches(folder)} == {"1"}
    assert launcher.look(handle).sight is Sight.ALIVE
    launcher.kill(handle)


def test_a_second_submit_of_an_attempt_never_trains(backend: Backend, site: Cluster) -> None:
    """As after an sbatch that was given up, but came through once another was accepted."""
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    shown = site.ask("squeue", "--noheader", "--format=%j", f"--jobs={number_of(handle)}").strip()
    script = site.folder / "twice.sh"
    script.write_text(site.ask("scontrol", "write", "batch_script", number_of(handle), "-"))
    words = (f"--job-name={shown}", "--dependency=singleton", f"--output={script}.out", str(script))
    second = site.ask("sbatch", "--parsable", *words).strip()
    assert launcher.find(folder, 1) == handle
    launcher.terminate(handle)
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    other = Handle("slurm", f"{second}/{handle.id.partition('/')[2]}")
    backend.until(lambda: launcher.look(other).sight is Sight.GONE)
    assert len(launches(folder)) == 1
    assert backend.start(backend.launcher(), folder) == handle


def test_a_job_that_has_to_wait_says_why_and_a_kill_takes_it_back(
    backend: Backend, site: Cluster
) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    site.ask("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        handle = backend.start(launcher, folder)
        backend.until(lambda: "PartitionDown" in (launcher.look(handle).why or ""))
        assert launcher.look(handle).sight is Sight.WAITING
        launcher.kill(handle)
        backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    finally:
        site.ask("scontrol", "update", "PartitionName=main", "State=UP")
    assert launches(folder) == []


def test_what_slurm_refuses_for_good_says_so_in_its_words(site: Cluster, tmp_path: Path) -> None:
    backend = backend_of(site, tmp_path)
    with pytest.raises(LaunchRefused, match="invalid partition specified: nowhere"):
        backend.start(launcher_of(site, partition="nowhere"), backend.folder())


def test_a_queue_that_is_full_is_asked_again_later_not_at_once(
    site: Cluster, tmp_path: Path
) -> None:
    backend, launcher = backend_of(site, tmp_path), launcher_of(site)
    site.ask("scontrol", "update", "PartitionName=main", "State=INACTIVE")
    try:
        with pytest.raises(BackendDown, match="takes no further job at present"):
            backend.start(launcher, backend.folder())
        assert launcher.slowed() is not None
    finally:
        site.ask("scontrol", "update", "PartitionName=main", "State=UP")


def test_a_controller_that_is_away_leaves_a_run_alone_until_it_is_back(
    backend: Backend, site: Cluster
) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    site.stop_controller()
    try:
        backend.until(lambda: launcher.look(handle).sight is Sight.UNKNOWN)
        assert "Unable to contact slurm controller" in (launcher.look(handle).why or "")
        with pytest.raises(BackendDown):
            launcher.find(folder, 1)
        assert backend.processes(folder) == 1
    finally:
        site.start_controller()
    backend.until(lambda: launcher.look(handle).sight is Sight.ALIVE)
    assert len(launches(folder)) == 1
    launcher.kill(handle)


def test_two_nodes_get_one_step_whose_ranks_meet_on_the_first(
    site: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'SLURMD_NODENAME')\n"
        "said = ' '.join(os.environ[name] for name in names)\n"
        "pathlib.Path(sys.argv[1], 'rank-' + os.environ['RANK']).write_text(said)\n"
    )
    launcher = SlurmLauncher(
        (STAND_IN[0], str(script)), options=SlurmOptions(), env=site.environment
    )
    backend = backend_of(site, tmp_path)
    folder = backend.folder()
    handle = launcher.start(
        folder, attempt=1, resume=False, needs=Needs(nodes=2, processes=2), environment={}
    )
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    assert launcher.look(handle).exit_status == 0, folder.log_path.read_text()
    said = [(folder.path / f"rank-{rank}").read_text().split() for rank in (0, 1)]
    assert [words[:3] for words in said] == [["0", "2", "0"], ["1", "2", "0"]]
    assert [words[4] for words in said] == ["n1", "n2"]
