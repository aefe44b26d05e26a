"""Runs a stage in the foreground: its task folder, its process, its progress, its result."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from lectern import console
from lectern.local.processes import Child, interrupts_held, signals_interrupt
from lectern_common.errors import (
    Conflict,
    CorruptData,
    InvalidRequest,
    InvalidSpec,
    LecternError,
    error_of,
)
from lectern_common.roots import Roots
from lectern_common.run.status import RunState
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.status import TaskStatus

PROGRAM = (sys.executable, "-m", "student_trainer")
POLL_SECONDS = 0.2
# Time to keep what is done; generating a batch or sending a part of a file may take that long.
STOP_GRACE_SECONDS = 120.0


def run_stage(
    stage: str,
    request: BaseModel,
    roots: Roots,
    folder: Path | None = None,
    *,
    goes_on: bool | None = None,
    program: Sequence[str] = PROGRAM,
) -> dict[str, Any]:
    """Returns the result of a stage, with its text for people under "markdown" if it has one.

    It works in a process of its own. Progress, and what the stage says, go to standard error.
    Ctrl-C (or SIGTERM, SIGHUP) stops it, a second one kills it. If this process is killed, it
    stops.

    Args:
        stage: its name, such as "evaluate".
        request: what is asked.
        roots: what the request's paths are relative to.
        folder: of the task. If it has been asked the same before, the stage goes on there, or
            returns the result that is there already. None means a temporary folder.
        goes_on: whether the same command goes on after a stop; None means if `folder` is given.
        program: the command that the stage and the folder are appended to.

    Raises:
        Conflict: the folder is that of another task, or another process works in it.
        LecternError: the error that the stage ended with.
        typer.Exit: it was stopped.
    """
    asked = request.model_dump(mode="json", exclude={"stage"})
    if goes_on is None:
        goes_on = folder is not None
    with ExitStack() as stack:
        if folder is None:
            scratch = tempfile.mkdtemp(prefix=f"lectern-{stage}-")
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            folder = Path(scratch) / stage
        task = _task_in(folder.resolve(), stage, asked)
        argv = [*program, stage, str(task.path), "--stop-with-parent"]
        child, interrupted = _run(task, argv, roots)
        code, status = child.wait(), _status_of(task, child)
        was_stopped = status is not None and status.state is RunState.STOPPED
        if was_stopped or (interrupted and code < 0):
            console.note("stopped" + ("; run the same command again to go on" * goes_on))
            raise typer.Exit(console.INTERRUPTED_EXIT_CODE)
        if code != 0 and status is not None and status.reason not in (None, "internal"):
            raise _error_of(status)
        result = task.read_result() if code == 0 else None
        if result is None:
            stack.pop_all()  # the error names the log
            raise child.death()
    return result


def _task_in(folder: Path, stage: str, asked: dict[str, Any]) -> TaskFolder:
    """Returns the task of a folder that is asked this, made if there is none."""
    task = TaskFolder(folder)
    if not task.task_path.exists():
        return TaskFolder.create(folder, stage, asked)
    if task.read_asked() != (stage, json.loads(json.dumps(asked))):
        raise Conflict(
            f"{folder} holds a task that was asked something else; choose another folder, or "
            "delete it"
        )
    return task


def _run(task: TaskFolder, argv: Sequence[str], roots: Roots) -> tuple[Child, bool]:
    """Runs the process of a task to its end, and shows how far it is.

    Returns:
        The process, and whether it was told to stop.
    """
    child: Child | None = None
    num_said = 0
    with console.progress() as advance, signals_interrupt():

        def has_ended(child: Child) -> bool:
            nonlocal num_said
            is_over = not child.is_alive
            status = _status_of(task, child)
            if status is not None:
                for sentence in status.said_after(num_said):
                    console.note(sentence)
                num_said = status.num_said
                if status.doing is not None:
                    advance(status.doing, status.done, status.of)
            return is_over

        try:
            with interrupts_held():
                environment = roots.environment()
                child = Child("process", argv, task.log_path, environment, hears_our_end=True)
            while not has_ended(child):
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if child is None:
                raise
            console.note("stopping (Ctrl-C again kills it at once)")
            child.stop(STOP_GRACE_SECONDS)
            return child, True
        except BaseException:
            if child is not None:
                child.stop(STOP_GRACE_SECONDS)
            raise
        return child, False


def _status_of(task: TaskFolder, child: Child) -> TaskStatus | None:
    """Returns the status that this child wrote; None before its first."""
    try:
        status = task.read_status()
    except CorruptData:
        return None
    return status if status is not None and status.pid == child.process.pid else None


def _error_of(status: TaskStatus) -> LecternError:
    error = error_of(status.reason or "", status.message or "")
    if isinstance(error, InvalidRequest) and not isinstance(error, InvalidSpec):
        error.field = status.field
    return error
