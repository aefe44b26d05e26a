"""`lectern runs watch` and `logs`: follow runs until they rest."""

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.commands.runs.named import RunId
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, control_plane

if TYPE_CHECKING:
    from lectern.client import Client, RunStatus

POLL_SECONDS = 1.0


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
        watch_to_the_end(service, wanted, as_json=as_json)


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


def watch_to_the_end(service: "Client", run_ids: list[str], *, as_json: bool) -> None:
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
