"""Deletes a run's rows and folder together, even if this process is killed in between.

    1. in one transaction, the folder is renamed to `.deleted-<id>`, then the rows are deleted
    2. the folder is renamed to `.removing-<id>`, and removed

A kill before the commit leaves the rows, and the next start renames the folder back. A kill after
it leaves a renamed folder, which the next start removes. What is being removed is never adopted.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.room import Room
from control_plane.runs.queries import Runs
from lectern_common.errors import Conflict, NotFound
from lectern_common.files import rename_durably
from lectern_common.logs import get_logger
from lectern_common.run.folder import RunFolder
from lectern_common.stages.folder import TaskFolder

_ASIDE = ".deleted-"
_REMOVING = ".removing-"

_log = get_logger()


def delete_run(commands: RunCommands, folder: RunFolder, since: float | None = None) -> bool:
    """Deletes a run that is not active, with its checkpoints, export and everything in its folder.

    Returns False if some of its files are left, which the next start removes.

    Args:
        commands: deletes its rows.
        folder: of the run.
        since: as in `RunCommands.delete`.

    Raises:
        NotFound: no such run.
        Conflict: it is active, has changed its state, a process other than the control plane's
            trains it, or its folder is a link, behind which nothing is removed.
    """
    return delete_folder(
        folder, lambda aside: commands.delete(folder.run_id, aside, since), commands.room
    )


def delete_folder(
    folder: RunFolder | TaskFolder, delete: Callable[[Callable[[], None]], None], room: Room
) -> bool:
    """Deletes rows and their folder together; returns False if some of its files are left.

    Args:
        folder: of a run or task.
        delete: deletes the rows in one transaction; before that, it calls what it is given.
        room: for the transaction, if the disk is full.

    Raises:
        Conflict: a process holds the folder's lock, or the folder is a link.
        LecternError: what `delete` raises; the folder is then as it was.
    """
    return room.spent_on(lambda: _deleted(folder, delete))


def _deleted(folder: RunFolder | TaskFolder, delete: Callable[[Callable[[], None]], None]) -> bool:
    aside = aside_of(folder.path)
    with ExitStack() as stack:

        def set_aside() -> None:
            _require_no_link(folder.path)
            # Locked only after the state was checked: the lock would keep a new process out.
            if folder.path.exists():
                stack.enter_context(folder.locked())
                rename_durably(folder.path, aside)

        try:
            delete(set_aside)
        except BaseException:
            put_back(aside, folder.path)
            raise
    return _remove(aside)


def aside_of(path: Path) -> Path:
    """Returns where the folder of a deleted run lies until it is removed."""
    return path.with_name(_ASIDE + path.name)


def _require_no_link(path: Path) -> None:
    if path.is_symlink():
        raise Conflict(
            f"{path} is a link to {path.readlink()}; remove its target, unless you need it, and "
            "the link; then delete it here"
        )


def finish_deletions(runs: Runs, runs_root: Path) -> None:
    """Undoes or finishes the deletions of runs by a process that was killed."""
    finish_deletions_in(runs_root, runs.get)


def finish_deletions_in(root: Path, get: Callable[[str], object]) -> None:
    """Undoes or finishes the deletions in one folder; `get` raises NotFound of what is deleted."""
    for aside in root.glob(f"{_ASIDE}*"):
        deleted = aside.name.removeprefix(_ASIDE)
        try:
            get(deleted)
        except NotFound:
            _remove(aside)
        else:
            put_back(aside, root / deleted)
    for half in root.glob(f"{_REMOVING}*"):
        _remove(half)


def put_back(aside: Path, path: Path) -> None:
    """Undoes the deletion of a folder that was only set aside, unless there is one in its place."""
    if aside.exists() and not path.exists():
        rename_durably(aside, path)


def _remove(aside: Path) -> bool:
    """Removes the folder; if that fails, the next start tries again. The run is gone anyway."""
    if aside.exists():
        half = aside.with_name(_REMOVING + aside.name.removeprefix(_ASIDE).removeprefix(_REMOVING))
        try:
            if half != aside:
                rename_durably(aside, half)
            shutil.rmtree(half)
        except OSError as error:
            _log.warning("deleted run's files not removed", folder=str(aside), error=str(error))
            return False
    return True
