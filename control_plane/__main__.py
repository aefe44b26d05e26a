"""`python -m control_plane`: one control plane on one address."""

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn

from control_plane.api.app import create_app
from control_plane.api.connections import (
    BoundedServer,
    Rarely,
    max_connections,
    raise_descriptor_limit,
)
from control_plane.api.tokens import Tokens, require_one_meaning, tokens_of
from control_plane.plane import ControlPlane, open_plane
from control_plane.runs.commands import MAX_QUEUED
from control_plane.runs.keeping.backups import EVERY_HOURS, KEPT
from control_plane.teachers.secrets import configured_teachers
from control_plane.trainers.devices import DEFAULT_MAX_RUNNING, Devices, Waiting, cuda_devices
from control_plane.trainers.launching.fork_server import FORK_SERVER_ARGV, ForkServer
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.processes import TRAINER_ARGV, LocalProcesses
from control_plane.trainers.overdue import WAITING_MINUTES
from control_plane.trainers.reconciler import STOP_GRACE_SECONDS
from lectern_common.callers import require_known_callers
from lectern_common.errors import LecternError, Misconfigured
from lectern_common.files import write_atomic
from lectern_common.listening import bound_sockets
from lectern_common.logs import configure_logs, get_logger
from lectern_common.roots import Roots
from lectern_common.run.webhook import read_receiver
from lectern_common.teacher.secrets import SecretFiles
from lectern_common.threads import threads_of_environment
from lectern_common.words import address_of, bracketed, host_and_port, inert_name

SHUTDOWN_SECONDS = 3
MAX_HEADER_BYTES = 16 * 1024

_log = get_logger()


