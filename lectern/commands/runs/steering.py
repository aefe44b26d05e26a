"""`lectern runs set`, `stop` and `resume`: change what becomes of runs."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lectern import console
from lectern.commands.runs.changes import as_mapping
from lectern.commands.runs.named import RunIds, ask_each, exit_with
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, control_plane

if TYPE_CHECKING:
    from lectern.client import RunStatus


def set_labels(
    run_ids: RunIds,
    priority: Annotated[
        int | None, typer.Option(help="-100 to 100; the highest starts first.", show_default=False)
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="The group that it belongs to.", show_default=False)
    ] = None,
    no_group: Annotated[bool, typer.Option("--no-group", help="It belongs to no group.")] = False,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", help="Its tags from now on; may be repeated.", show_default=False),
    ] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="It has no tags.")] = False,
    notes: Annotated[
        str | None, typer.Option(help="What to remember about it.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Set the priority, group, tags or notes of runs, in any state; nothing else of them changes.

    If those of one run cannot be set, those of the others still are.
    """
    if no_group and group is not None:
        raise typer.BadParameter("has no effect beside --group", param_hint="--no-group")
    if no_tags and tags:
        raise typer.BadParameter("has no effect beside --tag", param_hint="--no-tags")
    labels: dict[str, Any] = {"priority": priority, "group": group, "tags": tags, "notes": notes}
    labels = {name: value for name, value in labels.items() if value not in (None, [])}
    labels |= ({"group": None} if no_group else {}) | ({"tags": []} if no_tags else {})
    if not labels:
        raise typer.BadParameter("set at least one", param_hint="--priority/--group/--tag/--notes")
    with control_plane(url, token_file) as service:
        runs, refusals = ask_each(run_ids, lambda run_id: service.set_labels(run_id, labels))
    if as_json:
        console.print_json([run.json for run in runs])
    for run in [] if as_json else runs:
        shown = (f"{name} {run.json.get(name)!a}" for name in labels)
        print(f"{run.id}  {', '.join(shown)}")
    exit_with(refusals)


def stop(
    run_ids: RunIds,
    at_checkpoint: Annotated[
        bool,
        typer.Option(
            "--at-checkpoint",
            help="Let them go on to the next checkpoint that is due anyway.",
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they have stopped.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Ask runs to write a checkpoint and stop. If one cannot be stopped, the others still are.

    With --at-checkpoint, a run without another checkpoint before its last step succeeds, and one
    without a trainer, such as a queued one, stops at once. Without it, a run that was to stop at a
    checkpoint stops now.
    """
    with control_plane(url, token_file) as service:
        at: Literal["now", "checkpoint"] = "checkpoint" if at_checkpoint else "now"
        runs, refusals = ask_each(run_ids, lambda run_id: service.stop_run(run_id, at))
        if wait:
            runs = service.wait([run.id for run in runs], say=console.note)
    _print_states(runs, as_json=as_json)
    exit_with(refusals)


def resume(
    run_ids: RunIds,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change a field of the spec, one marked * in docs/run-spec.md; may be repeated.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Resume runs from their newest checkpoint. If one cannot be resumed, the others still are."""
    changed = as_mapping(changes or [])
    with control_plane(url, token_file) as service:
        runs, refusals = ask_each(run_ids, lambda run_id: service.resume_run(run_id, changed))
    _print_states(runs, as_json=as_json)
    exit_with(refusals)


def _print_states(runs: "list[RunStatus]", *, as_json: bool) -> None:
    if as_json:
        console.print_json([run.json for run in runs])
        return
    for run in runs:
        print(f"{run.id}  {run.state}")
