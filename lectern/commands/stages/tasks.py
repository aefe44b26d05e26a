"""`lectern tasks`: evaluations, exports, publications and recordings on a control plane."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from lectern import console
from lectern.options import DEFAULT_URL, Json, TokenFile, Url, command_group, control_plane

if TYPE_CHECKING:
    from lectern.client import TaskStatus

app = command_group("List, watch, stop, resume and delete tasks of a control plane.")
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Task id, such as evaluate-7t2k9q.")]


@app.command("list", epilog="Example: lectern tasks list --run coder-7t2k9q")
def list_tasks(
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Only those of this run.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List tasks, newest first: evaluations, exports, publications and recordings."""
    with control_plane(url, token_file) as service:
        found = service.tasks(run)
    if as_json:
        console.print_json([task.json for task in found])
    elif not found:
        console.note("no tasks yet")
    for task in [] if as_json else found:
        print(_line(task))


@app.command(epilog="Example: lectern tasks show evaluate-7t2k9q --wait")
def show(
    task_id: TaskId,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it rests, and show how far it is.")
    ] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Show a task, and its result once it has succeeded.

    With --wait, exits with 1 if it failed, and 75 if it was stopped or interrupted. Ctrl-C ends the
    waiting, not the task.
    """
    with control_plane(url, token_file) as service:
        task = service.task(task_id)
        if wait and not task.rests:
            with console.progress() as advance:
                task = service.wait_for_task(
                    task_id,
                    show=lambda seen: advance(seen.doing or str(seen.state), seen.done, seen.of),
                )
    if as_json:
        console.print_json(task.json)
    else:
        print(_line(task))
        for sentence in task.json.get("said") or []:
            console.note(sentence)
        text = task.json.get("markdown")
        if text:
            print("\n" + console.inert(str(text).rstrip()))
        elif task.result is not None:
            console.print_json(task.result)
    if wait:
        _exit_as(task)


@app.command(epilog="Example: lectern tasks log evaluate-7t2k9q --tail 50")
def log(
    task_id: TaskId,
    tail: Annotated[int, typer.Option(min=1, max=5000, help="Lines to print, from the end.")] = 100,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Print the end of a task's log."""
    with control_plane(url, token_file) as service:
        lines = [console.inert(line) for line in service.task_log(task_id, tail).splitlines()]
    if as_json:
        console.print_json({"task_id": task_id, "lines": lines})
    else:
        print("\n".join(lines))


@app.command(epilog="Example: lectern tasks stop evaluate-7t2k9q")
def stop(
    task_id: TaskId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Stop a task. What it has done is kept; `lectern tasks resume` goes on with it."""
    with control_plane(url, token_file) as service:
        _print(service.stop_task(task_id), as_json=as_json)


@app.command(epilog="Example: lectern tasks resume evaluate-7t2k9q")
def resume(
    task_id: TaskId, url: Url = DEFAULT_URL, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Go on with a task that was stopped, has failed or was interrupted."""
    with control_plane(url, token_file) as service:
        _print(service.resume_task(task_id), as_json=as_json)


@app.command(epilog="Example: lectern tasks delete evaluate-7t2k9q --yes")
def delete(
    task_id: TaskId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Delete a task at rest, with its result and its log."""
    with control_plane(url, token_file) as service:
        service.task(task_id)
        if not yes and not typer.confirm(f"delete {task_id} and its result?", err=True):
            raise typer.Abort
        service.delete_task(task_id)
    console.note(f"deleted {task_id}")


def _print(task: "TaskStatus", *, as_json: bool) -> None:
    if as_json:
        console.print_json(task.json)
    else:
        print(_line(task))


def _line(task: "TaskStatus") -> str:
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(task.json.get("created_at") or 0))
    how_far = f" {task.done:,} of {task.of:,} {task.doing}" if task.doing and task.of else ""
    why = f": {task.message}" if task.message else ""
    of_run = f"  {task.run_id}" if task.run_id else ""
    return console.inert(f"{at}  {task.id}{of_run}  {task.state}{how_far}{why}")


def _exit_as(task: "TaskStatus") -> None:
    if task.state == "failed":
        raise typer.Exit(1)
    if task.state != "succeeded":
        raise typer.Exit(console.INTERRUPTED_EXIT_CODE)
