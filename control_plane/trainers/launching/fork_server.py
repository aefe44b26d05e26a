"""A server that starts trainers by forking, seen from the control plane.

The protocol stands in student_trainer/run/fork_server.py. The server starts with the control plane
and ends with it. It may die at any time: its trainers go on, and it is started again, after delays
that grow if it dies soon each time; at last no more. While there is none, `forked` says why, and
trainers are started afresh.
"""

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO

from control_plane.trainers.launching.environment import trainer_environment
from lectern_common.logs import get_logger
from lectern_common.threads import THREADS_VARIABLE

FORK_SERVER_ARGV = (sys.executable, "-m", "student_trainer", "--fork-server")
ANSWER_SECONDS = 10.0
EXIT_SECONDS = 2.0  # from the end of a process until the server has told its exit status
# A server has failed if it never gets ready, or if it is lost sooner than this after it was.
STEADY_SECONDS = 300.0
MAX_FAILURES = 5  # in a row; then no other is started
FIRST_DELAY_SECONDS, DELAY_GROWS = 1.0, 4.0  # before the next is started
_MESSAGE_BYTES = 4096
# Space for the command line that a forked process shows; a longer one is not shown.
_ROOM = " " * 1024
# Variables whose values may be secret; trainers get them, the server does not.
_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?|_PROXY)$", re.IGNORECASE)
# Not secret, and read when libraries are imported.
_NOT_SECRET = "HF_HUB_DISABLE_IMPLICIT_TOKEN"  # noqa: S105

_log = get_logger()


class NotForked(Exception):
    """The server cannot start a trainer now. The message says why."""


@dataclass(frozen=True)
class Forked:
    """A forked process that waits at the other end of the pipe."""

    pid: int
    pipe: FileIO

    def become(self, argv: Sequence[str], words: Sequence[str], env: Mapping[str, str]) -> None:
        """Makes it a trainer.

        Args:
            argv: the command line to show.
            words: its arguments.
            env: its whole environment.

        Raises:
            BrokenPipeError: it has ended.
        """
        told = {"shown": list(argv), "words": list(words), "environment": dict(env)}
        self.pipe.write(json.dumps(told).encode())  # a pipe takes it all, or raises


