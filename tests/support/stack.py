"""The real processes of a service, started and ended for one test, and the command line."""

import contextlib
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from lectern.client import Client
from lectern.local.processes import Child
from lectern_common.run.folder import RunFolder
from tests.support.servers import ROOT, wait_for
from tests.support.training.runs import Home, lines_of

MARK = "TEST_THAT_STARTED_THIS"
# Far more than anything here takes on busy cores; a test that needs it has failed.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def lectern(*words: object) -> Ended:
    """Runs the command line as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "lectern", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def control_plane(home: Home, *options: str) -> Iterator[Client]:
    """Yields a client of a real control plane with real trainers; ends it, and them."""
    port_file = home.path / "control-plane-port"
    port_file.unlink(missing_ok=True)
    child = Child(
        "control plane",
        [
            *(sys.executable, "-m", "control_plane", "--bind", "127.0.0.1:0"),
            *("--home", str(home.path), "--port-file", str(port_file)),
            *("--on-exit", "stop", "--stop-grace-seconds", "10", *options),
        ],
        home.path / "control-plane.log",
        {"PYTHONPATH": str(ROOT)},
    )
    try:
        wait_for(lambda: port_file.exists() or not child.is_alive)
        if not child.is_alive:
            raise child.death()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.ExitStack() as stack,
        ):
            # Where clients, of this process and of others, find the token.
            patch.setenv("LECTERN_HOME", str(home.path))
            yield stack.enter_context(Client(f"http://{port_file.read_text().strip()}"))
    finally:
        child.stop(PATIENCE_SECONDS)


def folder_of(home: Home, run_id: str) -> RunFolder:
    return RunFolder(home.roots.runs / run_id)


def made_steps(folder: RunFolder) -> int:
    """Returns the last step that the run recorded."""
    lines = lines_of(folder)
    return lines[-1]["step"] if lines else 0


def random_source() -> random.Random:
    """Returns numbers that differ each time; a failing test shows what to begin with again."""
    seed = secrets.randbits(32)
    print(f"random.Random({seed})")
    return random.Random(seed)  # noqa: S311 - for when to strike


def marked_processes(mark: str) -> list[psutil.Process]:
    """Returns every living process with this mark in its environment."""
    return [process for process in psutil.process_iter() if _has_mark(process, mark)]


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def final_weights(folder: RunFolder) -> tuple[bytes, bytes]:
    """Returns the bytes of the last checkpoint's weights, and of the export's."""
    checkpoint = sorted(folder.checkpoints_path.glob("step-*"))[-1]
    return (
        (checkpoint / "model.safetensors").read_bytes(),
        (folder.export_path / "model.safetensors").read_bytes(),
    )
