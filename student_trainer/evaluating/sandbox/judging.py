"""Runs programs in sandboxes, several at a time, and tells which of them passed."""

import json
import os
import queue
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from lectern_common.errors import Misconfigured
from student_trainer.evaluating.sandbox.bubblewrap import (
    Command,
    sandbox_commands,
    unprotected_command,
)
from student_trainer.evaluating.sandbox.limits import Limits, Outcome, Verdict

_INSIDE = Path(__file__).with_name("inside.py")
_START_SECONDS = 60.0  # an interpreter takes 0.03 s; only a machine in great need takes longer
_LOOK_SECONDS = 0.1
_MAX_OUTPUT_BYTES = 1 << 16
_MAX_REASON = 300
# Shows that a program runs, that what is written stays inside, and that there is no network.
_PROBE = """
import os, socket
with open("/tmp/probe", "w") as file:
    file.write("x")
try:
    os.listdir("/proc/self")
except OSError:
    pass
else:
    raise SystemExit("it has /proc")
names = [name for _, name in socket.if_nameindex()]
if set(names) - {"lo"}:
    raise SystemExit(f"it has the network interfaces {names}")
"""


class Judge:
    """Judges programs, each in a sandbox of its own. Use as a context manager.

    Args:
        limits: of each program.
        sandboxed: False runs the programs with limits, but isolated from nothing.
        workers: how many run at the same time; None means one for each core, at most 8.

    Raises:
        Misconfigured: sandboxes do not work here; the message says what to set.
    """

    def __init__(
        self, limits: Limits, *, sandboxed: bool = True, workers: int | None = None
    ) -> None:
        count = workers or max(1, min(8, len(os.sched_getaffinity(0))))
        self._limits = limits
        self._sandboxed = sandboxed
        self._source = _INSIDE.read_text()
        commands = [unprotected_command()] * count
        if sandboxed:
            commands = sandbox_commands(limits.file_bytes, count)
        self.interpreter = commands[0].argv[-1]
        self._free: queue.SimpleQueue[Command] = queue.SimpleQueue()
        for command in commands:
            self._free.put(command)
        # A sandbox ends with the thread that has started it, so these live as long as the judge.
        self._threads = ThreadPoolExecutor(count, "judge")
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> "Judge":
        if self._sandboxed:
            self._require_a_sandbox()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in list(self._running):
            _end(child, group=not self._sandboxed)
        self._threads.shutdown()

    def judged(self, programs: Iterable[str]) -> list[Verdict]:
        """Returns the verdict on each program, in order."""
        return [future.result() for future in [self.judging(one) for one in programs]]

    def judging(self, program: str) -> "Future[Verdict]":
        """Begins to judge a program as soon as one of the workers is free."""
        return self._threads.submit(self._judge, program)

    def _judge(self, program: str) -> Verdict:
        command = self._free.get()
        try:
            return self._run(command, program)
        finally:
            self._free.put(command)

    def _run(self, command: Command, program: str) -> Verdict:
        word = secrets.token_hex(16)
        asked = {
            "program": program,
            "word": word,
            "limits": self._limits.resources(shares_user=command.shares_user),
        }
        with ExitStack() as stack:
            given = stack.enter_context(tempfile.TemporaryFile())
            given.write(json.dumps(asked).encode())
            given.seek(0)
            folder = "/"
            if not self._sandboxed:
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix="lectern-program-", ignore_cleanup_errors=True
                    )
                )
            try:
                child = subprocess.Popen(
                    [*command.argv, "-I", "-S", "-c", self._source],
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=dict(command.environment),
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                return Verdict(Outcome.NOT_JUDGED, f"cannot start {command.argv[0]}: {error}")
            self._running.add(child)
            try:
                return self._watch(child, word)
            finally:
                self._running.discard(child)
                _end(child, group=not self._sandboxed)

    def _watch(self, child: "subprocess.Popen[bytes]", word: str) -> Verdict:
        """Returns the verdict as soon as there is one, or the program's time is over."""
        said, started = b"", f"{word} started".encode()
        end, has_begun = time.monotonic() + _START_SECONDS, False
        is_open = True
        while is_open and len(said) < _MAX_OUTPUT_BYTES:
            left = end - time.monotonic()
            if left <= 0:
                break
            is_open, more = _more(child, min(left, _LOOK_SECONDS))
            said += more
            verdict = _verdict_in(said, word)
            if verdict is not None:
                return verdict
            if not has_begun and started in said:
                end, has_begun = time.monotonic() + self._limits.seconds, True
            if has_begun and not more and _memory_bytes(child.pid) > self._limits.memory_bytes:
                return Verdict(Outcome.FAILED, "its processes together took too much memory")
        if not has_begun:
            text = " ".join(said.decode(errors="replace").split())[:_MAX_REASON]
            return Verdict(Outcome.NOT_JUDGED, text or "the interpreter did not start")
        if is_open:
            return Verdict(Outcome.TIMED_OUT, f"took longer than {self._limits.seconds:g} s")
        child.wait()
        return Verdict(Outcome.FAILED, _ending(child.returncode))

    def _require_a_sandbox(self) -> None:
        verdict = self._judge(_PROBE)
        if verdict.outcome is Outcome.PASSED:
            return
        self.__exit__()
        raise Misconfigured(
            f"the sandbox for generated code does not work here ({verdict.reason}): allow "
            "unprivileged user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 "
            "or kernel.unprivileged_userns_clone=1; in a container, a security profile that allows "
            "them), or set --no-sandbox if the programs may do to this machine whatever they like"
        )


def _more(child: "subprocess.Popen[bytes]", seconds: float) -> tuple[bool, bytes]:
    """Returns whether more may follow, and what came within the time."""
    if child.stdout is None:
        raise ValueError("its output is not a pipe")
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    if not ready:
        return True, b""
    data = os.read(child.stdout.fileno(), 4096)
    return bool(data), data


def _verdict_in(said: bytes, word: str) -> Verdict | None:
    """Returns the verdict that is in a program's output, if it is whole."""
    for line in said.decode(errors="replace").split("\n")[:-1]:
        if line == f"{word} passed":
            return Verdict(Outcome.PASSED)
        if line.startswith(f"{word} failed "):
            return Verdict(Outcome.FAILED, line.removeprefix(f"{word} failed "))
    return None


def _ending(status: int) -> str:
    """Returns how a program ended that neither came to its end nor raised an exception."""
    number = -status if status < 0 else status - 128
    with suppress(ValueError):
        if number > 0:
            return f"was ended by {signal.Signals(number).name}"
    return f"exited with status {status}"


def _memory_bytes(pid: int) -> int:
    """Returns the memory of a process and all that it has started."""
    total = 0
    with suppress(psutil.Error):
        own = psutil.Process(pid)
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _end(child: "subprocess.Popen[bytes]", *, group: bool) -> None:
    """Kills a sandbox, or with `group` the session of a program that has none."""
    if group:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
