"""`lectern runs`: creates, shows and controls the runs of a control plane, over REST."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lectern import console
from lectern.options import Json, TokenFile, Url, command_group, control_plane, spec_of
from lectern_common.errors import LecternError

if TYPE_CHECKING:
    from lectern.client import Client, RunStatus

app = command_group("Create, watch, stop, resume and delete runs.")

DEFAULT_URL = "http://127.0.0.1:8080"
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, such as coder-7t2k9q.")]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN", help="Run ids, such as coder-7t2k9q.")]
POLL_SECONDS = 1.0


@app.command(epilog="Example: lectern runs create run.yaml --watch")
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


@app.command(epilog="Example: lectern runs show coder-7t2k9q --json")
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


@app.command(epilog="Example: lectern runs watch")
def watch(
    run_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Run ids [default: all that have not ended]."),
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show runs live, with loss curves, until all have ended.

    Says at the end where their exports lie. Exits with 0 if all succeeded or were stopped, 1 if one
    failed, 75 if one was interrupted and can be resumed unchanged. Ctrl-C stops the watching, not
    the runs. While the control plane is away, as during a restart, it asks again for up to 600 s.
    """
    with control_plane(url, token_file) as service:
        wanted = run_ids or [run.id for run in service.list_runs() if not run.rests]
        if not wanted:
            console.note("no runs to watch: none is queued or trains")
            return
        _watch(service, wanted, as_json=as_json)


@app.command(epilog="Example: lectern runs logs coder-7t2k9q --tail 50")
def logs(
    run_id: RunId,
    tail: Annotated[int, typer.Option(min=1, max=5000, help="Lines to print, from the end.")] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is appended, until the run rests.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print the end of a run's trainer log.

    With --follow, a restart of the control plane is waited for, for up to 600 s.
    """
    from lectern.local.processes import printable

    if follow and as_json:
        raise typer.BadParameter("prints lines of text; remove --json", param_hint="--follow")
    if follow:
        with control_plane(url, token_file) as service:
            for text in service.follow_log(run_id, tail, say=console.note):
                sys.stdout.write(console.inert(text))
                sys.stdout.flush()
        return
    with control_plane(url, token_file) as service:
        text = service.logs(run_id, tail)
    lines = [printable(line.encode()) for line in text.splitlines()]
    if as_json:
        console.print_json({"run_id": run_id, "lines": lines})
    else:
        print("\n".join(lines))


@app.command(epilog="Example: lectern runs history coder-7t2k9q")
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


@app.command("set", epilog="Example: lectern runs set coder-7t2k9q --priority 5 --tag baseline")
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
        runs, refusals = _ask_each(run_ids, lambda run_id: service.set_labels(run_id, labels))
    if as_json:
        console.print_json([run.json for run in runs])
    for run in [] if as_json else runs:
        shown = (f"{name} {run.json.get(name)!a}" for name in labels)
        print(f"{run.id}  {', '.join(shown)}")
    _exit_with(refusals)


@app.command(epilog="Example: lectern runs samples coder-7t2k9q")
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


@app.command(epilog="Example: lectern runs stop coder-7t2k9q --wait")
def stop(
    run_ids: RunIds,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they have stopped.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Ask runs to write a checkpoint and stop. If one cannot be stopped, the others still are."""
    with control_plane(url, token_file) as service:
        runs, refusals = _ask_each(run_ids, service.stop_run)
        if wait:
            runs = service.wait([run.id for run in runs], say=console.note)
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
            help="Change a field of the spec, one marked * in docs/run-spec.md; may be repeated.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Resume runs from their newest checkpoint. If one cannot be resumed, the others still are."""
    changed = _as_mapping(changes or [])
    with control_plane(url, token_file) as service:
        runs, refusals = _ask_each(run_ids, lambda run_id: service.resume_run(run_id, changed))
    _print_states(runs, as_json=as_json)
    _exit_with(refusals)


@app.command(epilog="Example: lectern runs delete coder-7t2k9q --yes")
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


def _note_disk(service: "Client") -> None:
    """Says on standard error that the disk of the runs is nearly full, if it is."""
    from lectern_common.errors import NotFound
    from lectern_common.words import size

    try:
        disk = service.disk()
    except NotFound:  # a control plane of an earlier release
        return
    if disk.low:
        console.note(
            f"the disk of the runs is nearly full: {size(disk.free_bytes)} free, and the next "
            f"checkpoints of the active runs need {size(disk.needed_bytes)}; make room"
        )


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


def watch_runs(service: "Client", run_ids: list[str], *, draw: bool = True) -> "list[RunStatus]":
    """Shows runs until all are at rest; returns their last state."""
    from lectern.reconnect import Reconnecting
    from lectern.terminal import live

    outlasting = Reconnecting(console.note)
    views = {run_id: live.LiveRun(run_id) for run_id in run_ids}

    def refresh_one(run_id: str) -> "RunStatus":
        run, view = service.get_run(run_id), views[run_id]
        view.show_run(run)
        if draw:
            batch = service.metrics_since(run_id, view.metrics_cursor)
            view.metrics_cursor = batch.cursor
            view.add_metrics(batch.records)
        return run

    def refresh() -> "list[RunStatus]":
        return [outlasting.ask(partial(refresh_one, run_id)) for run_id in views]

    with live.display() if draw else live.nothing() as show:
        while True:
            runs = refresh()
            show(list(views.values()))
            if all(run.rests for run in runs):
                return runs
            time.sleep(POLL_SECONDS)


def _watch(service: "Client", run_ids: list[str], *, as_json: bool) -> None:
    from lectern_common.run.status import RunState

    runs = watch_runs(service, run_ids, draw=not as_json)
    if as_json:
        console.print_json([run.json for run in runs])
    for run in runs:
        if run.export is not None:
            console.note(f"{run.id}: the trained student is in {run.export}{_whose(service.url)}")
    states = {run.state for run in runs}
    if RunState.FAILED in states:
        raise typer.Exit(1)
    if RunState.INTERRUPTED in states:
        raise typer.Exit(console.INTERRUPTED_EXIT_CODE)


def _whose(url: str) -> str:
    """Returns on which machine the control plane's folders are, if not on this one."""
    from urllib.parse import urlsplit

    from lectern_common.callers import is_loopback

    host = urlsplit(url).hostname or ""
    return "" if is_loopback(host) else f", on {host}"


def _ask_each(
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


def _exit_with(refusals: list[LecternError]) -> None:
    """Prints each error and exits with the first one's status; does nothing if there are none."""
    for error in refusals:
        console.print_error(error)
    if refusals:
        raise typer.Exit(refusals[0].exit_code)


def _as_mapping(changes: list[str]) -> dict[str, Any]:
    """Returns {"schedule": {"steps": 2000}} for "schedule.steps=2000"; values are YAML."""
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
            usable = False  # the section is a value already, or JSON cannot hold the value
        if not usable:
            raise typer.BadParameter(f"{change!r} is not FIELD=VALUE", param_hint="--set")
    return result


def _json_value(text: str) -> Any:
    """Returns the value that the YAML stands for. Raises ValueError if JSON cannot hold it."""
    import yaml

    try:
        value = yaml.safe_load(text)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, RecursionError, KeyError, AttributeError, TypeError) as error:
        # Not only YAMLError: `!!bool x` is a KeyError; a date, which JSON lacks, a TypeError.
        raise ValueError(f"{text!r} is not a JSON value") from error
    return value


def _print_states(runs: "list[RunStatus]", *, as_json: bool) -> None:
    if as_json:
        console.print_json([run.json for run in runs])
        return
    for run in runs:
        print(f"{run.id}  {run.state}")
