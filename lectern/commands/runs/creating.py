"""`lectern runs create` and `fork`: make a run of a spec, or of another run's checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.commands.runs.changes import as_mapping
from lectern.commands.runs.named import RunId
from lectern.commands.runs.watching import watch_to_the_end
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, control_plane, spec_of

if TYPE_CHECKING:
    from lectern.client import Client, RunStatus


def create(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The run spec.")],
    watch_it: Annotated[
        bool, typer.Option("--watch", help="Watch the run until it has ended.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Create a run on the control plane. Paths in the spec are relative to its roots."""
    spec = spec_of(spec_file)
    with control_plane(url, token_file) as service:
        run = service.create_run(spec)
        _print_created(service, run, watch_it=watch_it, as_json=as_json)


def fork(
    run_id: RunId,
    checkpoint: Annotated[
        int | None,
        typer.Option("--checkpoint", min=0, help="Step of the checkpoint [default: the newest]."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change a field of the spec, except of the student; may be repeated.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the new run [default: that of the run, and -fork].")
    ] = None,
    watch_it: Annotated[
        bool, typer.Option("--watch", help="Watch the new run until it has ended.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Create a run that goes on from a checkpoint of another one, in any state."""
    changed = as_mapping(changes or [])
    if name is not None:
        changed["name"] = name
    with control_plane(url, token_file) as service:
        run = service.fork_run(run_id, changed, checkpoint=checkpoint)
        _print_created(service, run, watch_it=watch_it, as_json=as_json)


def _print_created(service: "Client", run: "RunStatus", *, watch_it: bool, as_json: bool) -> None:
    if as_json:
        console.print_json(run.json)
    else:
        print(run.id)
    if watch_it:
        watch_to_the_end(service, [run.id], as_json=as_json)
