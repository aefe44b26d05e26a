"""One control plane with stand-in trainers for all tests of a file; each keeps to its own runs."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import make_home
from tests.control_plane.test_process import Service, trainers


def one_plane(*options: str, step_seconds: float = 0.02):
    """Returns a fixture that yields the control plane of a file."""

    @pytest.fixture(scope="module")
    def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
        home: Path = tmp_path_factory.mktemp("home")
        make_home(home)
        service = Service(home, *options, step_seconds=step_seconds)
        yield service
        service.close()
        Service.started.remove(service)
        for process in trainers(home):
            with contextlib.suppress(psutil.NoSuchProcess):
                for member in (*process.children(recursive=True), process):
                    member.kill()

    return plane


def folder_in(plane: Service, run_id: str) -> RunFolder:
    return RunFolder(Roots.of_home(plane.folder).runs / run_id)
