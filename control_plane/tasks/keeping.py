"""Deletes tasks with their folders, and makes rows of task folders that the database does not know.

A database may be lost, or older than the folders beside it. A task whose process still lives is
found by the folder's lock, as after any restart.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from control_plane.runs.keeping.deletion import delete_folder, finish_deletions_in
from control_plane.runs.record import Wanted
from control_plane.tasks.commands import TaskCommands
from control_plane.tasks.queries import Tasks
from control_plane.tasks.record import TASKS_NAME, Task
from lectern_common.errors import LecternError, NotFound
from lectern_common.logs import get_logger
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Handle
from lectern_common.run.status import RESTING, RunState
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.requests import STAGES
from lectern_common.stages.status import values_of

_log = get_logger()


def delete_task(commands: TaskCommands, task: Task, runs_root: Path) -> bool:
    """Deletes a task that is at rest, with its result and everything in its folder.

    Returns False if some of its files are left, which the next start removes.

    Raises:
        NotFound: no such task.
        Conflict: it is active, waits, or a process works in its folder.
    """
    folder = task.folder(runs_root)
    return delete_folder(folder, lambda aside: commands.delete(task.id, aside), commands.room)


def catch_up(tasks: Tasks, commands: TaskCommands, runs_root: Path, run_ids: list[str]) -> None:
    """Finishes deletions that a kill cut short, and adds the rows of unknown task folders.

    Args:
        tasks: reads the rows.
        commands: adds them.
        runs_root: holds the folders.
        run_ids: the runs that the database knows.
    """
    roots: list[tuple[str | None, Path]] = [(None, runs_root / TASKS_NAME)]
    roots += [(run_id, RunFolder(runs_root / run_id).tasks_path) for run_id in run_ids]
    for run_id, root in roots:
        if not root.is_dir():
            continue
        finish_deletions_in(root, tasks.get)
        for folder in _folders(root):
            with suppress(NotFound):
                tasks.get(folder.task_id)
                continue
            try:
                row = _row_of(folder, run_id)
            except (LecternError, OSError) as error:
                _log.warning("task folder not adopted", folder=str(folder.path), why=str(error))
                continue
            commands.adopt(row)
            _log.info("task adopted", task=folder.task_id, of_run=run_id, state=row["state"])


def _folders(root: Path) -> Iterator[TaskFolder]:
    for path in sorted(root.iterdir()):
        if not path.name.startswith(".") and path.is_dir():
            yield TaskFolder(path)


def _row_of(folder: TaskFolder, run_id: str | None) -> dict[str, Any]:
    """Returns the columns of a folder's task. Raises LecternError if it is damaged."""
    stage, asked = folder.read_asked()
    if stage not in STAGES:
        raise NotFound(f"there is no stage {stage!r}")
    status = folder.read_status()
    created_at = folder.task_path.stat().st_mtime
    row: dict[str, Any] = {
        "id": folder.task_id,
        "run_id": run_id,
        "stage": stage,
        "asked": asked,
        "device": asked.get("device") or "cpu",
        "created_at": created_at,
        "wanted": Wanted.RUNNING,
        "since": created_at if status is None else status.since,
        "attempt": 0 if status is None else status.attempt or 0,
        "restarts": 0,
        "active_seconds": 0.0,
        "status": None if status is None else values_of(status),
        "reason": "killed",
        "message": "adopted from its folder; resume it to go on",
        "state": RunState.INTERRUPTED,
    }
    if status is None or status.state not in RESTING:
        alive = status is not None and folder.is_locked()
        if alive and status is not None:  # the reconcile loop finds its process
            row |= {"state": RunState.RUNNING, "reason": None, "message": None}
            process = status.process
            handle = None if process is None else str(Handle.of_process(process))
            row |= {"handle": handle, "active_since": created_at}
            row |= {"slots": ["cpu"]}
        return row | ({} if alive else {"wanted": Wanted.STOPPED})
    stopped = status.state is RunState.STOPPED
    return row | {
        "state": status.state,
        "wanted": Wanted.STOPPED if stopped else Wanted.RUNNING,
        "reason": status.reason,
        "message": status.message,
    }
