"""`lectern token`: creates bearer tokens under the secrets root."""

import os
import secrets
from typing import Annotated

import typer

from lectern import console
from lectern.options import Home, command_group, roots_of

TOKEN_BYTES = 32

app = command_group("Create bearer tokens.")


@app.callback()
def _group() -> None:
    """Keeps `create` a subcommand, although it is the only one."""


@app.command(epilog="Example: lectern token create teacher")
def create(
    name: Annotated[str, typer.Argument(help="Name of the file under the secrets root.")],
    home: Home = None,
) -> None:
    """Create a random token that only you can read.

    An existing token of that name is kept. Start a teacher server with it as --token-file, and name
    it in a run spec as teacher.token_file.
    """
    from lectern_common.roots import resolve_under

    secrets_root = roots_of(home).secrets
    secrets_root.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = resolve_under(secrets_root, name, "name")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        console.note(f"{path} exists already; kept as it is")
        return
    with open(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
    console.note(f"{path} holds a new token")
