"""The run folder that `lectern train` makes or resumes."""

from lectern_common.checks.documents import with_documents
from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import EARLY_STOPPED, RunState, Status
from lectern_common.spec.load import continuing
from lectern_common.spec.run_spec import RunSpec, require_more_to_do, require_resumable


def require_folder(spec: RunSpec, roots: Roots, *, resume: bool) -> str:
    """Checks that the run's folder can be made or resumed; returns in words what will be done.

    Raises:
        Conflict: a new run's folder exists already, another trainer works in the folder to resume,
            or its run has nothing left to do.
        NotFound: there is nothing to resume.
        InvalidSpec: the spec changes a field that a resume may not change, or has fewer steps than
            the run has done.
    """
    folder = RunFolder(roots.runs / spec.name)
    if not resume:
        if folder.path.exists():
            raise Conflict(
                f"run folder {folder.path} exists already; set --resume to continue that run, or "
                "change name in the spec"
            )
        return f"will be {folder.path}"
    if not folder.path.is_dir():
        raise NotFound(f"there is no run folder {folder.path}; start the run without --resume")
    if folder.is_locked():
        raise Conflict(_trained_elsewhere(folder))
    before, done = folder.read_spec(), folder.newest_step
    require_resumable(before, spec, done)
    status = _status(folder)
    if status is not None and status.state is RunState.SUCCEEDED:
        early = status.reason == EARLY_STOPPED
        require_more_to_do(spec.name, before, spec, status.step, early=early)
    from_step = "from the start" if done is None else f"from step {done}"
    return f"{folder.path} will be resumed {from_step}"


def resolved(spec: RunSpec, roots: Roots, *, resume: bool) -> RunSpec:
    """Returns the spec with what its data decides filled in; in a resume, as the run has had it.

    Raises:
        InvalidSpec: see `continuing`, or the spec of the run to resume cannot be read.
    """
    folder = RunFolder(roots.runs / spec.name)
    if not resume or not folder.spec_path.is_file():
        return with_documents(spec, roots)
    begun = folder.read_spec()
    return with_documents(continuing(begun, spec), roots, begun)


def _trained_elsewhere(folder: RunFolder) -> str:
    status = _status(folder)
    if status is None:
        return f"run {folder.run_id} is being trained by another process"
    return (
        f"run {folder.run_id} is being trained by process {status.pid}, at step {status.step}; "
        f"wait for its end, or make it write a checkpoint and stop: kill {status.pid}"
    )


def _status(folder: RunFolder) -> Status | None:
    """Returns the last status; None if it cannot be read, which does not stop a resume."""
    try:
        return folder.read_status()
    except CorruptData:
        return None
