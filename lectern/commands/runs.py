"""`lectern runs`: runs of a control plane, over REST."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lectern import console
from lectern.options import Json, TokenFile, Url, command_group, control_plane
from lectern_common.errors import LecternError

if TYPE_CHECKING:
    from lectern.client import Client, RunStatus

app = command_group("Create, list, watch, stop, resume and delete runs of a control plane.")

DEFAULT_URL = "http://127.0.0.1:8080"
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, such as coder-7t2k9q.")]
RunIds = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Run ids, such as coder-7t2k9q.")
]
POLL_SECONDS = 1.0


@app.command(epilog="Example: lectern runs create run.yaml --watch")
def create(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to run.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Watch it until it rests.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Create a run. Its paths are below the control plane's roots."""
    from lectern_common.spec.load import load_spec

    spec = load_spec(spec_file)
    with control_plane(url, token_file) as service:
        run = service.create_run(spec)
        if as_json:
            console.print_json(run.json)
        else:
            print(run.id)
        if watch_it:
            _watch(service, [run.id], as_json=as_json)


@app.command("list", epilog="Example: lectern runs list --json")
def list_runs(
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state", help="Only runs in this state; may be repeated.", show_default=False
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from lectern.terminal.tables import list_lines
    from lectern_common.run_folder import RunState

    known = [str(state) for state in RunState]
    if unknown := [state for state in states or [] if state not in known]:
        raise typer.BadParameter(
            f"no state {unknown[0]}; known: {', '.join(known)}", param_hint="--state"
        )
    with control_plane(url, token_file) as service:
        runs = service.list_runs([RunState(state) for state in states or []])
    if as_json:
        console.print_json([run.json for run in runs])
    elif not runs:
        none = f"no run is {' or '.join(states)}" if states else "no runs yet"
        console.note(f"{none}; `lectern runs create SPEC.yaml` makes one")
    else:
        terminal = console.out()
        print("\n".join(list_lines(runs, terminal.width if terminal.is_terminal else None)))


@app.command(epilog="Example: lectern runs show coder-7t2k9q --json")
def show(
    run_id: RunId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Show one run: its state, why, its last metrics and its spec."""
    with control_plane(url, token_file) as service:
        run = service.get_run(run_id)
    if as_json:
        console.print_json(run.json)
        return
    import yaml

    from lectern.terminal.tables import with_dates

    print(yaml.safe_dump(with_dates(run.json), sort_keys=False, allow_unicode=False), end="")


@app.command(epilog="Example: lectern runs watch")
def watch(
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Run ids; none: all.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show runs live, with loss curves, until all of them rest.

    Exit status 0 where all succeeded or were stopped, 75 where one can be resumed unchanged, 1
    where one failed. Ctrl-C ends the watching, not the runs.
    """
    with control_plane(url, token_file) as service:
        wanted = run_ids or [run.id for run in service.list_runs() if not run.rests]
        if not wanted:
            console.note("no run is going")
            return
        _watch(service, wanted, as_json=as_json)


@app.command(epilog="Example: lectern runs logs coder-7t2k9q --tail 50")
def logs(
    run_id: RunId,
    tail: Annotated[int, typer.Option(min=1, help="Lines from the end.")] = 100,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print the end of what a run's trainer logged."""
    from lectern.local.processes import printable

    with control_plane(url, token_file) as service:
        text = service.logs(run_id, tail)
    lines = [printable(line.encode()) for line in text.splitlines()]
    if as_json:
        console.print_json({"run_id": run_id, "lines": lines})
    else:
        print("\n".join(lines))


@app.command(epilog="Example: lectern runs samples coder-7t2k9q")
def samples(
    run_id: RunId,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Samples from the end.")] = 8,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print what a run's student wrote on at the last evaluations, beside its teacher."""
    with control_plane(url, token_file) as service:
        found = service.samples(run_id, limit)
    if as_json:
        console.print_json({"run_id": run_id, "samples": [asdict(sample) for sample in found]})
    elif not found:
        console.note("no samples; the prompts are evaluation.prompts of the spec")
    for sample in [] if as_json else found:
        print(f"step {sample.step}")
        for who in ("prompt", "student", "teacher"):
            written = getattr(sample, who)
            if written is not None:
                text = console.inert(written).replace("\n", "\n           ")
                print(f"  {who:<8} {text}")


@app.command(epilog="Example: lectern runs stop coder-7t2k9q --wait")
def stop(
    run_ids: RunIds,
    wait: Annotated[bool, typer.Option("--wait", help="Return once they rest.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Ask runs to write a checkpoint and stop. One that cannot does not keep the others."""
    with control_plane(url, token_file) as service:
        runs, refusals = _ask_each(run_ids, service.stop_run)
        if wait:
            runs = service.wait([run.id for run in runs])
    _print_states(runs, as_json=as_json)
    _exit_with(refusals)


@app.command(epilog="Example: lectern runs resume coder-7t2k9q --set schedule.steps=2000")
def resume(
    run_ids: RunIds,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change a field of the spec that a resume may change; may be repeated.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Let resting runs go on from their newest checkpoint. One that cannot does not keep the
    others.
    """
    changed = _as_mapping(changes or [])
    with control_plane(url, token_file) as service:
        runs, refusals = _ask_each(run_ids, lambda run_id: service.resume_run(run_id, changed))
    _print_states(runs, as_json=as_json)
    _exit_with(refusals)


@app.command(epilog="Example: lectern runs delete coder-7t2k9q --yes")
def delete(
    run_ids: RunIds,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Delete resting runs for good: checkpoints, metrics, export, all of their folders. One that
    cannot does not keep the others.
    """
    with control_plane(url, token_file) as service:
        runs, refusals = _ask_each(run_ids, service.get_run)
        if runs and not yes:
            _confirm_deletion(runs)

        def delete_it(run_id: str) -> "RunStatus":
            service.delete_run(run_id)
            return next(run for run in runs if run.id == run_id)

        deleted, further = _ask_each([run.id for run in runs], delete_it)
    if as_json:
        console.print_json([run.id for run in deleted])
    else:
        for run in deleted:
            print(f"{run.id}  deleted")
    _exit_with(refusals + further)


def _confirm_deletion(runs: "list[RunStatus]") -> None:
    """Returns where a person at the terminal agrees. Raises typer.Abort, typer.BadParameter."""
    for run in runs:
        console.note(f"{run.id}  {run.state} at step {run.step} of {run.steps}")
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask at; set it", param_hint="--yes")
    them = "it with its checkpoints and its export"
    if len(runs) > 1:
        them = f"these {len(runs)} with their checkpoints and exports"
    typer.confirm(f"Delete {them} for good?", abort=True, err=True)


def watch_runs(service: "Client", run_ids: list[str], *, draw: bool = True) -> "list[RunStatus]":
    """Shows runs until all of them rest; returns them as they are then."""
    from lectern.terminal import live

    views = {run_id: live.LiveRun(run_id) for run_id in run_ids}

    def refresh() -> "list[RunStatus]":
        runs = []
        for run_id, view in views.items():
            run = service.get_run(run_id)
            view.show_run(run)
            if draw:
                batch = service.metrics_since(run_id, view.metrics_cursor)
                view.metrics_cursor = batch.cursor
                view.add_metrics(batch.records)
            runs.append(run)
        return runs

    with live.display() if draw else live.nothing() as show:
        while True:
            runs = refresh()
            show(list(views.values()))
            if all(run.rests for run in runs):
                return runs
            time.sleep(POLL_SECONDS)


def _watch(service: "Client", run_ids: list[str], *, as_json: bool) -> None:
    from lectern_common.run_folder import RunState

    runs = watch_runs(service, run_ids, draw=not as_json)
    if as_json:
        console.print_json([run.json for run in runs])
    states = {run.state for run in runs}
    if RunState.FAILED in states:
        raise typer.Exit(1)
    if RunState.INTERRUPTED in states:
        raise typer.Exit(console.INTERRUPTED_EXIT_CODE)


def _ask_each(
    run_ids: list[str], ask: "Callable[[str], RunStatus]"
) -> "tuple[list[RunStatus], list[LecternError]]":
    """Returns the runs that took what was asked of them, and the errors of the others."""
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


def _exit_with(refusals: list[LecternError]) -> None:
    """Prints each error; exits with the first one's status. Returns where there are none."""
    for error in refusals:
        console.print_error(error)
    if refusals:
        raise typer.Exit(refusals[0].exit_code)


def _as_mapping(changes: list[str]) -> dict[str, Any]:
    """Returns {"schedule": {"steps": 2000}} of "schedule.steps=2000"; values are YAML."""
    result: dict[str, Any] = {}
    for change in changes:
        field, _, value = change.partition("=")
        *sections, name = field.split(".")
        try:
            section = result
            for key in sections:
                section = section.setdefault(key, {})
            section[name] = _json_value(value)
            usable = "=" in change and all([*sections, name])
        except (AttributeError, TypeError, ValueError):
            usable = False  # a section that is a value, or a value that JSON does not have
        if not usable:
            raise typer.BadParameter(f"{change!r} is not FIELD=VALUE", param_hint="--set")
    return result


def _json_value(text: str) -> Any:
    """Returns what the YAML stands for. Raises ValueError where JSON cannot say it."""
    import yaml

    try:
        value = yaml.safe_load(text)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, RecursionError, KeyError, AttributeError, TypeError) as error:
        # Not YAMLError alone: `!!bool x` is a KeyError; a date is no JSON, a TypeError.
        raise ValueError(f"{text!r} is no value") from error
    return value


def _print_states(runs: "list[RunStatus]", *, as_json: bool) -> None:
    if as_json:
        console.print_json([run.json for run in runs])
        return
    for run in runs:
        print(f"{run.id}  {run.state}")
