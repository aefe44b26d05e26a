"""A control plane over a temporary home, with trainers that a test drives by hand."""

import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import ControlPlane, open_plane
from control_plane.runs.commands import RunCommands
from control_plane.runs.creation import Fork
from control_plane.runs.forking import complete, created, finish_forks, taken
from control_plane.runs.queries import Runs
from control_plane.runs.record import Run
from control_plane.runs.store import DATABASE_NAME, Store
from control_plane.trainers.conditions import Conditions
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.reconciler import Reconciler
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.spec.forking import forked_spec
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from tests.support.fakes import FakeClock, FakeProcesses

ROOT = Path(__file__).parent.parent.parent
BASE_URL = "http://127.0.0.1"
STAND_IN_FORK_SERVER = (sys.executable, "-m", "tests.support.stand_in_fork_server")
STAND_IN = (sys.executable, str(ROOT / "tests" / "support" / "stand_in_trainer.py"))


def spec_body(name: str = "steady", steps: int = 20, **sections: Any) -> dict[str, Any]:
    """Returns a spec that needs no teacher and no data."""
    return {
        "name": name,
        "student": {"config": "tiny"},
        "data": {"kind": "synthetic", "seq_len": 16},
        "objective": {"alpha": 1},
        "schedule": {"steps": steps, "warmup_steps": 0},
        **sections,
    }


def spec(name: str = "steady", **sections: Any) -> RunSpec:
    return parse_spec(spec_body(name, **sections))


@functools.cache
def empty_database() -> bytes:
    """Returns the file of a migrated database without rows: migrating takes longer than a test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / DATABASE_NAME
        Store.open(path).close()
        return path.read_bytes()


def make_home(folder: Path) -> Roots:
    """Returns roots with a database and one model folder, `tiny`, that has only a config."""
    roots = Roots.of_home(folder)
    roots.runs.mkdir(parents=True, exist_ok=True)
    (roots.runs / DATABASE_NAME).write_bytes(empty_database())
    (roots.models / "tiny").mkdir(parents=True)
    (roots.models / "tiny" / "config.json").write_text('{"model_type": "qwen2", "vocab_size": 300}')
    return roots


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Returns the first true value of the condition. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come to hold")
        time.sleep(0.01)
    return value


class KilledHere(BaseException):
    """The control plane dies here."""


@dataclass
class Bench:
    """Runs and reconciler without a loop: a test calls `tick`."""

    roots: Roots
    store: Store
    runs: Runs
    commands: RunCommands
    processes: FakeProcesses
    reconciler: Reconciler
    clock: FakeClock
    devices: Devices
    conditions: Conditions

    @classmethod
    def of(cls, folder: Path, devices: Devices | None = None, grace: float = 60.0) -> "Bench":
        roots = make_home(folder)
        clock = FakeClock()
        store = Store.open(roots.runs / DATABASE_NAME)
        runs, commands = Runs(store), RunCommands(store, clock)
        processes = FakeProcesses(clock)
        devices = devices or Devices((), max_running=2)
        reconciler = Reconciler(
            runs, commands, roots, LocalLauncher(processes), devices, clock, grace
        )
        conditions = Conditions(runs, commands, devices, clock, clock)
        return cls(roots, store, runs, commands, processes, reconciler, clock, devices, conditions)

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.roots.runs / run_id)

    def fork(self, run_id: str, step: int | None = None, dies: str = "") -> Run | None:
        """Returns a new fork; None if the control plane `dies` before its "row" is there.

        If it dies before its folder is "placed", it is there once the next one has started.
        """
        source = self.runs.get(run_id)
        made: list[Run] = []

        def create(fork: Fork) -> Run:
            if dies == "row":
                fork.place("never-seen")
                raise KilledHere
            made.append(self.commands.create(changed, fork=fork))
            if dies == "placed":
                raise KilledHere
            return made[0]

        with contextlib.suppress(KilledHere), pytest.MonkeyPatch.context() as patch:
            if dies:
                for name in ("_settle", "put_fork_in_place"):
                    patch.setattr(f"control_plane.runs.forking.{name}", lambda *_: None)
            with taken(self.folder(run_id), step) as checkpoint:
                changes = {"schedule": {"steps": 99}}
                changed = forked_spec(source.run_spec, changes, checkpoint.source.step)
                complete(checkpoint, changed, None, packs_chats=True)
                created(checkpoint, create, self.runs)
        return made[0] if made else None

    def restart(self) -> None:
        """Restarts as a new control plane does after the old one was killed."""
        self.processes.forgets_pids = True
        finish_forks(self.runs, self.roots.runs)
        self.reconciler = Reconciler(
            self.runs,
            self.commands,
            self.roots,
            LocalLauncher(self.processes),
            self.devices,
            self.clock,
            60.0,
        )
        self.conditions = Conditions(self.runs, self.commands, self.devices, self.clock, self.clock)

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.reconciler.tick()
        self.conditions.look()

    def create(self, name: str = "steady", **sections: Any) -> Run:
        return self.commands.create(spec(name, **sections))

    def started(self, name: str = "steady", **sections: Any) -> Run:
        """Returns a new run whose trainer reports that it is running."""
        run = self.create(name, **sections)
        self.tick()
        self.processes.last(run.id).say("running", step=1)
        self.tick(1)
        return self.runs.get(run.id)

    def states(self, run_id: str) -> list[str]:
        return [entry["state"] for entry in self.runs.history(run_id)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench.of(tmp_path)
    yield bench
    bench.store.close()


@pytest.fixture
def processes() -> FakeProcesses:
    clock = FakeClock()
    clock.now = time.time()
    return FakeProcesses(clock)


@pytest.fixture
def plane(tmp_path: Path, processes: FakeProcesses) -> ControlPlane:
    """A plane that is opened, not started; `client` starts and ends it."""
    plane = open_plane(
        make_home(tmp_path), devices=Devices((), max_running=2), launcher=LocalLauncher(processes)
    )
    plane.tick_seconds = 0.05
    return plane


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[TestClient]:
    with TestClient(create_app(plane), base_url=BASE_URL) as client:
        yield client


@contextmanager
def serving(folder: Path, **app: Any) -> Iterator[tuple[TestClient, ControlPlane]]:
    """Yields a client and its plane, for tests that share them because they change nothing."""
    plane = open_plane(
        make_home(folder),
        devices=Devices((), max_running=2),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
    )
    with TestClient(create_app(plane, **app), base_url=BASE_URL) as client:
        yield client, plane
