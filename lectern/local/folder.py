"""The folder of a run that `lectern train` makes, or goes on with."""

from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.roots import Roots
from lectern_common.run_folder import EARLY_STOPPED, RunFolder, RunState, Status
from lectern_common.spec.run_spec import RunSpec, require_more_to_do, require_resumable


def require_folder(spec: RunSpec, roots: Roots, *, resume: bool) -> str:
    """Returns what will be done with the run's folder, where that can be done.

    Raises:
        Conflict: a new run's folder exists, a trainer works in the one to be resumed, or its run
            has nothing more to do.
        NotFound: there is nothing to resume.
        InvalidSpec: the spec differs from the run's in what a resume may not change, or has fewer
            steps than are made.
    """
    folder = RunFolder(roots.runs / spec.name)
    if not resume:
        if folder.path.exists():
            raise Conflict(f"run folder {folder.path} exists; --resume it, or change the name")
        return f"will be {folder.path}"
    if not folder.path.is_dir():
        raise NotFound(f"no run folder {folder.path}; start it without --resume")
    if folder.is_locked():
        raise Conflict(f"run {spec.name} is being trained by another process")
    before, made = folder.read_spec(), folder.newest_step
    require_resumable(before, spec, made)
    status = _status(folder)
    if status is not None and status.state is RunState.SUCCEEDED:
        early = status.reason == EARLY_STOPPED
        require_more_to_do(spec.name, before, spec, status.step, early=early)
    return f"{folder.path} " + ("begins anew" if made is None else f"goes on from step {made}")


def _status(folder: RunFolder) -> Status | None:
    """Returns the last status; None for one that cannot be read, which the run can do without."""
    try:
        return folder.read_status()
    except CorruptData:
        return None
