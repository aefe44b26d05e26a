"""Options shared by several commands."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lectern_common.errors import Misconfigured, NotFound
from lectern_common.words import inert_name

if TYPE_CHECKING:
    from lectern.client import Client
    from lectern_common.roots import Roots
    from lectern_common.spec.run_spec import RunSpec

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder for data, models, runs, secrets and cache [default: LECTERN_HOME, else "
        "~/.lectern].",
        show_default=False,
    ),
]
DEFAULT_URL = "http://127.0.0.1:8080"
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Url = Annotated[
    str, typer.Option("--url", envvar="LECTERN_URL", help="Address of the control plane.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="LECTERN_TOKEN_FILE",
        help="File with the bearer token; LECTERN_TOKEN holds the token itself [default: "
        "secrets/control-plane under LECTERN_HOME, for a control plane on this machine].",
        show_default=False,
    ),
]
TeacherTokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the teacher's token.",
        show_default=False,
    ),
]
TeacherTlsCa = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the CA of the teacher's certificate (PEM); turns "
        "TLS on.",
        show_default=False,
    ),
]
TeacherTlsCert = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the client certificate (PEM), if the teacher asks "
        "for one.",
        show_default=False,
    ),
]
TeacherTlsKey = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the client's private key (PEM).",
        show_default=False,
    ),
]
AlertWebhookFile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="File under the secrets root with the URL that the control plane posts alerts to, and "
        "on a second line, if you like, a secret that signs them.",
        show_default=False,
    ),
]


def command_group(help_text: str) -> typer.Typer:
    """Returns an empty group of commands, with plain-text help."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=help_text)


def spec_of(path: Path) -> "RunSpec":
    """Returns the resolved spec of a file named on the command line.

    Raises:
        NotFound: there is no such file.
        InvalidSpec: it is not a run spec.
    """
    from lectern_common.spec.load import load_spec

    if not path.exists():
        raise NotFound(f"no file {inert_name(path)}")
    return load_spec(path)


def given(options: Mapping[str, object]) -> list[str]:
    """Returns command-line words for the options that are set: not None, and not False."""
    words = []
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words


def roots_of(home: Path | None) -> "Roots":
    """Returns the roots that `--home` and the environment name."""
    from lectern_common.roots import Roots

    return Roots.of_home(home)


def logs_of(home: Path | None) -> Path:
    """Returns the folder for the logs of services started here: HOME/logs."""
    base = home or Path(os.environ.get("LECTERN_HOME") or Path.home() / ".lectern")
    return base.resolve() / "logs"


def control_plane(url: str, token_file: Path | None) -> "Client":
    """Returns a client for `url`, with the token of the file, else of LECTERN_TOKEN, else its own.

    Raises:
        Misconfigured: the file cannot be read or is empty.
    """
    from lectern.client import Client

    token = os.environ.get("LECTERN_TOKEN") or None
    if token_file is not None:
        try:
            token = token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"cannot read the token in {token_file}: {error}") from None
        if not token:
            raise Misconfigured(f"{token_file} is empty; it must hold the token")
    return Client(url, token=token)
