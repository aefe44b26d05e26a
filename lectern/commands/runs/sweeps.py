"""`lectern sweep` and `lectern sweeps`: runs of one base spec that differ in some settings."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lectern import console
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, command_group, control_plane
from lectern_common.errors import NotFound
from lectern_common.words import inert_name

if TYPE_CHECKING:
    from lectern.client import Client, SweepStatus

app = command_group("List, show, stop and delete sweeps; `lectern sweep FILE` makes one.")

SweepId = Annotated[str, typer.Argument(metavar="SWEEP", help="Sweep id, such as rates-7t2k9q.")]
POLL_SECONDS = 2.0
_EXAMPLE = """\
A minimal sweep (docs/sweeps.md says more):

name: rates
base: {teacher: {address: "127.0.0.1:50051"}, student: {init: my-student}, data: {path: my-data}}
grid: {optimizer.learning_rate: [0.001, 0.0003, 0.0001]}
"""


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.yaml", help="name, base, and grid or list.")
    ],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be made, check it and estimate it."),
    ] = False,
    watch_it: Annotated[
        bool, typer.Option("--watch", help="Show the table until all runs have ended.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Create a run for each combination of settings: all of them, or none.

    FILE has a base spec and either a grid (all combinations) or a list. The runs are ordinary ones.
    With --watch, exits as `lectern runs watch` does.
    """
    body = _sweep_of(file)
    with control_plane(url, token_file) as service:
        if dry_run:
            _print_check(service.check_sweep(body), as_json=as_json)
            return
        made = service.create_sweep(body)
        if not as_json:
            print(made.id)
        elif not watch_it:
            console.print_json(made.json)
        if watch_it:
            _watch(service, made, as_json=as_json)


@app.command("list", epilog="Example: lectern sweeps list --json")
def list_sweeps(
    url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """List sweeps, newest first."""
    from lectern.terminal.sweeps import list_lines

    with control_plane(url, token_file) as service:
        found = service.sweeps()
    if as_json:
        console.print_json([one.json for one in found])
    elif not found:
        console.note("no sweeps yet; `lectern sweep FILE.yaml` makes one")
    else:
        print("\n".join(list_lines(found, _width())))


@app.command(epilog="Example: lectern sweeps show rates-7t2k9q")
def show(
    sweep_id: SweepId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Show the table of a sweep: what its runs set and reached, mean and spread, the best (*)."""
    with control_plane(url, token_file) as service:
        found = service.sweep(sweep_id)
    _print(found, as_json=as_json)


@app.command(epilog="Example: lectern sweeps stop rates-7t2k9q")
def stop(
    sweep_id: SweepId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Ask all runs of a sweep to stop that are active or queued."""
    with control_plane(url, token_file) as service:
        found = service.stop_sweep(sweep_id)
    if as_json:
        console.print_json(found.json)
        return
    for run in found.runs:
        print(f"{run.run_id}  {run.state}")


@app.command(epilog="Example: lectern sweeps delete rates-7t2k9q")
def delete(
    sweep_id: SweepId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Delete the record of a sweep whose runs are at rest. The runs stay, with their group."""
    with control_plane(url, token_file) as service:
        service.delete_sweep(sweep_id)
    if as_json:
        console.print_json([sweep_id])
    else:
        print(f"{sweep_id}  deleted; its runs are still there")


def _sweep_of(path: Path) -> dict[str, Any]:
    """Returns the sweep of a file. Raises NotFound or InvalidSpec."""
    from lectern_common.spec.load import read_yaml
    from lectern_common.spec.sweep import parse_sweep

    if not path.exists():
        raise NotFound(f"no file {inert_name(path)}")
    data = read_yaml(path, "sweep", _EXAMPLE)
    parse_sweep(data)
    return dict(data)


def _print_check(found: dict[str, Any], *, as_json: bool) -> None:
    """Prints a dry run. Raises typer.Exit if a check has failed."""
    from lectern.terminal.sweeps import check_lines

    if as_json:
        console.print_json(found)
    else:
        print("\n".join(check_lines(found)))
    if not found["ok"]:
        raise typer.Exit(1)


def _watch(service: "Client", made: "SweepStatus", *, as_json: bool) -> None:
    """Shows the table until all runs are at rest. Raises typer.Exit unless all went well."""
    from lectern.reconnect import Reconnecting
    from lectern_common.run.status import RunState

    outlasting = Reconnecting(console.note, has_answered=True)
    with _display(quiet=as_json) as draw:
        draw(made)
        while not made.rests:
            time.sleep(POLL_SECONDS)
            made = outlasting.ask(partial(service.sweep, made.id))
            draw(made)
    if as_json or not sys.stdout.isatty():
        _print(made, as_json=as_json)
    states = {run.state for run in made.runs}
    if RunState.FAILED in states:
        raise typer.Exit(1)
    if RunState.INTERRUPTED in states:
        raise typer.Exit(console.INTERRUPTED_EXIT_CODE)


@contextmanager
def _display(*, quiet: bool) -> "Iterator[Callable[[SweepStatus], None]]":
    """Yields a function that shows a sweep: a table that is redrawn, or a line for each change."""
    from lectern.terminal.sweeps import run_line, sweep_lines

    terminal = console.out()
    if quiet:
        yield lambda found: None
    elif terminal.is_terminal:
        from rich.live import Live
        from rich.text import Text

        with Live(console=terminal, refresh_per_second=2, vertical_overflow="visible") as live:
            yield lambda found: live.update(Text("\n".join(sweep_lines(found, terminal.width))))
    else:
        shown: dict[str, str] = {}

        def print_changes(found: "SweepStatus") -> None:
            for run in found.runs:
                if shown.get(run.run_id) != run.state:
                    shown[run.run_id] = run.state
                    print(run_line(run), flush=True)

        yield print_changes


def _print(found: "SweepStatus", *, as_json: bool) -> None:
    from lectern.terminal.sweeps import sweep_lines

    if as_json:
        console.print_json(found.json)
    else:
        print("\n".join(sweep_lines(found, _width())))


def _width() -> int | None:
    terminal = console.out()
    return terminal.width if terminal.is_terminal else None
