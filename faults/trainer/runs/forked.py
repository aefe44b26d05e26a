"""Starts processes through a fork server, with an interface like Popen's."""

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# What trainers and teacher servers import.
MODULES = (
    "torch._dynamo",  # an optimizer's first step imports it
    "transformers.models.qwen2.modeling_qwen2",
    "student_trainer.run.assemble",
    "student_trainer.run.loop",
    "teacher_server.rpc.server",
    "teacher_server.engine.transformers",
)
_SLICE_SECONDS = 0.002
_PATIENCE_SECONDS = 30.0


class ForkServer:
    """Client of fork_server.py; starts it on first use, ends it on `close`.

    Args:
        folder: for exit statuses; created on first use.
        environment, cwd: for every process that it starts.
        prefix: words before its command, which must exec it.
        modules: imported once by the server.
    """

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        cwd: Path,
        prefix: Sequence[str] = (),
        modules: Sequence[str] = MODULES,
    ) -> None:
        self._folder = folder
        self._environment = environment
        self._cwd = cwd
        self._command = [
            *prefix,
            sys.executable,
            "-m",
            "faults.trainer.runs.fork_server",
            str(folder),
            *modules,
        ]
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None

    def seen_by_it(self, path: Path) -> Path:
        """Returns the path by which this process reaches `path` in the server's own mounts."""
        with self._lock:
            server = self._server = self._server or self._started()
        return Path(f"/proc/{server.pid}/root{path}")

    def start(self, words: Sequence[str], log: Path) -> "Forked":
        """Starts `python -m faults.launcher words`; appends its output to `log`.

        Raises:
            RuntimeError: the server did not start, or has exited.
        """
        with self._lock:
            server = self._server = self._server or self._started()
            number = next(self._numbers)
            asked = {"number": number, "words": list(words), "log": str(log)}
            if server.stdin is None or server.stdout is None:
                raise RuntimeError("the fork server has no pipes")
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the fork server exited with status {server.wait()}")
        return Forked(int(answer), self._folder / str(number))

    def close(self) -> None:
        """Ends the server; processes that it started continue."""
        if self._server is not None:
            self._server.communicate()  # its input ends
            self._server = None

    def _started(self) -> subprocess.Popen[str]:
        self._folder.mkdir(exist_ok=True)
        server = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if server.stdout is None or not server.stdout.readline():
            server.communicate()
            raise RuntimeError(f"the fork server did not start: status {server.returncode}")
        return server


class Forked:
    """A process that a fork server started, with the part of Popen that is used here."""

    def __init__(self, pid: int, status_path: Path) -> None:
        self.pid = pid
        self._status_path = status_path
        self._descriptor: int | None = None
        self._gone_since: float | None = None
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self._descriptor = os.pidfd_open(pid)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def poll(self) -> int | None:
        """Returns its exit status, -N if signal N killed it, None while it lives.

        Raises:
            RuntimeError: it has ended, and so has the fork server that knew its status.
        """
        try:
            return int(self._status_path.read_text())
        except FileNotFoundError:
            if self._is_gone():
                self._gone_since = self._gone_since or time.monotonic()
                if time.monotonic() - self._gone_since > _PATIENCE_SECONDS:
                    raise RuntimeError(
                        f"the exit status of process {self.pid} is unknown"
                    ) from None
            return None

    def _is_gone(self) -> bool:
        return self._descriptor is None or bool(select.select([self._descriptor], [], [], 0)[0])

    def wait(self, timeout: float | None = None) -> int:
        """Returns its exit status. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and timeout is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(_SLICE_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        """Sends it a signal, never another process with a reused pid."""
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
