"""The runs that a command names, asked one after the other."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern_common.errors import LecternError

if TYPE_CHECKING:
    from lectern.client import RunStatus

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, such as coder-7t2k9q.")]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN", help="Run ids, such as coder-7t2k9q.")]


def ask_each(
    run_ids: list[str], ask: "Callable[[str], RunStatus]"
) -> "tuple[list[RunStatus], list[LecternError]]":
    """Calls `ask` for each run; returns the runs that accepted, and the errors of the others."""
    from lectern.client import ControlPlaneUnavailable

    runs: list[RunStatus] = []
    refusals: list[LecternError] = []
    for run_id in run_ids:
        try:
            runs.append(ask(run_id))
        except ControlPlaneUnavailable:
            raise
        except LecternError as error:
            refusals.append(error)
    return runs, refusals


def exit_with(refusals: list[LecternError]) -> None:
    """Prints each error and exits with the first one's status; does nothing if there are none."""
    for error in refusals:
        console.print_error(error)
    if refusals:
        raise typer.Exit(refusals[0].exit_code)
