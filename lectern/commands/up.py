"""`lectern up`: runs a teacher server and a control plane in one terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.options import AlertWebhookFile, Home, logs_of, roots_of
from lectern_common.errors import Misconfigured
from lectern_common.teacher.options import EngineName

if TYPE_CHECKING:
    from lectern.local.services import OnWait, PlaneOptions, Services, TeacherOptions

POLL_SECONDS = 0.2
WAIT_NOTE_SECONDS = 15.0
# Options of the control plane, which `up` has or sets itself.
_SET_BY_UP = frozenset(
    {
        *("--bind", "--home", "--port-file", "--max-running-runs", "--token-file", "--no-token"),
        *("--teacher-token-file", "--teacher-tls-ca", "--alert-webhook-file"),
    }
)


Model = Annotated[
    str | None,
    typer.Option(
        help="The teacher model: a folder, a name under the models root, or a hub id; not needed "
        "with --engine fixture.",
        show_default=False,
    ),
]
Engine = Annotated[
    EngineName,
    typer.Option(help="What computes the answers; fixture needs no model, for trying things out."),
]
VocabSize = Annotated[
    int | None,
    typer.Option(min=1, help="Vocabulary size of the fixture engine.", show_default=False),
]
TeacherBind = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of the teacher; 0.0.0.0 is every IPv4 address, [::] every address; port 0 "
        "takes a free one."
    ),
]
Bind = Annotated[
    str, typer.Option(help="HOST:PORT of the page and REST interface; port 0 takes a free one.")
]
MaxRunningRuns = Annotated[
    int | None,
    typer.Option(help="Runs that train at once; others wait in a queue.", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads of the teacher.", show_default=False)
]
ServedTokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the teacher's token; required if the teacher is "
        "bound beyond loopback. Runs name it in teacher.token_file.",
        show_default=False,
    ),
]
ServedTlsCert = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the teacher's certificate (PEM); turns TLS on.",
        show_default=False,
    ),
]
ServedTlsKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the certificate's private key (PEM).",
        show_default=False,
    ),
]
ServedTlsCa = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the certificate's CA (PEM). Runs name it in "
        "teacher.tls_ca_file.",
        show_default=False,
    ),
]
PlaneTokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the control plane's token [default: secrets/control-plane, made at the "
        "first start].",
        show_default=False,
    ),
]
NoToken = Annotated[
    bool,
    typer.Option(
        "--no-token", help="Let anyone on this machine use the control plane without a token."
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Write the logs only to HOME/logs; do not print them.")
]


def up(
    context: typer.Context,
    model: Model = None,
    engine: Engine = "transformers",
    vocab_size: VocabSize = None,
    teacher_bind: TeacherBind = "127.0.0.1:50051",
    bind: Bind = "127.0.0.1:8080",
    max_running_runs: MaxRunningRuns = None,
    threads: Threads = None,
    teacher_token_file: ServedTokenFile = None,
    teacher_tls_cert: ServedTlsCert = None,
    teacher_tls_key: ServedTlsKey = None,
    teacher_tls_ca: ServedTlsCa = None,
    token_file: PlaneTokenFile = None,
    no_token: NoToken = False,
    alert_webhook_file: AlertWebhookFile = None,
    quiet: Quiet = False,
    home: Home = None,
) -> None:
    """Start a teacher server and a control plane.

    Ctrl-C stops both; runs then write a checkpoint and resume at the next `lectern up`. If one of
    the two dies, the end of its log is shown and the other is stopped. Options after "--" go to the
    teacher: see `lectern teacher serve --help`. Those after a second "--" go to the control plane:
    see `python -m control_plane --help`.
    """
    from lectern.local.services import PlaneOptions, TeacherOptions

    if model is None and engine != "fixture":
        raise typer.BadParameter(
            "name the teacher model: a folder or a hub id", param_hint="--model"
        )
    tls = (teacher_tls_cert, teacher_tls_key, teacher_tls_ca)
    if any(tls) and not all(tls):
        raise typer.BadParameter(
            "set all three or none", param_hint="--teacher-tls-cert, -key and -ca"
        )
    secrets = roots_of(home).secrets
    to_teacher, to_plane = _divided(context.args)
    teacher = TeacherOptions(
        model=model,
        engine=engine,
        bind=teacher_bind,
        threads=threads,
        token_file=None if teacher_token_file is None else secrets / teacher_token_file,
        tls_cert=None if teacher_tls_cert is None else secrets / teacher_tls_cert,
        tls_key=None if teacher_tls_key is None else secrets / teacher_tls_key,
        vocab_size=vocab_size,
        further=to_teacher,
    )
    plane = PlaneOptions(
        bind,
        max_running_runs,
        token_file,
        teacher_token_file,
        teacher_tls_ca,
        no_token,
        alert_webhook_file,
        to_plane,
    )
    if alert_webhook_file is not None:
        from lectern_common.run.webhook import read_receiver

        read_receiver(secrets, alert_webhook_file)  # now, not once the model is loaded
    _require_callers_known(teacher, plane)
    _run(teacher, plane, home, quiet=quiet)


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words for the teacher, and those after another "--" for the control plane.

    Raises typer.BadParameter if `up` itself sets an option of the control plane.
    """
    at = words.index("--") if "--" in words else len(words)
    to_plane = list(words[at + 1 :])
    for name in (word.partition("=")[0] for word in to_plane):
        if name in _SET_BY_UP:
            remedy = "leave it out" if name == "--port-file" else 'write it before the first "--"'
            raise typer.BadParameter(f"`lectern up` sets it itself; {remedy}", param_hint=name)
    return list(words[:at]), to_plane