def main(
    argv: Sequence[str] | None = None,
    trainer_argv: Sequence[str] = TRAINER_ARGV,
    fork_server_argv: Sequence[str] | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status.

    Args:
        argv: command line without the program's name.
        trainer_argv: command that trains the run folder appended to it; tests pass another.
        fork_server_argv: command of a server that forks such trainers; None means that of the usual
            trainers, and none for others.
    """
    options = _parser().parse_args(argv)
    configure_logs(options.log_level)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Rarely())
    try:
        return _serve(options, trainer_argv, fork_server_argv)
    except LecternError as error:
        print(f"control_plane: {inert_name(error)}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m control_plane", description="Starts, watches and stops distillation runs."
    )
    add = parser.add_argument
    add(
        "--bind",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="0.0.0.0: every IPv4 address, [::]: every address; port 0 picks a free one",
    )
    add("--home", type=Path, help="folder of data, models and runs (LECTERN_HOME, ~/.lectern)")
    add("--max-running-runs", type=_positive, metavar="N", help="runs that train at the same time")
    add(
        "--max-queued-runs",
        type=_positive,
        default=MAX_QUEUED,
        metavar="N",
        help=f"runs that wait for a device; a further one is refused ({MAX_QUEUED:,})",
    )
    add("--runs-per-gpu", type=_positive, default=1, metavar="N", help="runs sharing one GPU (1)")
    add(
        "--backup-every-hours",
        type=_hours,
        default=EVERY_HOURS,
        metavar="N",
        help=f"between two backups of the database, in HOME/backups ({EVERY_HOURS:g}); 0 makes "
        "them only at starts",
    )
    add(
        "--keep-backups",
        type=_positive,
        default=KEPT,
        metavar="N",
        help=f"how many of these are kept ({KEPT})",
    )
    add(
        "--teacher",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="shown on the page; runs send secrets only to these, and only those named here",
    )
    add("--teacher-token-file", metavar="NAME", help="for --teacher, under the secrets root")
    add("--teacher-tls-ca", metavar="NAME", help="its certificate's authority; turns TLS on")
    add("--teacher-tls-cert", metavar="NAME", help="the client's own certificate, with its key")
    add("--teacher-tls-key", metavar="NAME", help="all four lie under the secrets root")
    _add_access(add)
    _add_alerts(add)
    add(
        "--on-exit",
        choices=["leave", "stop"],
        default="leave",
        help="leave: trainers keep running, and are adopted at the next start; stop: they write a "
        "checkpoint and end, and resume at the next start",
    )
    add(
        "--stop-grace-seconds",
        type=float,
        default=STOP_GRACE_SECONDS,
        metavar="S",
        help=f"from the request to stop a trainer to SIGKILL ({STOP_GRACE_SECONDS:g})",
    )
    add(
        "--fork-server",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start trainers by forking a process that has imported torch, which saves seconds; "
        "without it nothing holds that memory while no run trains",
    )
    add("--port-file", type=Path, help="file for the bound host:port, written once it serves")
    add("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    return parser


def _add_access(add: Callable[..., Any]) -> None:
    """Adds the options about who may call."""
    add(
        "--token-file",
        type=Path,
        help="token that clients must send (secrets/control-plane)",
    )
    add(
        "--read-only-token-file",
        type=Path,
        help="another token, with which clients may only read (secrets/control-plane-read)",
    )
    add("--no-token", action="store_true", help="anyone who reaches the address may do anything")
    add(
        "--published-on-loopback",
        action="store_true",
        help="with --no-token: bound beyond loopback, but reachable only from this machine (a "
        "container's port published on 127.0.0.1)",
    )
    add("--allowed-host", action="append", default=[], metavar="NAME", help="another Host name")


def _add_alerts(add: Callable[..., Any]) -> None:
    """Adds the options about alerts."""
    add(
        "--alert-webhook-file",
        metavar="NAME",
        help="file under the secrets root: the URL that alerts are posted to on its first line, "
        "and on the second, if there is one, a secret that signs them",
    )
    add(
        "--alert-waiting-minutes",
        type=_minutes,
        default=WAITING_MINUTES,
        metavar="N",
        help="a run that waits for longer, in the queue, for its teacher or to go on by itself, "
        f"makes an alert ({WAITING_MINUTES:g})",
    )


def _serve(
    options: argparse.Namespace,
    trainer_argv: Sequence[str],
    fork_server_argv: Sequence[str] | None,
) -> int:
    host, port = host_and_port(options.bind)
    port_file: Path | None = options.port_file
    if port_file is not None and not port_file.absolute().parent.is_dir():
        raise Misconfigured(f"--port-file {port_file}: there is no folder {port_file.parent}")
    given = (options.token_file, options.read_only_token_file)
    require_one_meaning(*given, no_token=options.no_token)
    require_known_callers(
        options.bind,
        known=not options.no_token or options.published_on_loopback,
        remedy="remove --no-token",
        may="steer the runs",
    )
    limit = max_connections(raise_descriptor_limit())
    files = SecretFiles(
        options.teacher_token_file,
        options.teacher_tls_ca,
        options.teacher_tls_cert,
        options.teacher_tls_key,
    )
    teachers = configured_teachers(options.teacher, files)
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in _listen(host, port)]
        roots = Roots.of_home(options.home)
        tokens = Tokens() if options.no_token else tokens_of(roots.secrets, *given)
        receiver = None
        if options.alert_webhook_file is not None:
            receiver = read_receiver(roots.secrets, options.alert_webhook_file)
        devices = _devices(options)
        if fork_server_argv is None and trainer_argv == TRAINER_ARGV:
            fork_server_argv = FORK_SERVER_ARGV
        fork_server = None
        if options.fork_server and fork_server_argv is not None:
            fork_server = ForkServer(devices.threads(Waiting("", "auto")), fork_server_argv)
        launcher = LocalLauncher(LocalProcesses(trainer_argv, roots.environment(), fork_server))
        plane = open_plane(
            roots,
            devices=devices,
            teachers=teachers,
            launcher=launcher,
            stops_runs_on_exit=options.on_exit == "stop",
            stop_grace_seconds=options.stop_grace_seconds,
            max_queued=options.max_queued_runs,
            backup_every_hours=options.backup_every_hours,
            keep_backups=options.keep_backups,
            receiver=receiver,
            waiting_minutes=options.alert_waiting_minutes,
        )
        stack.callback(launcher.close)
        names = {bracketed(host).lower(), *(name.lower() for name in options.allowed_host)}
        config = uvicorn.Config(
            create_app(plane, token=tokens.full, read_token=tokens.read, allowed_hosts=names),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            proxy_headers=False,
            ws="none",
        )
        # uvicorn raises the signal that ended it again when it is done; ignore it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        names_of_page = options.allowed_host or [None]
        _Server(config, limit, plane, tokens, port_file, names_of_page[0]).run(sockets=listeners)
    return 0


def _devices(options: argparse.Namespace) -> Devices:
    cuda = cuda_devices()
    return Devices(
        cuda,
        options.max_running_runs or max(DEFAULT_MAX_RUNNING, len(cuda)),
        options.runs_per_gpu,
        threads_each=threads_of_environment(),
    )


class _Server(BoundedServer):
    """uvicorn that reports its address once it listens, and ends event streams before it waits."""

    def __init__(
        self,
        config: uvicorn.Config,
        limit: int,
        plane: ControlPlane,
        tokens: Tokens,
        port_file: Path | None,
        page_host: str | None = None,
    ) -> None:
        super().__init__(config, limit)
        self._page_host = page_host
        self._plane = plane
        self._tokens = tokens
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started or not sockets:
            return
        host, port = sockets[0].getsockname()[:2]
        bound = address_of(host, port)
        if self._page_host is not None:
            self._plane.deliveries.page = f"http://{self._page_host}:{port}/"
        elif not ip_address(host).is_unspecified:
            self._plane.deliveries.page = f"http://{bound}/"
        if self._port_file is not None:
            write_atomic(self._port_file, bound.encode())
        plane = self._plane
        _log.info(
            "control plane ready",
            url=f"http://{bound}/",
            token_file="none" if self._tokens.file is None else str(self._tokens.file),
            runs=str(plane.roots.runs),
            max_running_runs=plane.devices.max_running,
            cuda_devices=len(plane.devices.cuda),
            pid=os.getpid(),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _log.info("control plane stops", stops_runs=self._plane.stops_runs_on_exit)
        self._plane.feed.close()
        await super().shutdown(sockets)


def _minutes(text: str) -> float:
    number = float(text)
    if not (0 < number < float("inf")):
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _hours(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 8760:
        raise argparse.ArgumentTypeError("must be 0 to 8760")
    return number


def _listen(host: str, port: int) -> list[socket.socket]:
    try:
        listeners = bound_sockets(host, port)
    except OSError as error:
        raise Misconfigured(
            f"cannot listen on {error.filename or address_of(host, port)}: {error.strerror}; "
            "choose another with --bind HOST:PORT"
        ) from None
    for listener in listeners:
        listener.listen(256)
    return listeners


if __name__ == "__main__":
    sys.exit(main())
