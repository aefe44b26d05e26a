"""Child processes of the command line: start, stop, and read what they log."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from lectern.console import inert
from lectern_common.errors import LecternError
from lectern_common.files import end_of
from lectern_common.logs import cap_log
from lectern_common.threads import waiting_environment

POLL_SECONDS = 0.05
TAIL_LINES = 20
_MAX_LINE_BYTES = 4000
_READ_BYTES = 1 << 16
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A Python child shows its output at once, and imports nothing from the folder it is started in.
_PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


class ChildDied(LecternError):
    """A child ended unexpectedly; the message has the tail of its log."""

    reason = "child_died"


class Child:
    """A process in its own session, so that Ctrl-C at the terminal reaches only its parent.

    Its output is appended to `log_path`, not piped, so it survives the death of its parent. With
    `hears_our_end` its standard input is a pipe that is closed when this process ends, however that
    happens.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log_path: Path,
        env: Mapping[str, str],
        *,
        hears_our_end: bool = False,
    ) -> None:
        self.name = name
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if hears_our_end else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **waiting_environment(), **_PYTHON, **env},
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def log_lines(self) -> "LogLines":
        """Returns a reader of what this child has logged since its start."""
        return LogLines(self.log_path, self._log_start)

    def cap_log(self) -> None:
        """Cuts the middle out of its log once that has outgrown its limit; see `logs.cap_log`."""
        with suppress(OSError):  # a full disk, say: the next call tries again
            if cap_log(self.log_path):
                self._log_start = 0  # where that was is not known any more

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Returns the last lines of its log."""
        return tail(self.log_path, lines, start=self._log_start)

    def signal(self, number: int) -> None:
        """Sends a signal to the child only; does nothing if it has ended."""
        if self.is_alive:
            self.process.send_signal(number)

    def stop(self, grace_seconds: float) -> int:
        """Sends SIGTERM, waits, and kills the child after the grace. Returns its exit status
        (negative: the signal that ended it).

        An interrupt while waiting kills it at once and is raised again.
        """
        self.signal(signal.SIGTERM)
        try:
            return self.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> int:
        """Kills the child and every process in its group; returns its exit status."""
        if self.is_alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.wait()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Returns its exit status once it has ended. Raises subprocess.TimeoutExpired."""
        code = self.process.wait(timeout_seconds)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def death(self, advice: str = "") -> ChildDied:
        """Waits for the end of the child; returns it as an error with the tail of its log.

        Args:
            advice: what to do; comes last, where the eye lands after a long log.
        """
        code = self.process.wait()
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
        how = f"the {self.name} {ended}"
        lines = self.tail()
        error = ChildDied(
            f"{how}; "
            + (f"the end of its log:\n{lines}" if lines else "its log is empty")
            + f"\n(full log: {self.log_path})"
            + (f"\n{how}: {advice}" if advice else "")
        )
        if 0 < code < 64:
            error.exit_code = code
        return error


class LogLines:
    """Reads complete lines of a growing file, starting at an offset. Overlong lines are cut."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._partial = b""

    def new(self) -> list[str]:
        """Returns the lines completed since the last call."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._offset:  # its middle was cut out: go on at its end
                    self._offset, self._partial = size, b""
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[:_MAX_LINE_BYTES]
        return [printable(line) for line in lines]


def tail(path: Path, lines: int, start: int = 0) -> str:
    """Returns the last lines of a file: at most 64 KiB, nothing from before byte `start`."""
    data, _ = end_of(path, _READ_BYTES, first_byte=start)
    return "\n".join(printable(line) for line in data.splitlines()[-lines:])


def printable(line: bytes) -> str:
    """Returns a log line that is safe on a terminal: no escape sequences, bounded length."""
    text = inert(line[:_MAX_LINE_BYTES].decode(errors="replace"))
    return text + (" ... (cut)" if len(line) > _MAX_LINE_BYTES else "")


def wait_until(
    ready: Callable[[], bool], timeout_seconds: float | None, poll_seconds: float = POLL_SECONDS
) -> bool:
    """Returns True once `ready()` does, False after `timeout_seconds` (None means no limit)."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while not ready():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(poll_seconds)
    return True


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_noted(number: signal.Signals) -> Iterator[list[int]]:
    """Yields a list that gets an entry for each such signal in the block; it has no other effect.

    Not an event: one signal may interrupt the handler of another, in the middle of its lock.
    """
    noted: list[int] = []
    before = signal.signal(number, lambda number, _frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(number, before)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delays Ctrl-C, SIGTERM and SIGHUP until the end of the block.

    For starting a child: if its start was interrupted half-way, nobody would know its process id.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive only in the main thread
        return
    delayed: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: delayed.append(number))
        for number in _INTERRUPTS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in delayed:
            signal.raise_signal(arrived)