def _run(
    teacher: "TeacherOptions", plane: "PlaneOptions", home: Path | None, *, quiet: bool
) -> None:
    """Starts both and shows their logs until an interrupt, which stops them."""
    from lectern.local.processes import signals_interrupt
    from lectern.local.services import services

    roots, logs = roots_of(home), logs_of(home)
    with signals_interrupt():
        try:
            with services(teacher, plane, roots=roots, logs=logs, on_wait=wait_notes()) as running:
                for line in page_lines(running):
                    console.note(line)
                console.note(f"teacher  {running.teacher_address}")
                console.note("Ctrl-C stops both; runs checkpoint and resume at the next start")
                _stay(running, quiet=quiet)
        except KeyboardInterrupt:
            console.note("stopped")


def _require_callers_known(teacher: "TeacherOptions", plane: "PlaneOptions") -> None:
    """Raises unless both are bound to loopback or ask for a usable token.

    Both servers check this themselves, but the control plane only once the model is loaded, minutes
    later. The teacher's further options may authenticate its callers in another way.

    Raises:
        Misconfigured: naming the option to set.
    """
    from lectern_common.callers import read_token_file, require_known_callers

    if teacher.token_file is not None:
        read_token_file(teacher.token_file, "--teacher-token-file")
    require_known_callers(
        teacher.bind,
        known=teacher.token_file is not None
        or any(word.startswith(("--token-file", "--tls-client-ca")) for word in teacher.further),
        remedy="make a token (lectern token create teacher) and set --teacher-token-file teacher",
        option="--teacher-bind",
    )
    if plane.token_file is not None and plane.no_token:
        raise Misconfigured("--token-file has no effect with --no-token; remove one of the two")
    if plane.token_file is not None:
        read_token_file(plane.token_file)
    require_known_callers(
        plane.bind, known=not plane.no_token, remedy="remove --no-token", may="steer the runs"
    )


def page_lines(running: "Services") -> list[str]:
    """Returns what to print about the page; its address has the token only on a terminal.

    What is redirected becomes a log, where a token has no place.
    """
    if running.token_file is None:
        return [f"page     {running.url}"]
    token = f"token    in {running.token_file}"
    if sys.stderr.isatty():
        return [f"page     {running.page}", token]
    return [f"page     {running.url}", token]


def wait_notes() -> "OnWait":
    """Returns a callback that prints what is awaited, at most every WAIT_NOTE_SECONDS."""
    noted: dict[str, float] = {}

    def on_wait(name: str, seconds: float) -> None:
        if name not in noted or seconds - noted[name] >= WAIT_NOTE_SECONDS or seconds < noted[name]:
            noted[name] = seconds
            since = f" ({seconds:.0f} s)" if seconds >= 1 else ""
            console.note(f"waiting for the {name}{since}")

    return on_wait


def _stay(running: "Services", *, quiet: bool) -> None:
    """Prints both logs, prefixed, until an interrupt; raises if one of the two dies."""
    import time

    logs = [(child.name, child.log_lines()) for child in running.children]
    while True:
        if not quiet:
            for name, lines in logs:
                for line in lines.new():
                    sys.stdout.write(f"{name:<14} | {line}\n")
            sys.stdout.flush()
        running.require_alive("run `lectern up` again with the same options; the runs resume")
        time.sleep(POLL_SECONDS)
