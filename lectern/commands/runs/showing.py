"""`lectern runs list`, `show`, `history` and `samples`: print what is known of runs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.commands.runs.named import RunId
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, control_plane

if TYPE_CHECKING:
    from lectern.client import Client


def list_runs(
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state", help="Only runs in this state; may be repeated.", show_default=False
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Only runs of this group.", show_default=False)
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", help="Only runs with this tag; repeated: with all.", show_default=False
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from lectern.terminal.tables import list_lines
    from lectern_common.run.status import RunState

    known = [str(state) for state in RunState]
    if unknown := [state for state in states or [] if state not in known]:
        raise typer.BadParameter(
            f"unknown state {unknown[0]}; expected one of {', '.join(known)}", param_hint="--state"
        )
    with control_plane(url, token_file) as service:
        wanted = [RunState(state) for state in states or []]
        runs = service.list_runs(wanted, group=group, tags=tags or ())
        if not as_json:
            _note_disk(service)
    if as_json:
        console.print_json([run.json for run in runs])
    elif not runs:
        found = [f"is {' or '.join(states)}"] if states else []
        found += [f"is in group {group}"] if group else []
        found += [f"has the tag {tag}" for tag in tags or ()]
        console.note(
            f"no run {' and '.join(found)}"
            if found
            else "no runs yet; `lectern runs create SPEC.yaml` creates one"
        )
    else:
        terminal = console.out()
        print("\n".join(list_lines(runs, terminal.width if terminal.is_terminal else None)))


def show(
    run_id: RunId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Show one run: state, reason, last metrics, spec, history."""
    with control_plane(url, token_file) as service:
        run = service.get_run(run_id)
    if as_json:
        console.print_json(run.json)
        return
    import yaml

    from lectern.terminal.tables import with_dates

    print(yaml.safe_dump(with_dates(run.json), sort_keys=False, allow_unicode=False), end="")


def history(
    run_id: RunId,
    limit: Annotated[int, typer.Option(min=1, help="Entries to print, from the end.")] = 50,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print what happened to a run, and who asked for it; the newest last."""
    from lectern.terminal.tables import history_lines

    with control_plane(url, token_file) as service:
        entries = service.history(run_id, limit)
    if as_json:
        console.print_json({"run_id": run_id, "entries": entries})
    else:
        print("\n".join(history_lines(entries)))


def samples(
    run_id: RunId,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="Samples to print, from the end.")
    ] = 8,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print what student and teacher wrote at a run's last evaluations."""
    with control_plane(url, token_file) as service:
        found = service.samples(run_id, limit)
    if as_json:
        console.print_json({"run_id": run_id, "samples": [asdict(sample) for sample in found]})
    elif not found:
        console.note("no samples; set evaluation.prompts in the spec to get some")
    for sample in [] if as_json else found:
        print(f"step {sample.step}")
        for name in ("prompt", "student", "teacher"):
            written = getattr(sample, name)
            if written is not None:
                text = console.inert(written).replace("\n", "\n           ")
                print(f"  {name:<8} {text}")


def _note_disk(service: "Client") -> None:
    """Says on standard error that the disk of the runs is full or will be, if that is so."""
    from lectern_common.errors import NotFound

    try:
        disk = service.disk()
    except NotFound:  # a control plane of an earlier release
        return
    if disk.warning is not None:
        console.note(console.inert(disk.warning))
