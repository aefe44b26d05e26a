"""`lectern up`: teacher server and control plane in one terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lectern_cli import console
from lectern_cli.options import Home, given, logs_of, roots_of

if TYPE_CHECKING:
    from lectern_cli.services import OnWait, Services

POLL_SECONDS = 0.2
WAIT_NOTE_SECONDS = 15.0


def up(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="The teacher: a folder, a name under the models root, or a hub id; not needed "
            "with --engine fixture.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["transformers", "fixture"], typer.Option(help="What computes the answers.")
    ] = "transformers",
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Of the fixture engine.", show_default=False)
    ] = None,
    teacher_bind: Annotated[
        str, typer.Option(help="HOST:PORT of the teacher; port 0 takes a free one.")
    ] = "127.0.0.1:50051",
    bind: Annotated[
        str, typer.Option(help="HOST:PORT of page and REST interface; port 0 takes a free one.")
    ] = "127.0.0.1:8080",
    max_running_runs: Annotated[
        int | None,
        typer.Option(help="Runs that train at one time; the rest queue.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of the teacher.", show_default=False)
    ] = None,
    teacher_token_file: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="File under the secrets root with the teacher's token; required where it is bound "
            "beyond loopback. Runs name it in teacher.token_file.",
            show_default=False,
        ),
    ] = None,
    teacher_tls_cert: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="File there with the teacher's certificate (PEM): the teacher speaks TLS.",
            show_default=False,
        ),
    ] = None,
    teacher_tls_key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="File there with its private key.", show_default=False),
    ] = None,
    teacher_tls_ca: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="File there with the authority of that certificate. Runs name it in "
            "teacher.tls_ca_file.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the control plane's token; required beyond loopback.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Leave the logs in HOME/logs; do not print them.")
    ] = False,
    home: Home = None,
) -> None:
    """Start a teacher server and the control plane.

    Ctrl-C ends both. Runs that train then write a checkpoint, and go on at the next `lectern up`.
    Where one of the two dies, the end of its log is shown and the other ends too. What follows a
    "--" goes to the teacher: see `lectern teacher serve --help`.
    """
    from lectern_cli.processes import signals_interrupt
    from lectern_cli.services import services

    if model is None and engine != "fixture":
        raise typer.BadParameter(
            "set the teacher: a model folder or a hub id", param_hint="--model"
        )
    tls = (teacher_tls_cert, teacher_tls_key, teacher_tls_ca)
    if any(tls) and not all(tls):
        raise typer.BadParameter("set all three", param_hint="--teacher-tls-cert, -key and -ca")
    roots = roots_of(home)
    teacher_token = None if teacher_token_file is None else roots.secrets / teacher_token_file
    _require_callers_known(teacher_bind, teacher_token, bind, token_file, context.args)
    with signals_interrupt():
        try:
            with services(
                model=model,
                engine=engine,
                roots=roots,
                logs=logs_of(home),
                teacher_bind=teacher_bind,
                bind=bind,
                max_running_runs=max_running_runs,
                threads=threads,
                teacher_options=given(
                    {
                        "--token-file": teacher_token,
                        "--tls-cert": teacher_tls_cert and roots.secrets / teacher_tls_cert,
                        "--tls-key": teacher_tls_key and roots.secrets / teacher_tls_key,
                        "--vocab-size": vocab_size,
                    }
                )
                + context.args,
                control_plane_options=given(
                    {
                        "--token-file": token_file,
                        "--teacher-token-file": teacher_token_file,
                        "--teacher-tls-ca": teacher_tls_ca,
                    }
                ),
                on_wait=wait_notes(),
            ) as running:
                console.note(f"page     {running.url}")
                console.note(f"teacher  {running.teacher_address}")
                console.note("Ctrl-C ends both; runs then checkpoint and go on at the next start")
                _stay(running, quiet=quiet)
        except KeyboardInterrupt:
            console.note("ended")


def _require_callers_known(
    teacher_bind: str,
    teacher_token: Path | None,
    bind: str,
    token_file: Path | None,
    teacher_words: Sequence[str],
) -> None:
    """Raises Misconfigured unless each is for this machine only, or has a token that can be used.

    Both servers would say so themselves, the control plane minutes later: once a model is loaded.

    Args:
        teacher_words: further options of the teacher, which may tell it otherwise who calls.
    """
    from lectern_common.callers import read_token_file, require_known_callers

    if teacher_token is not None:
        read_token_file(teacher_token, "--teacher-token-file")
    require_known_callers(
        teacher_bind,
        known=teacher_token is not None
        or any(word.startswith(("--token-file", "--tls-client-ca")) for word in teacher_words),
        remedy="make a token (lectern token create teacher) and set --teacher-token-file teacher",
        option="--teacher-bind",
    )
    if token_file is not None:
        read_token_file(token_file)
    require_known_callers(bind, known=token_file is not None, may="steer the runs")


def wait_notes() -> "OnWait":
    """Returns a callback that says on standard error what is waited for, now and then."""
    said: dict[str, float] = {}

    def on_wait(name: str, seconds: float) -> None:
        if name not in said or seconds - said[name] >= WAIT_NOTE_SECONDS or seconds < said[name]:
            said[name] = seconds
            since = f" ({seconds:.0f} s)" if seconds >= 1 else ""
            console.note(f"waiting for the {name}{since}")

    return on_wait


def _stay(running: "Services", *, quiet: bool) -> None:
    """Prints both logs, prefixed, until an interrupt; raises where one of the two dies."""
    import time

    logs = [(child.name, child.log_lines()) for child in running.children]
    while True:
        if not quiet:
            for name, lines in logs:
                for line in lines.new():
                    sys.stdout.write(f"{name:<14} | {line}\n")
            sys.stdout.flush()
        running.require_alive("run `lectern up` again with the same options; the runs go on")
        time.sleep(POLL_SECONDS)
