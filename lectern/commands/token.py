"""`lectern token`: creates bearer tokens under the secrets root."""

from typing import Annotated

import typer

from lectern import console
from lectern.options import Home, command_group, roots_of

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
    from lectern_common.callers import make_token_file
    from lectern_common.roots import resolve_under

    path = resolve_under(roots_of(home).secrets, name, "name")
    if make_token_file(path):
        console.note(f"{path} holds a new token")
    else:
        console.note(f"{path} exists already; kept as it is")
