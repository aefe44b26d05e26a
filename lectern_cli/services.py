"""A teacher server and a control plane as children of this process: what `lectern up` runs."""

import errno
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from lectern_cli.processes import Child, ChildDied, interrupts_held, wait_until
from lectern_common.errors import Misconfigured
from lectern_common.roots import Roots
from lectern_common.words import address_of, host_and_port

DEFAULT_TEACHER_BIND = "127.0.0.1:50051"
DEFAULT_BIND = "127.0.0.1:8080"
TEACHER = "teacher server"
CONTROL_PLANE = "control plane"
# Time to checkpoint every run, and to finish the calls in flight.
CONTROL_PLANE_GRACE_SECONDS = 90.0
TEACHER_DRAIN_SECONDS = 15.0
TEACHER_GRACE_SECONDS = 20.0

OnWait = Callable[[str, float], None]
"""Told (what is waited for, seconds so far) while a service starts or ends."""


@dataclass(frozen=True)
class Services:
    """Both services, ready.

    Attributes:
        teacher_address: host:port for `teacher.address` of a run spec.
        url: of the page and of the REST interface.
        children: teacher server, control plane.
    """

    teacher_address: str
    url: str
    children: tuple[Child, Child]

    def require_alive(self, advice: str = "") -> None:
        """Raises ChildDied, with the tail of its log, where one of the two has ended.

        Args:
            advice: what to do then; the last words of the error, with what ended.
        """
        for child in self.children:
            if not child.is_alive:
                raise child.death(advice)


@contextmanager
def services(
    *,
    model: str | None,
    roots: Roots,
    logs: Path,
    engine: str = "transformers",
    teacher_bind: str = DEFAULT_TEACHER_BIND,
    bind: str = DEFAULT_BIND,
    max_running_runs: int | None = None,
    threads: int | None = None,
    teacher_options: Sequence[str] = (),
    control_plane_options: Sequence[str] = (),
    ready_timeout_seconds: float | None = None,
    on_wait: OnWait = lambda name, seconds: None,
) -> Iterator[Services]:
    """Starts the teacher server, then the control plane; yields once both are ready.

    On leaving, the control plane ends first (its runs write checkpoints and go on at the next
    start), then the teacher. An interrupt during that kills both at once; the runs then train on
    without them, and the next start adopts them.

    Args:
        model: what the teacher is asked to load; None only for an engine that needs none.
        roots: what run specs are relative to.
        logs: folder for teacher-server.log and control-plane.log; appended to.
        teacher_bind: host:port; port 0 takes a free one.
        bind: host:port of the control plane; port 0 takes a free one.
        threads: CPU threads of the teacher.
        teacher_options: further options of `python -m teacher_server`.
        control_plane_options: further options of `python -m control_plane`.
        ready_timeout_seconds: for each of the two; None waits as long as a download takes.

    Raises:
        Misconfigured: a port is taken.
        ChildDied: one of the two ended before it was ready.
    """
    require_free(teacher_bind, "--teacher-bind")
    require_free(bind, "--bind")
    started: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="lectern-") as scratch:
        try:
            teacher_port_file = Path(scratch) / "teacher"
            teacher_argv = [
                *_python("teacher_server"),
                *(["--model", model] if model is not None else []),
                *("--engine", engine),
                *("--bind", teacher_bind),
                *("--port-file", str(teacher_port_file)),
                *("--drain-seconds", str(TEACHER_DRAIN_SECONDS)),
                *(["--threads", str(threads)] if threads is not None else []),
                *teacher_options,
            ]
            with interrupts_held():
                log = logs / "teacher-server.log"
                started.append(Child(TEACHER, teacher_argv, log, roots.environment()))
            teacher_address = _reachable(
                _bound(started[0], teacher_port_file, ready_timeout_seconds, on_wait)
            )
            port_file = Path(scratch) / "control-plane"
            running = ["--max-running-runs", str(max_running_runs)]
            plane_argv = [
                *_python("control_plane"),
                *("--bind", bind),
                *("--port-file", str(port_file)),
                *("--teacher", teacher_address),
                *("--on-exit", "stop"),
                *(running if max_running_runs is not None else []),
                *control_plane_options,
            ]
            with interrupts_held():
                log = logs / "control-plane.log"
                started.append(Child(CONTROL_PLANE, plane_argv, log, roots.environment()))
            bound = _bound(started[1], port_file, ready_timeout_seconds, on_wait)
            yield Services(teacher_address, f"http://{_reachable(bound)}", (started[0], started[1]))
        finally:
            _stop(started, on_wait)


def _bound(child: Child, port_file: Path, timeout_seconds: float | None, on_wait: OnWait) -> str:
    """Returns the host:port that the child writes once it is ready."""
    begun = time.monotonic()

    def is_settled() -> bool:
        on_wait(child.name, time.monotonic() - begun)
        return not child.is_alive or (port_file.exists() and port_file.stat().st_size > 0)

    if not wait_until(is_settled, timeout_seconds):
        raise ChildDied(
            f"the {child.name} was not ready within {timeout_seconds:g} s; it said last:\n"
            f"{child.tail()}"
        )
    if not child.is_alive:
        raise child.death()
    return port_file.read_text().strip()


def _stop(started: list[Child], on_wait: OnWait) -> None:
    """Ends the control plane, then the teacher."""
    graces = {CONTROL_PLANE: CONTROL_PLANE_GRACE_SECONDS, TEACHER: TEACHER_GRACE_SECONDS}
    try:
        for child in reversed(started):
            if child.is_alive:
                on_wait(f"{child.name} to end", 0.0)
            child.stop(graces[child.name])
    finally:
        for child in started:
            child.kill()


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def require_free(address: str, option: str) -> None:
    """Raises Misconfigured where host:port is taken, naming the process where that is known."""
    host, port = host_and_port(address, option)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = f"{error.strerror}{_holder(port)}; end it, or" if taken else f"{error.strerror};"
            raise Misconfigured(
                f"cannot listen on {address}: {what} set {option} (port 0 takes a free one)"
            ) from None


def _holder(port: int) -> str:
    """Returns " (held by pid 12: python -m ...)", or "" where that cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            taken = connection.laddr and connection.laddr.port == port
            if taken and connection.status == psutil.CONN_LISTEN and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" (held by pid {connection.pid}: {command[:80]})"
    except (psutil.Error, OSError):
        return ""
    return ""


def _reachable(bound: str) -> str:
    """Returns an address for clients on this machine of one that was bound."""
    host, port = host_and_port(bound)
    return address_of("127.0.0.1", port) if host in ("0.0.0.0", "::") else bound  # noqa: S104
