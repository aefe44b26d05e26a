"""Runs a teacher server and a control plane as child processes of this one."""

import errno
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote

import psutil

from lectern.local.processes import Child, ChildDied, interrupts_held, wait_until
from lectern.options import given
from lectern_common.callers import CONTROL_PLANE_TOKEN, token_in
from lectern_common.errors import Misconfigured
from lectern_common.listening import EVERY_ADDRESS, EVERY_IPV4, bound_sockets
from lectern_common.roots import Roots
from lectern_common.teacher.options import TEACHER_OPTIONS, EngineName
from lectern_common.words import address_of, host_and_port, inert_name

DEFAULT_TEACHER_BIND = "127.0.0.1:50051"
DEFAULT_BIND = "127.0.0.1:8080"
TEACHER = "teacher server"
CONTROL_PLANE = "control plane"
# Time to checkpoint every run, and to finish the calls in flight.
CONTROL_PLANE_GRACE_SECONDS = 90.0
TEACHER_DRAIN_SECONDS = 15.0
TEACHER_GRACE_SECONDS = 20.0

OnWait = Callable[[str, float], None]
"""Called with (what is awaited, seconds so far) while a service starts or stops."""


@dataclass(frozen=True)
class Services:
    """Both services, once they are ready.

    Attributes:
        teacher_address: host:port for `teacher.address` of a run spec.
        url: of the page and of the REST interface.
        children: teacher server, control plane.
        token_file: holds the token that the control plane asks for; None if it asks for none.
    """

    teacher_address: str
    url: str
    children: tuple[Child, Child]
    token_file: Path | None = None

    @property
    def token(self) -> str | None:
        """The control plane's token, without which only its page itself can be read."""
        return None if self.token_file is None else token_in(self.token_file) or None

    @property
    def page(self) -> str:
        """The page's address for a browser: the token stands behind #, which is sent nowhere."""
        return f"{self.url}/#token={quote(self.token)}" if self.token else self.url

    def require_alive(self, advice: str = "") -> None:
        """Raises ChildDied, with the tail of its log, if either has ended; keeps both logs small.

        Args:
            advice: what to do then; ends the message.
        """
        for child in self.children:
            child.cap_log()
            if not child.is_alive:
                raise child.death(advice)


@dataclass(frozen=True)
class TeacherOptions:
    """How to start the teacher server; each field but `further` is one of `TEACHER_OPTIONS`.

    Attributes:
        model: the model to load; None only for an engine that needs none.
        engine: the engine that computes the answers.
        bind: host:port; port 0 takes a free one.
        threads: CPU threads; None means torch's default.
        token_file: file with the bearer token that callers must send.
        tls_cert: certificate (PEM); needs `tls_key`.
        tls_key: its private key.
        vocab_size: vocabulary size of the fixture engine.
        further: command-line words to pass on unchanged.
    """

    model: str | None
    engine: EngineName = "transformers"
    bind: str = DEFAULT_TEACHER_BIND
    threads: int | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    vocab_size: int | None = None
    further: Sequence[str] = ()

    def words(self, port_file: Path) -> list[str]:
        """Returns the server's command-line words; options that are None are left out.

        Args:
            port_file: where the server writes its address once it is ready.
        """
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        further = named.pop("further")
        named |= {"port_file": port_file, "drain_seconds": TEACHER_DRAIN_SECONDS}
        options = {TEACHER_OPTIONS[name].flag: value for name, value in named.items()}
        return [*given(options), *further]


@dataclass(frozen=True)
class PlaneOptions:
    """How to start the control plane.

    Attributes:
        bind: host:port; port 0 takes a free one.
        max_running_runs: how many runs train at once; None leaves it to the control plane.
        token_file: file with the bearer token that callers must send; None means the one under the
            secrets root, made at the first start.
        no_token: callers need send none.
        teacher_token_file: file under the secrets root with the teacher's token.
        teacher_tls_ca: file under the secrets root with the CA of the teacher's certificate.
        alert_webhook_file: file under the secrets root with the URL that alerts are posted to.
        further: command-line words to pass on unchanged.
    """

    bind: str = DEFAULT_BIND
    max_running_runs: int | None = None
    token_file: Path | None = None
    teacher_token_file: str | None = None
    teacher_tls_ca: str | None = None
    no_token: bool = False
    alert_webhook_file: str | None = None
    further: Sequence[str] = ()

    def words(self, port_file: Path, teacher_address: str) -> list[str]:
        """Returns the control plane's command-line words; options that are None are left out.

        Args:
            port_file: where the control plane writes its address once it is ready.
            teacher_address: host:port of the teacher to show.
        """
        options = {
            "--bind": self.bind,
            "--port-file": port_file,
            "--teacher": teacher_address,
            "--on-exit": "stop",
            "--max-running-runs": self.max_running_runs,
            "--token-file": self.token_file,
            "--no-token": self.no_token,
            "--teacher-token-file": self.teacher_token_file,
            "--teacher-tls-ca": self.teacher_tls_ca,
            "--alert-webhook-file": self.alert_webhook_file,
        }
        return [*given(options), *self.further]