class ForkServer:
    """Starts a server, has it fork trainers, and learns how those end. One thread at a time.

    Args:
        threads: CPU threads that most trainers have.
        argv: the server's command, which a descriptor and ROOM are appended to.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        threads: int,
        argv: Sequence[str] = FORK_SERVER_ARGV,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._argv = list(argv)
        self._threads = threads
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready_at: float | None = None
        self._failures = 0  # in a row
        self._next_start = float("-inf")
        self._given_up: str | None = None
        self._closed = False
        self._answers: list[int] = []  # pids of processes just forked
        self._living: set[int] = set()
        self._ended: dict[int, int] = {}  # exit statuses

    def start(self) -> None:
        """Starts the server if there is none and it is time; does not wait until it is ready."""
        if self._process is not None or self._closed or self._given_up is not None:
            return
        if self._clock() < self._next_start:
            return
        ours = theirs = None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = subprocess.Popen(
                [*self._argv, str(theirs.fileno()), _ROOM],
                stdin=subprocess.DEVNULL,
                env=server_environment(self._threads),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:  # no descriptors are left, say
            if ours is not None:
                ours.close()
            _log.error("fork server not started", error=str(error))
            self._failed(f"it cannot be started: {error}")
            return
        finally:
            if theirs is not None:
                theirs.close()
        self._socket = ours
        _log.info("fork server starts", pid=self._process.pid)

    @property
    def pid(self) -> int | None:
        """The server's pid; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def given_up(self) -> str | None:
        """Why no server is started any more; None while one is, or will be."""
        return self._given_up

    @property
    def living(self) -> frozenset[int]:
        """Pids of the forked processes whose end it has not told yet."""
        self._listen()
        return frozenset(self._living)

    def is_ready(self) -> bool:
        """Returns whether the server can fork now; starts one if there is none."""
        self._listen()
        self.start()
        return self._ready_at is not None

    @contextmanager
    def forked(self, log: int) -> Iterator["Forked"]:
        """Yields a new process, which waits to be told what it is; if it is not, it ends.

        Args:
            log: descriptor of the file for its output.

        Raises:
            NotForked: there is no server, or it is not ready, or it did not answer. No trainer has
                been started.
        """
        if not self.is_ready() or self._socket is None:
            if self._given_up is not None:
                raise NotForked(self._given_up)
            if self._process is None:
                raise NotForked("there is no fork server now; another is started soon")
            raise NotForked("the fork server is still importing")
        reader, writer = os.pipe()
        try:
            try:
                socket.send_fds(self._socket, [b"{}"], [reader, log])
            finally:
                os.close(reader)
            pid = self._answer()
        except OSError as error:
            os.close(writer)
            self._end(f"it did not answer ({error})")
            raise NotForked(f"the fork server did not answer ({error})") from None
        with open(writer, "wb", buffering=0) as pipe:
            yield Forked(pid, pipe)

    def exit_status(self, pid: int, *, is_gone: bool = False) -> int | None:
        """Returns the exit status of a forked process; None while it lives, or if nobody knows.

        Args:
            is_gone: the process has ended; waits a moment for the server to say how.
        """
        self._listen()
        deadline = time.monotonic() + EXIT_SECONDS
        while is_gone and pid in self._living and self._socket is not None:
            if time.monotonic() > deadline:
                break
            self._listen(0.05)
        return self._ended.get(pid)

    def forget(self, pid: int) -> None:
        """Forgets a process that has ended, so that its pid can be used again."""
        self._ended.pop(pid, None)
        self._living.discard(pid)

    def close(self) -> None:
        """Ends the server; the trainers that it has forked go on."""
        self._closed = True
        if self._process is not None:
            self._end(None)

    def _answer(self) -> int:
        """Returns the pid that the server answers with. Raises OSError."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._answers:
            if self._socket is None:
                raise ConnectionError("it has ended")
            if time.monotonic() > deadline:
                raise TimeoutError(f"for {ANSWER_SECONDS:g} s")
            self._listen(0.05)
        return self._answers.pop()

    def _listen(self, patience: float = 0.0) -> None:
        """Takes in what the server has said; waits for the first message for `patience` seconds."""
        while self._socket is not None and _readable(self._socket, patience):
            patience = 0.0
            try:
                data = self._socket.recv(_MESSAGE_BYTES)
            except OSError:
                data = b""
            if not data:
                self._end("it has ended")
                return
            self._take(json.loads(data))

    def _take(self, message: Mapping[str, int | str]) -> None:
        if "ready" in message:
            self._ready_at = self._clock()
            _log.info("fork server ready", pid=self.pid, mib=message["ready"])
        elif "pid" in message:
            pid = int(message["pid"])
            self._answers.append(pid)
            self._living.add(pid)
            self._ended.pop(pid, None)
        elif "exited" in message:
            pid = int(message["exited"])
            if pid in self._living:
                self._ended[pid] = int(message["status"])
                self._living.discard(pid)
        else:
            self._end(f"it is not fit to fork: {message.get('unfit')}")

    def _end(self, why: str | None) -> None:
        """Lets go of the server. `why` is None if it should end."""
        process, ready_at = self._process, self._ready_at
        if self._socket is not None:
            self._socket.close()
        self._socket, self._process, self._ready_at = None, None, None
        self._answers.clear()
        self._living.clear()  # nobody will say how they end
        if process is None:
            return
        if why is not None:
            process.kill()
            _log.warning("fork server lost", pid=process.pid, why=why)
            if ready_at is not None and self._clock() - ready_at >= STEADY_SECONDS:
                self._failures = 0
            self._failed(why)
        with suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()

    def _failed(self, why: str) -> None:
        """Sets when the next server is started, or that none is."""
        self._failures += 1
        if self._failures < MAX_FAILURES:
            delay = FIRST_DELAY_SECONDS * DELAY_GROWS ** (self._failures - 1)
            self._next_start = self._clock() + delay
            return
        self._given_up = f"the fork server failed {self._failures} times in a row; last: {why}"
        _log.error("fork server given up; trainers are started afresh", why=self._given_up)


def server_environment(threads: int, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the server's environment: a trainer's, without anything that may be secret.

    Libraries read many variables when they are imported, so it must be that of trainers otherwise.
    """
    kept = {
        name: value
        for name, value in trainer_environment(env).items()
        if name == _NOT_SECRET or not _SECRET.search(name)
    }
    return {
        **kept,
        THREADS_VARIABLE: str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads when it is imported
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch would initialise CUDA to look for it
    }


def _readable(asked: socket.socket, patience: float) -> bool:
    poll = select.poll()  # select refuses descriptors from 1024 on, and connections may take those
    poll.register(asked, select.POLLIN)
    return bool(poll.poll(1000 * patience))
