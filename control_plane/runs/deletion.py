"""Deleting a run: its rows and its folder go together, whatever kills this process in between.

    1. in one transaction the folder is renamed to `.deleted-<id>`, then the rows go
    2. the renamed folder is removed

A kill before the commit leaves the rows, and the next start gives the folder its name back. One
after it leaves what is under the other name, which the next start removes.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

import structlog

from control_plane.runs.commands import RunCommands
from control_plane.runs.queries import Runs
from lectern_common.errors import Conflict, NotFound
from lectern_common.files import rename_durably
from lectern_common.run_folder import RunFolder

_ASIDE = ".deleted-"

_log = structlog.get_logger()


def delete_run(commands: RunCommands, folder: RunFolder) -> None:
    """Deletes a run that rests, with its checkpoints, its export and all else in its folder.

    Raises:
        NotFound: no such run.
        Conflict: it does not rest, a process that is not the control plane's trains it, or its
            folder is a link, behind which nothing is removed.
    """
    aside = folder.path.with_name(_ASIDE + folder.run_id)
    with ExitStack() as stack:

        def set_aside() -> None:
            _require_no_link(folder)
            # The lock comes after the look at the state: it would keep out a trainer that starts.
            if folder.path.exists():
                stack.enter_context(folder.locked())
                rename_durably(folder.path, aside)

        try:
            commands.delete(folder.run_id, set_aside)
        except BaseException:
            _put_back(aside, folder.path)
            raise
    _remove(aside)


def _require_no_link(folder: RunFolder) -> None:
    if folder.path.is_symlink():
        raise Conflict(
            f"{folder.path} is a link to {folder.path.readlink()}; remove what it leads to, where "
            "that may go, and the link; then delete the run"
        )


def finish_deletions(runs: Runs, runs_root: Path) -> None:
    """Undoes or finishes what a process that was killed had begun."""
    for aside in runs_root.glob(f"{_ASIDE}*"):
        run_id = aside.name.removeprefix(_ASIDE)
        try:
            runs.get(run_id)
        except NotFound:
            _remove(aside)
        else:
            _put_back(aside, runs_root / run_id)


def _put_back(aside: Path, path: Path) -> None:
    if aside.exists():
        rename_durably(aside, path)


def _remove(aside: Path) -> None:
    """Removes the folder. What cannot be removed is left to the next start: the run is gone."""
    if aside.exists():
        try:
            shutil.rmtree(aside)
        except OSError as error:
            _log.warning("deleted run's files not removed", folder=str(aside), error=str(error))