@contextmanager
def services(
    teacher: TeacherOptions,
    plane: PlaneOptions,
    *,
    roots: Roots,
    logs: Path,
    ready_timeout_seconds: float | None = None,
    on_wait: OnWait = lambda name, seconds: None,
) -> Iterator[Services]:
    """Starts the teacher server, then the control plane; yields once both are ready.

    On leaving, stops the control plane first (its runs write checkpoints and resume at the next
    start), then the teacher. An interrupt while stopping kills both at once; the runs then train on
    without them, and the next start adopts them.

    Args:
        teacher: how to start the teacher.
        plane: how to start the control plane.
        roots: the roots that paths in run specs are relative to.
        logs: folder for teacher-server.log and control-plane.log; appended to.
        ready_timeout_seconds: for each of the two; None means no limit, as a model may have to be
            downloaded.
        on_wait: see OnWait.

    Raises:
        Misconfigured: a port is taken.
        ChildDied: either ended before it was ready.
    """
    require_free(teacher.bind, "--teacher-bind")
    require_free(plane.bind, "--bind")
    started: list[Child] = []
    with tempfile.TemporaryDirectory(prefix="lectern-") as scratch:
        try:
            port_file = Path(scratch) / "teacher"
            words = teacher.words(port_file)
            with interrupts_held():
                started.append(_child(TEACHER, "teacher_server", words, logs, roots))
            address = _reachable(_bound(started[0], port_file, ready_timeout_seconds, on_wait))
            port_file = Path(scratch) / "control-plane"
            words = plane.words(port_file, address)
            with interrupts_held():
                started.append(_child(CONTROL_PLANE, "control_plane", words, logs, roots))
            bound = _reachable(_bound(started[1], port_file, ready_timeout_seconds, on_wait))
            token_file = plane.token_file or roots.secrets / CONTROL_PLANE_TOKEN
            known = not plane.no_token and token_file.exists()
            yield Services(
                address,
                f"http://{bound}",
                (started[0], started[1]),
                token_file if known else None,
            )
        finally:
            _stop(started, on_wait)


def _child(name: str, module: str, words: list[str], logs: Path, roots: Roots) -> Child:
    """Starts `python -m module words`; its log file is named after `name`."""
    log = logs / f"{name.replace(' ', '-')}.log"
    return Child(name, [sys.executable, "-m", module, *words], log, roots.environment())


def _bound(child: Child, port_file: Path, timeout_seconds: float | None, on_wait: OnWait) -> str:
    """Returns the host:port that the child writes once it is ready."""
    begun = time.monotonic()

    def is_settled() -> bool:
        on_wait(child.name, time.monotonic() - begun)
        return not child.is_alive or (port_file.exists() and port_file.stat().st_size > 0)

    if not wait_until(is_settled, timeout_seconds):
        raise ChildDied(
            f"the {child.name} was not ready within {timeout_seconds:g} s; the end of its log:\n"
            f"{child.tail()}"
        )
    if not child.is_alive:
        raise child.death()
    return port_file.read_text().strip()


def _stop(started: list[Child], on_wait: OnWait) -> None:
    """Stops the control plane, then the teacher."""
    graces = {CONTROL_PLANE: CONTROL_PLANE_GRACE_SECONDS, TEACHER: TEACHER_GRACE_SECONDS}
    try:
        for child in reversed(started):
            if child.is_alive:
                on_wait(f"{child.name} to stop", 0.0)
            child.stop(graces[child.name])
    finally:
        for child in started:
            child.kill()


def require_free(address: str, option: str) -> None:
    """Raises Misconfigured if host:port is taken; names the process that holds it, if known."""
    host, port = host_and_port(address, option)
    try:
        for probe in bound_sockets(host, port):
            probe.close()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        remedy = "stop the process that uses it, or set" if taken else "set"
        raise Misconfigured(
            f"cannot listen on {error.filename or address}: {error.strerror}"
            f"{_holder(port) if taken else ''}; {remedy} {option} (port 0 takes a free one)"
        ) from None


def _holder(port: int) -> str:
    """Returns " (held by pid 12: python -m ...)", or "" if the process cannot be seen."""
    try:
        for connection in psutil.net_connections("tcp"):
            taken = connection.laddr and connection.laddr.port == port
            if taken and connection.status == psutil.CONN_LISTEN and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" (held by pid {connection.pid}: {inert_name(command[:80])})"
    except (psutil.Error, OSError):
        return ""
    return ""


def _reachable(bound: str) -> str:
    """Returns the address at which clients on this machine reach a bound one."""
    host, port = host_and_port(bound)
    return address_of("127.0.0.1", port) if host in (EVERY_IPV4, EVERY_ADDRESS) else bound
