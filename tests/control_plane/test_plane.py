"""A control plane on a file system without locks."""

from pathlib import Path

import pytest

from control_plane.plane import open_plane
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.errors import Misconfigured
from tests.control_plane.conftest import make_home
from tests.support.fakes import FakeClock, FakeProcesses
from tests.support.no_locks import refuse_locks


def test_a_runs_root_without_locks_gets_a_sentence_and_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, locks = make_home(tmp_path / "home"), tmp_path / "locks"
    refuse_locks(monkeypatch, but=locks)

    def opened() -> None:
        open_plane(
            roots, devices=Devices((), 2), launcher=LocalLauncher(FakeProcesses(FakeClock()))
        ).close()

    with pytest.raises(Misconfigured, match=r"without file locks .* set LECTERN_LOCKS to a folder"):
        opened()
    monkeypatch.setenv("LECTERN_LOCKS", str(locks))
    opened()
