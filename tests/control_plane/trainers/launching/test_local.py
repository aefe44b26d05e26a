"""The contract of backends (contract.py), kept by processes of this machine."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.processes import LocalProcesses
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import STAND_IN, spec
from tests.control_plane.trainers.launching.contract import *  # noqa: F403
from tests.control_plane.trainers.launching.contract import Backend


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    def folder(*, crashes: bool = False) -> RunFolder:
        name = "crash" if crashes else "steady"
        asked = spec(name, schedule={"steps": 100_000, "warmup_steps": 0})
        return RunFolder.create(tmp_path, f"{name}-1", asked)

    def processes(folder: RunFolder) -> int:
        found = psutil.process_iter(["cmdline", "status"])
        alive = [one for one in found if one.info["status"] != psutil.STATUS_ZOMBIE]
        return sum(str(folder.path) in (one.info["cmdline"] or ()) for one in alive)

    made: list[LocalProcesses] = []

    def launcher() -> LocalLauncher:
        made.append(LocalProcesses(STAND_IN))
        return LocalLauncher(made[-1])

    yield Backend(launcher, folder, processes)
    for one in made:
        for child in one._children.values():
            child.kill()
            child.wait()
