"""A run of two ranks, each a task on another node of a Slurm, matches one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from control_plane.trainers.launching.seam import Needs, Sight
from control_plane.trainers.launching.slurm.launcher import SlurmLauncher
from faults.launchers.cluster import Cluster, cluster, why_no_slurm
from lectern_common.run.status import ATTEMPT_VARIABLE, RunState
from tests.support.servers import wait_for
from tests.support.training.runs import Home, compared, status_of, trained

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_no_slurm() is not None, reason=str(why_no_slurm())),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def test_two_slurm_tasks_that_are_requeued_have_the_losses_of_one_process(
    site: Cluster, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    run: dict[str, Any] = {
        "schedule": {"steps": 300, "warmup_steps": 2},
        "evaluation": {"every_steps": 100},
        "checkpoint": {"every_steps": 10},
    }
    alone = home.run(**run)
    assert trained(home, alone) == 0
    folder = home.run(**run, device={"kind": "cpu", "threads": 1, "count": 2})
    launcher = SlurmLauncher(environment=home.roots.environment(), env=site.environment)
    handle = launcher.start(
        folder,
        attempt=1,
        resume=False,
        needs=Needs(nodes=2, processes=2, threads=1),
        environment={ATTEMPT_VARIABLE: "1", "OMP_NUM_THREADS": "1"},
    )
    wait_for(lambda: folder.newest_step is not None, 120)
    site.preempt(handle.id.partition("/")[0])
    wait_for(lambda: launcher.look(handle).sight is Sight.WAITING, 60)
    stopped = status_of(folder)
    assert stopped.state is RunState.STOPPED, folder.log_path.read_text()[-3000:]
    assert stopped.checkpoint_step == stopped.step < 300
    wait_for(lambda: launcher.look(handle).sight is Sight.GONE, 120)
    assert launcher.look(handle).exit_status == 0, folder.log_path.read_text()[-3000:]
    assert status_of(folder).state is RunState.SUCCEEDED
    assert "requeued by Slurm" in folder.log_path.read_text()
    ours, theirs = compared(folder), compared(alone)
    assert [line["step"] for line in ours] == list(range(len(theirs)))
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    weights = safetensors.numpy.load_file(folder.export_path / "model.safetensors")
    for name, tensor in safetensors.numpy.load_file(
        alone.export_path / "model.safetensors"
    ).items():
        assert weights[name] == pytest.approx(tensor, rel=1e-3, abs=1e-5), name
