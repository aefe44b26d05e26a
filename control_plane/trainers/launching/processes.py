"""Starts trainers in sessions of their own, finds them again, stops and kills them.

A process is identified as in lectern_common/processes.py: pids are reused, clocks are set. A zombie
counts as dead.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from control_plane.trainers.kinds.kind import Folder
from control_plane.trainers.launching.environment import trainer_environment
from control_plane.trainers.launching.fork_server import ForkServer, NotForked
from lectern_common.logs import get_logger
from lectern_common.run.folder import STOP_AT_CHECKPOINT_SIGNAL
from lectern_common.run.processes import (
    PROC,
    Identity,
    boot_id,
    identity_of,
    is_alive,
    is_same,
    lock_holder,
)
from lectern_common.stages.folder import TaskFolder

_log = get_logger()

TRAINER_ARGV = (sys.executable, "-m", "student_trainer")


class LocalProcesses:
    """Starts, finds, stops and kills trainers on this machine.

    Args:
        argv: the command that the run folder and `--resume` are appended to.
        environment: added to what a trainer inherits (environment.py).
        fork_server: forks trainers of the same program as `argv`; None starts each afresh. While it
            is not ready, they are started afresh as well.
        proc: where the kernel shows its processes.
    """

    def __init__(
        self,
        argv: Sequence[str] = TRAINER_ARGV,
        environment: Mapping[str, str] | None = None,
        fork_server: ForkServer | None = None,
        proc: Path = PROC,
    ) -> None:
        self._argv = list(argv)
        self._proc = proc
        self._environment = dict(environment or {})
        self._fork_server = fork_server
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, folder: Folder, *, resume: bool, environment: Mapping[str, str]) -> Identity:
        """Returns the process that now trains the run, or does the task; it writes to the log.

        Raises:
            OSError: it cannot be started.
        """
        if isinstance(folder, TaskFolder):
            words = [folder.read_asked()[0], str(folder.path)]
        else:
            words = [str(folder.path), *(["--resume"] if resume else [])]
        env = {**trainer_environment(), **self._environment, **environment}
        with folder.log_path.open("ab") as log:
            try:
                return self._forked(words, env, log.fileno())
            except NotForked as error:
                if self._fork_server is not None and self._fork_server.given_up is None:
                    _log.warning("trainer not forked", run=folder.path.name, why=str(error))
            child = subprocess.Popen(
                [*self._argv, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        # It may have ended already, but nobody has waited for it yet.
        try:
            identity = identity_of(child.pid, self._proc, ended_too=True)
            if identity is None:
                raise OSError(f"process {child.pid} was started, but the system does not show it")
        except OSError:
            child.kill()  # nobody could watch or stop it
            child.wait()
            raise
        self._children[child.pid] = child
        return identity

    def _forked(self, words: Sequence[str], env: Mapping[str, str], log: int) -> Identity:
        """Starts a trainer by forking. Raises NotForked if that is not possible now.

        One that was killed before it was told what it is counts as a trainer that was killed.
        """
        if self._fork_server is None:
            raise NotForked
        with self._fork_server.forked(log) as forked:
            self._children.pop(forked.pid, None)
            identity = identity_of(forked.pid, self._proc, ended_too=True)
            # No process has these ticks: it is gone already, and only its exit status is known.
            identity = identity or Identity(forked.pid, boot_id(self._proc), 0)
            with contextlib.suppress(BrokenPipeError):
                forked.become([*self._argv, *words], words, env)
        return identity

    def find(self, folder: Folder, said: Identity | None = None) -> Identity | None:
        """Returns the living process of this run or task; None if there is none.

        Args:
            said: the process that the status names. It is believed only if it holds the
                folder's lock, or its command line names the folder. Otherwise the process whose
                command line is that of a trainer of this folder.
        """
        if said is not None and is_alive(said, self._proc) and self._trains(said.pid, folder):
            return said
        for process in psutil.process_iter(["cmdline", "uids"]):
            uids = process.info["uids"]
            if not self._names(process.info["cmdline"], folder):
                continue
            if uids is not None and uids.real == os.getuid() and _leads_its_session(process.pid):
                identity = identity_of(process.pid, self._proc)
                if identity is not None and self.is_alive(identity):
                    return identity
        return None

    def _trains(self, pid: int, folder: Folder) -> bool:
        if lock_holder(folder.path / "lock", self._proc) == pid:
            return True
        try:
            return self._names(psutil.Process(pid).cmdline(), folder)
        except psutil.Error:
            return False

    def _names(self, argv: Sequence[str] | None, folder: Folder) -> bool:
        return argv is not None and str(folder.path) in argv[1:] and self._argv[-1] in argv

    def is_alive(self, process: Identity) -> bool:
        """Returns True while the process runs. Reaps a dead process that was started here."""
        child = self._children.get(process.pid)
        if child is not None and child.poll() is not None:
            return False
        return is_alive(process, self._proc)

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

    def slowed(self) -> str | None:
        """Returns why trainers start more slowly than they could for good; None if they do not."""
        return None if self._fork_server is None else self._fork_server.given_up

    def close(self) -> None:
        """Ends the fork server. Trainers go on."""
        if self._fork_server is not None:
            self._fork_server.close()

    def terminate(self, process: Identity) -> None:
        """Sends SIGTERM only to the process, which ends its own children; ignores a dead process.

        Raises:
            PermissionError: the process now belongs to another user.
        """
        self._signal(process, signal.SIGTERM)

    def stop_at_checkpoint(self, process: Identity) -> None:
        """Tells only the process to stop after its next checkpoint; ignores a dead process.

        It must be one whose status says where it stops: the signal ends any other.

        Raises:
            PermissionError: the process now belongs to another user.
        """
        self._signal(process, STOP_AT_CHECKPOINT_SIGNAL)

    def _signal(self, process: Identity, number: signal.Signals) -> None:
        if is_alive(process, self._proc):
            with contextlib.suppress(psutil.NoSuchProcess):
                try:
                    psutil.Process(process.pid).send_signal(number)
                except psutil.AccessDenied:
                    raise PermissionError(
                        f"cannot signal process {process.pid}: it belongs to another user"
                    ) from None

    def kill(self, process: Identity) -> None:
        """Kills the process and everything that it started, even if it is gone itself."""
        members = list(self._session_members(process))
        if is_alive(process, self._proc):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                leader = psutil.Process(process.pid)
                members = [leader, *leader.children(recursive=True), *members]
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

    def _session_members(self, leader: Identity) -> Iterator[psutil.Process]:
        """Yields the other living processes of the session that `leader` started.

        While one of them lives, the kernel gives the leader's pid to no new process; so another
        process with that pid leads another session.
        """
        present = identity_of(leader.pid, self._proc, ended_too=True)
        boot = boot_id(self._proc)
        if (present is not None and not is_same(present, leader)) or (
            leader.boot_id and boot and leader.boot_id != boot
        ):
            return
        for process in psutil.process_iter():
            try:
                if process.pid != leader.pid and os.getsid(process.pid) == leader.pid:
                    yield process
            except OSError:
                continue


def _leads_its_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False
