"""`lectern teacher`: serve one, and ask one how it is.

`serve` becomes `python -m teacher_server`: options, help, signals, logs and exit status are its own
(teacher_server/options.py).
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lectern_cli import console
from lectern_cli.options import Json, command_group
from lectern_common.threads import waiting_environment

if TYPE_CHECKING:
    from lectern_common.client_tls import ClientTls

app = command_group("Serve a teacher model to student trainers.")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve(context: typer.Context) -> None:
    """Serve a teacher over gRPC, until Ctrl-C or SIGTERM."""
    sys.stdout.flush()
    os.environ.update(waiting_environment())
    os.execv(sys.executable, [sys.executable, "-P", "-m", "teacher_server", *context.args])  # noqa: S606


@app.command(epilog="Example: lectern teacher health 127.0.0.1:50051")
def health(
    address: Annotated[str, typer.Argument(help="HOST:PORT.")] = "127.0.0.1:50051",
    timeout_seconds: Annotated[float, typer.Option(min=0.1, help="For the answer.")] = 5.0,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            help="Authority of the server's certificate (PEM); turns TLS on.", show_default=False
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate to show (PEM); with --tls-key.", show_default=False),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key (PEM).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a teacher takes calls; exit status 0 where it does. Needs no token."""
    from lectern_common.teacher_channel import serving_state

    asks_tls = any((tls_ca, tls_cert, tls_key))
    tls = _tls(tls_ca, tls_cert, tls_key) if asks_tls else None
    state = serving_state(address, timeout_seconds, tls)
    if as_json:
        console.print_json({"address": address, "state": state})
    else:
        console.note(f"{address}: {state}")
    if state != "SERVING":
        raise typer.Exit(7)


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> "ClientTls":
    """Returns what the files hold. Raises Misconfigured."""
    from lectern_common.client_tls import ClientTls
    from lectern_common.errors import Misconfigured
    from lectern_common.pem import BadPem, read_authorities, read_key_pair

    if ca is None or (certificate is None) != (key is None):
        raise Misconfigured("TLS needs --tls-ca, and --tls-cert and --tls-key together or neither")
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
