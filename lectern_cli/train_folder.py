"""The folder of a run that `lectern train` makes, or goes on with."""

from lectern_common.errors import Conflict, InvalidSpec, NotFound
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder
from lectern_common.run_spec import RunSpec, resume_differences


def require_folder(spec: RunSpec, roots: Roots, *, resume: bool) -> str:
    """Returns what will be done with the run's folder, where that can be done.

    Raises:
        Conflict: a new run's folder exists, or a trainer works in the one to be resumed.
        NotFound: there is nothing to resume.
        InvalidSpec: the spec differs from the run's in what a resume may not change.
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
    differences = resume_differences(folder.read_spec(), spec)
    if differences:
        raise InvalidSpec(
            [
                (field, f"was {before!r}, is {after!r}; a resume may not change it")
                for field, before, after in differences
            ]
        )
    return f"{folder.path} goes on"
