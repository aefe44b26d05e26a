"""What every backend must do, as plain functions over a Backend; each backend's tests call them.

A backend's test module has a fixture `backend` and takes these over by `import`: pytest collects
functions whose names begin with test_ wherever they come from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.trainers.launching.seam import Handle, Launcher, Needs, Sight
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import ATTEMPT_VARIABLE, RunState
from tests.control_plane.conftest import wait_for

__all__ = [
    "test_a_crash_has_its_exit_status",
    "test_a_kill_leaves_none",
    "test_a_terminated_trainer_writes_a_checkpoint_and_ends_well",
    "test_one_attempt_starts_once",
    "test_what_was_forgotten_is_found_again",
]


@dataclass
class Backend:
    """One backend, with a stand-in trainer.

    Attributes:
        launcher: makes a new Launcher, as after a restart of the control plane.
        folder: makes a new run folder, with the behaviour of its trainer.
        processes: how many processes of a folder live.
        patience_seconds: how long a start or an end may take.
    """

    launcher: Callable[..., Launcher]
    folder: Callable[..., RunFolder]
    processes: Callable[[RunFolder], int]
    patience_seconds: float = 30.0

    def start(self, launcher: Launcher, folder: RunFolder, attempt: int = 1) -> Handle:
        environment: Mapping[str, str] = {ATTEMPT_VARIABLE: str(attempt)}
        return launcher.start(
            folder, attempt=attempt, resume=False, needs=Needs(), environment=environment
        )

    def until(self, true: Callable[[], Any]) -> None:
        wait_for(true, self.patience_seconds)

    def until_it_trains(self, folder: RunFolder) -> None:
        def trains() -> bool:
            status = folder.read_status()
            return status is not None and status.state is RunState.RUNNING

        self.until(trains)


def test_one_attempt_starts_once(backend: Backend) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    first = backend.start(launcher, folder)
    assert backend.start(launcher, folder) == first
    backend.until_it_trains(folder)
    assert backend.start(backend.launcher(), folder) == first
    assert backend.processes(folder) == 1
    assert Handle.of(str(first)) == first
    launcher.kill(first)


def test_what_was_forgotten_is_found_again(backend: Backend) -> None:
    folder = backend.folder()
    handle = backend.start(backend.launcher(), folder)
    backend.until_it_trains(folder)
    other = backend.launcher()
    assert other.find(folder, 1) == handle
    assert other.look(handle).sight is Sight.ALIVE
    other.kill(handle)


def test_a_terminated_trainer_writes_a_checkpoint_and_ends_well(backend: Backend) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    launcher.terminate(handle)
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    assert launcher.look(handle).exit_status in (0, None)
    status = folder.read_status()
    assert status is not None and status.state is RunState.STOPPED
    assert launcher.find(folder, 1) is None


def test_a_kill_leaves_none(backend: Backend) -> None:
    launcher, folder = backend.launcher(), backend.folder()
    handle = backend.start(launcher, folder)
    backend.until_it_trains(folder)
    launcher.kill(handle)
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    backend.until(lambda: backend.processes(folder) == 0)


def test_a_crash_has_its_exit_status(backend: Backend) -> None:
    launcher, folder = backend.launcher(), backend.folder(crashes=True)
    handle = backend.start(launcher, folder)
    backend.until(lambda: launcher.look(handle).sight is Sight.GONE)
    assert launcher.look(handle).exit_status not in (0, None)
