"""Starts trainers in sessions of their own, finds them again, stops and kills them.

A process is identified by (pid, create time), as pids are reused. A zombie counts as dead.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
import structlog

from control_plane.trainers.environment import trainer_environment
from control_plane.trainers.fork_server import ForkServer, NotForked
from lectern_common.run_folder import RunFolder

_log = structlog.get_logger()

TRAINER_ARGV = (sys.executable, "-m", "student_trainer")
# The create time is computed from the boot time, which changes when the clock is set.
CREATE_TIME_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True)
class Identity:
    """One process, even if its pid is reused later."""

    pid: int
    create_time: float


class Launcher:
    """Starts, finds, stops and kills trainers on this machine.

    Args:
        argv: the command that the run folder and `--resume` are appended to.
        environment: added to what a trainer inherits (environment.py).
        fork_server: forks trainers of the same program as `argv`; None starts each afresh. While it
            is not ready, they are started afresh as well.
    """

    def __init__(
        self,
        argv: Sequence[str] = TRAINER_ARGV,
        environment: Mapping[str, str] | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._argv = list(argv)
        self._environment = dict(environment or {})
        self._fork_server = fork_server
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, folder: RunFolder, *, resume: bool, environment: Mapping[str, str]) -> Identity:
        """Returns the process that now trains the run; its output goes to the run's log.

        Raises:
            OSError: it cannot be started.
        """
        words = [str(folder.path), *(["--resume"] if resume else [])]
        env = {**trainer_environment(), **self._environment, **environment}
        with folder.log_path.open("ab") as log:
            try:
                return self._forked(words, env, log.fileno())
            except NotForked as error:
                if self._fork_server is not None:
                    _log.warning("trainer not forked", run=folder.run_id, why=str(error))
            child = subprocess.Popen(
                [*self._argv, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return Identity(child.pid, psutil.Process(child.pid).create_time())

    def _forked(self, words: Sequence[str], env: Mapping[str, str], log: int) -> Identity:
        """Starts a trainer by forking. Raises NotForked if that is not possible now."""
        if self._fork_server is None:
            raise NotForked
        with self._fork_server.forked(log) as forked:
            try:
                identity = Identity(forked.pid, psutil.Process(forked.pid).create_time())
            except psutil.NoSuchProcess:
                raise ProcessLookupError(f"process {forked.pid} was killed at once") from None
            self._children.pop(forked.pid, None)
            forked.become([*self._argv, *words], words, env)
        return identity

    def find(self, folder: RunFolder) -> Identity | None:
        """Returns the living process that was started for this run, by its command line."""
        wanted = str(folder.path)
        for process in psutil.process_iter(["cmdline", "uids"]):
            argv, uids = process.info["cmdline"] or [], process.info["uids"]
            if wanted not in argv[1:] or self._argv[-1] not in argv:
                continue
            if uids is not None and uids.real == os.getuid() and _leads_its_session(process.pid):
                identity = _identity(process)
                if identity is not None and self.is_alive(identity):
                    return identity
        return None

    def is_alive(self, process: Identity) -> bool:
        """Returns True while the process runs. Reaps a dead process that was started here."""
        child = self._children.get(process.pid)
        if child is not None and child.poll() is not None:
            return False
        return _living(process) is not None

    def exit_status(self, process: Identity) -> int | None:
        """Returns the exit status of a process started here (-N: by signal N), or None."""
        child = self._children.get(process.pid)
        if child is not None:
            return child.poll()
        if self._fork_server is None:
            return None
        return self._fork_server.exit_status(process.pid, is_gone=not self.is_alive(process))

    def tend(self) -> None:
        """Starts the fork server if trainers are to be forked and there is none; never waits."""
        if self._fork_server is not None:
            self._fork_server.is_ready()

    def close(self) -> None:
        """Ends the fork server. Trainers go on."""
        if self._fork_server is not None:
            self._fork_server.close()

    def terminate(self, process: Identity) -> None:
        """Sends SIGTERM only to the process, which ends its own children; ignores a dead process.

        Raises:
            PermissionError: the process now belongs to another user.
        """
        living = _living(process)
        if living is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                try:
                    living.terminate()
                except psutil.AccessDenied:
                    raise PermissionError(
                        f"cannot signal process {process.pid}: it belongs to another user"
                    ) from None

    def kill(self, process: Identity) -> None:
        """Kills the process and everything that it started, even if it is gone itself."""
        leader = _living(process)
        members = list(_session_members(process)) if leader is None else []
        if leader is not None:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                members = [leader, *leader.children(recursive=True), *_session_members(process)]
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                member.send_signal(signal.SIGKILL)
        self.forget(process)

    def forget(self, process: Identity) -> None:
        """Forgets a child that is gone, so that its pid can be reused."""
        child = self._children.get(process.pid)
        if child is not None and child.poll() is not None:
            del self._children[process.pid]
        if self._fork_server is not None:
            self._fork_server.forget(process.pid)


def _living(process: Identity) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return None
        age_differs = abs(found.create_time() - process.create_time)
    except psutil.Error:
        return None
    return found if age_differs <= CREATE_TIME_TOLERANCE_SECONDS else None


def _identity(process: psutil.Process) -> Identity | None:
    try:
        return Identity(process.pid, process.create_time())
    except psutil.Error:
        return None


def _leads_its_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _session_members(leader: Identity) -> Iterator[psutil.Process]:
    """Yields the other living processes of the session that `leader` started.

    While one of them lives, the kernel gives the leader's pid to no new process; so a process with
    that pid but another create time belongs to another session.
    """
    with contextlib.suppress(psutil.Error):
        present = psutil.Process(leader.pid)
        if abs(present.create_time() - leader.create_time) > CREATE_TIME_TOLERANCE_SECONDS:
            return
    for process in psutil.process_iter():
        try:
            if process.pid != leader.pid and os.getsid(process.pid) == leader.pid:
                yield process
        except OSError:
            continue
