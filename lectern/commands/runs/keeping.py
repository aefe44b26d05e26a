"""`lectern runs delete`, `prune` and `adopt`: which runs and folders there are."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.commands.runs.named import RunIds, ask_each, exit_with
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, control_plane

if TYPE_CHECKING:
    from lectern.client import RunStatus


def delete(
    run_ids: RunIds,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Delete ended runs and their folders for good.

    Checkpoints, metrics and exports go too. If one cannot be deleted, the others still are.
    """
    with control_plane(url, token_file) as service:
        runs, refusals = ask_each(run_ids, service.get_run)
        if runs and not yes:
            _confirm_deletion(runs)

        def delete_it(run_id: str) -> "RunStatus":
            service.delete_run(run_id)
            return next(run for run in runs if run.id == run_id)

        deleted, further = ask_each([run.id for run in runs], delete_it)
    if as_json:
        console.print_json([run.id for run in deleted])
    else:
        for run in deleted:
            print(f"{run.id}  deleted")
    exit_with(refusals + further)


def prune(
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help="Only stopped, succeeded, failed or interrupted runs; may be repeated.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="Only runs that have been in their state for longer: 12h, 30d, 4w.",
            show_default=False,
        ),
    ] = None,
    keep_newest: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep the newest N of these states and this group, at any age.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Only runs of this group.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; else they are listed.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Delete resting runs that meet every given criterion, with their folders.

    Without --yes, print which ones, and what that frees; nothing is deleted. Runs that resume by
    themselves stay.
    """
    from lectern.terminal.tables import pruned_lines
    from lectern_common.run.status import RESTING, RunState

    resting = sorted(map(str, RESTING))
    if unknown := [state for state in states or [] if state not in resting]:
        raise typer.BadParameter(
            f"expected one of {', '.join(resting)}; got {unknown[0]}", param_hint="--state"
        )
    if not states and (older_than, keep_newest, group) == (None,) * 3:
        raise typer.BadParameter(
            "name the runs by at least one of them; without any, all that are at rest would go",
            param_hint="--state, --older-than, --keep-newest or --group",
        )
    with control_plane(url, token_file) as service:
        pruned = service.prune_runs(
            states=[RunState(state) for state in states or []],
            older_than_days=None if older_than is None else _days(older_than),
            keep_newest=keep_newest,
            group=group,
            dry_run=not yes,
        )
    if as_json:
        console.print_json(asdict(pruned))
    else:
        print("\n".join(pruned_lines(pruned, is_plan=not yes)))
    for run in pruned.left_out:
        console.note(f"{run['run_id']} was left out: {run['detail']}")
    if pruned.runs and not yes:
        console.note("nothing was deleted; --yes deletes them")


def adopt(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Names of folders in the runs root.")
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="All unknown folders, but not those of deleted runs."),
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Make runs of run folders that the control plane does not know.

    That is after its database was lost, or restored from a backup, and for runs of `lectern train`.
    A damaged folder is refused and not touched. Repeating it changes nothing.
    """
    if bool(run_ids) == every:
        raise typer.BadParameter("name the folders, or set --all", param_hint="RUN or --all")
    with control_plane(url, token_file) as service:
        answer = service.adopt_runs(None if every else run_ids)
    if as_json:
        console.print_json(answer)
    elif not answer["adopted"]:
        console.note("nothing to adopt: every other folder has its run")
    for run in [] if as_json else answer["adopted"]:
        print(f"{run['run_id']}  {run['state']} at step {run['step']}")
    for refused in answer["refused"]:
        console.note(f"{refused['run_id']} was not adopted: {console.inert(refused['detail'])}")
    if answer["refused"]:
        raise typer.Exit(1)


def _days(age: str) -> float:
    """Returns the days of "12h", "30d" or "4w". Raises typer.BadParameter."""
    number, unit = age[:-1], age[-1:]
    try:
        days = float(number) * {"h": 1 / 24, "d": 1.0, "w": 7.0}[unit]
    except (ValueError, KeyError):
        days = 0.0
    if not 0 < days <= 36500:
        raise typer.BadParameter(
            f"{age!r} is not an age such as 12h, 30d or 4w", param_hint="--older-than"
        )
    return days


def _confirm_deletion(runs: "list[RunStatus]") -> None:
    """Asks at the terminal. Raises typer.Abort if the answer is no, BadParameter if nobody can be
    asked.
    """
    for run in runs:
        console.note(f"{run.id}  {run.state} at step {run.step} of {run.steps}")
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "standard input is not a terminal, so nobody can confirm; set it", param_hint="--yes"
        )
    them = "it with its checkpoints and its export"
    if len(runs) > 1:
        them = f"these {len(runs)} with their checkpoints and exports"
    typer.confirm(f"Delete {them} for good?", abort=True, err=True)
