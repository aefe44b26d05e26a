"""Starts and ends real servers, trainers and control planes, through faults/launcher.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from faults.trainer.runs.forked import Forked, ForkServer

ROOT = Path(__file__).parent.parent
# Far longer than a start takes on busy cores.
PATIENCE_SECONDS = 120.0


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    """Returns True once the condition holds, False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def environment() -> dict[str, str]:
    """Returns the environment of every process started here."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start_module(module: str, *words: str, stdin: bytes | None = None) -> subprocess.Popen[bytes]:
    """Starts `python -m module words`; its output is read from pipes. The caller ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    if stdin is not None and process.stdin is not None:
        process.stdin.write(stdin)
        process.stdin.flush()
    return process


class Launched:
    """A Lectern process, started with at most one thing changed.

    Args:
        program: "teacher", "trainer" or "control".
        folder: its output goes to the file `log` here.
        options: its command-line options.
        faults: injected into it; see injections.py.
        sabotage: the row whose protection is switched off, or None; see sabotage.py.
        fork_server: starts it without seconds of imports; None starts a new interpreter.
        words: further ones for the launcher.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        options: Sequence[str],
        faults: Sequence[str] = (),
        sabotage: str | None = None,
        fork_server: ForkServer | None = None,
        words: Sequence[str] = (),
    ) -> None:
        words = [program, *words, *(word for fault in faults for word in ("--fault", fault))]
        if sabotage is not None:
            words += ["--sabotage", sabotage]
        words += ["--", *options]
        self.log_path = folder / "log"
        self.log_path.touch()
        self.process: subprocess.Popen[bytes] | Forked = (
            _started_anew(words, self.log_path)
            if fork_server is None
            else fork_server.start(words, self.log_path)
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """Returns the exit status, or None if it did not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Kills it with SIGKILL, and waits until it is gone."""
        if self.alive:
            self.process.kill()
        self.process.wait()


def _started_anew(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "faults.launcher", *words],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


class Server(Launched):
    """A teacher server on loopback; `--bind` may be among the options."""

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        faults: Sequence[str] = (),
        sabotage: str | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._port_file = folder / "port"
        self._port_file.unlink(missing_ok=True)
        bind = () if "--bind" in options else ("--bind", "127.0.0.1:0")
        words = [*bind, "--port-file", str(self._port_file), *options]
        super().__init__("teacher", folder, words, faults, sabotage, fork_server)
        self.address = ""

    def ready(self) -> "Server":
        """Returns itself once it serves. Raises RuntimeError if it does not start."""
        wait_for(lambda: self._port_file.exists() or not self.alive)
        if not self._port_file.exists():
            raise RuntimeError(f"the teacher server did not start: {self.log[-2000:]}")
        self.address = self._port_file.read_text().strip()
        return self

    def usage(self) -> "Usage":
        """Returns the resources that it holds now."""
        return usage_of(self.process.pid)


@dataclass(frozen=True)
class Usage:
    """Memory, threads and descriptors of a process."""

    memory_bytes: int
    threads: int
    descriptors: int


def usage_of(pid: int) -> Usage:
    """Returns the resources that a process holds now."""
    process = psutil.Process(pid)
    with process.oneshot():
        return Usage(process.memory_info().rss, process.num_threads(), process.num_fds())


class Peak:
    """The largest resident memory of a process while it is watched. Use as a context manager."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._clear = Path(f"/proc/{pid}/clear_refs")
        self.before = self.after = 0

    def __enter__(self) -> "Peak":
        self._clear.write_text("5")  # resets the kernel's high-water mark
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._status.exists():
            self.after = self._read("VmHWM")

    @property
    def grown_bytes(self) -> int:
        return max(0, self.after - self.before)

    def _read(self, name: str) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        return 0
