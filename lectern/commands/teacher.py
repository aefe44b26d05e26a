"""`lectern teacher`: serves a teacher, checks its health, shows its status.

`serve` becomes `python -m teacher_server`: options, help, signals, logs and exit status are the
server's own (teacher_server/options.py).
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.options import Json, command_group
from lectern_common.threads import waiting_environment

if TYPE_CHECKING:
    from lectern_common.teacher.tls import ClientTls

app = command_group("Serve a teacher, check its health, show its status.")

Address = Annotated[str, typer.Argument(help="Address of the teacher, HOST:PORT.")]
DEFAULT_ADDRESS = "127.0.0.1:50051"
TimeoutSeconds = Annotated[float, typer.Option(min=0.1, help="How long to wait for an answer.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="CA of the teacher's certificate (PEM); turns TLS on.", show_default=False),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        help="Client certificate (PEM), if the teacher asks for one; with --tls-key.",
        show_default=False,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(help="Private key of the client certificate (PEM).", show_default=False),
]


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: lectern teacher serve --help",
)
def serve(context: typer.Context) -> None:
    """Serve a teacher over gRPC, until Ctrl-C or SIGTERM."""
    sys.stdout.flush()
    os.environ.update(waiting_environment())
    os.execv(sys.executable, [sys.executable, "-P", "-m", "teacher_server", *context.args])  # noqa: S606


@app.command(epilog="Example: lectern teacher health 127.0.0.1:50051")
def health(
    address: Address = DEFAULT_ADDRESS,
    timeout_seconds: TimeoutSeconds = 5.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: Json = False,
) -> None:
    """Check whether a teacher accepts calls.

    Exits with 0 if it does, 7 if not. Needs no token.
    """
    from lectern_common.teacher.channel import serving_state

    state = serving_state(address, timeout_seconds, _tls(tls_ca, tls_cert, tls_key))
    if as_json:
        console.print_json({"address": address, "state": state})
    else:
        console.note(f"{address}: {state}")
    if state != "SERVING":
        raise typer.Exit(7)


@app.command(epilog="Example: lectern teacher status 127.0.0.1:50051 --json")
def status(
    address: Address = DEFAULT_ADDRESS,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the teacher's bearer token.", show_default=False),
    ] = None,
    timeout_seconds: TimeoutSeconds = 5.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    as_json: Json = False,
) -> None:
    """Show a teacher's speed, queue and cache, and each run's use of it."""
    from lectern.terminal.status import print_status
    from lectern_common.teacher.channel import TeacherChannel
    from lectern_common.teacher.figures import teacher_figures

    token = None if token_file is None else _token(token_file)
    with TeacherChannel(address, token, _tls(tls_ca, tls_cert, tls_key)) as channel:
        model, stats = channel.get_model(timeout_seconds), channel.get_stats(timeout_seconds)
    figures = {"address": address, **teacher_figures(model, stats)}
    if as_json:
        console.print_json(figures)
    else:
        print_status(figures)


def _token(path: Path) -> str:
    """Returns the token in a file. Raises Misconfigured."""
    from lectern_common.errors import Misconfigured

    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise Misconfigured(f"cannot read --token-file {path}: {why}") from None
    if not token:
        raise Misconfigured(f"--token-file {path} is empty; it must hold the token")
    return token


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> "ClientTls | None":
    """Reads the TLS files; returns None if none are given. Raises Misconfigured."""
    from lectern_common.errors import Misconfigured
    from lectern_common.teacher.pem import BadPem, read_authorities, read_key_pair
    from lectern_common.teacher.tls import ClientTls

    if ca is None and certificate is None and key is None:
        return None
    if ca is None or (certificate is None) != (key is None):
        raise Misconfigured("TLS needs --tls-ca; set --tls-cert and --tls-key together or neither")
    try:
        authorities = read_authorities(ca)
    except BadPem as error:
        raise Misconfigured(f"--tls-ca {ca}: {error}") from None
    if certificate is None or key is None:
        return ClientTls(authorities)
    try:
        return ClientTls(authorities, *read_key_pair(certificate, key))
    except BadPem as error:
        raise Misconfigured(f"--tls-cert {certificate}, --tls-key {key}: {error}") from None
