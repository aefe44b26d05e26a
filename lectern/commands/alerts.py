"""`lectern alerts`: what a control plane wants somebody to hear, and whether its webhook works."""

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, control_plane

if TYPE_CHECKING:
    from lectern.client import Alert

POLL_SECONDS = 2.0
MAX_ALERTS = 1000

app = typer.Typer(
    rich_markup_mode=None,
    help="Show alerts: runs that failed, diverged, finished, stall or wait too long; a full disk.",
)


@app.callback(
    invoke_without_command=True, epilog="Example: lectern alerts --follow --url http://plane:8080"
)
def alerts(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on showing new ones until Ctrl-C.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_ALERTS, help="Alerts to show, the last ones.")
    ] = 50,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show the last alerts, oldest first; with --json --follow as one object a line.

    While the control plane is away, as during a restart, --follow asks again for up to 600 s.
    """
    if context.invoked_subcommand is not None:
        return
    from lectern.reconnect import Reconnecting

    with control_plane(url, token_file) as service:
        found = service.alerts(limit=limit)[::-1]
        if as_json and not follow:
            console.print_json([alert.json for alert in found])
            return
        if not found:
            console.note("no alerts yet")
        outlasting, seen = Reconnecting(console.note, has_answered=True), 0
        while True:
            for alert in found:
                seen = alert.seq
                print(_line(alert, as_json=as_json), flush=True)
            if not follow:
                return
            time.sleep(POLL_SECONDS)
            found = outlasting.ask(partial(service.alerts, seen, MAX_ALERTS))[::-1]


@app.command(epilog="Example: lectern alerts test")
def test(url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False) -> None:
    """Send a test alert through the control plane's webhook, and say what its receiver answered.

    Exits with 1 if the receiver did not take it.
    """
    with control_plane(url, token_file) as service:
        answer = service.test_alert()
    if as_json:
        console.print_json(answer)
    elif answer.get("delivered"):
        print(console.inert(f"delivered: {answer.get('receiver')} answered {answer.get('status')}"))
    else:
        said = f" It said: {answer['said']}" if answer.get("said") else ""
        console.note(console.inert(f"not delivered: {answer.get('error')}.{said}"))
    if not answer.get("delivered"):
        raise typer.Exit(1)


def _line(alert: "Alert", *, as_json: bool) -> str:
    if as_json:
        import json

        return json.dumps(alert.json)
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(alert.at))
    how = ""
    if alert.last_error is not None and alert.delivered_at is None:
        how = f" [not delivered: {alert.last_error}]"
    message = " ".join(alert.message.split())
    return console.inert(f"{at}  {alert.kind:<8}  {message}{how}")
