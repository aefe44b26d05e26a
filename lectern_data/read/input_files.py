"""Finds the input files of `lectern data prepare`, in a fixed order."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from lectern_common.errors import InvalidRequest, LecternError, NotFound
from lectern_common.tokens.shards import MANIFEST_NAME, read_any_manifest
from lectern_common.words import inert_name
from lectern_data.read.documents import LeftOut

_ENDINGS_NAMED = 8


def find_files(
    inputs: list[Path],
    include: list[str],
    exclude: list[str],
    on_left_out: Callable[[LeftOut], None] = lambda entry: None,
) -> list[tuple[str, Path]]:
    """Returns (name, path) of every input file and every file inside an input folder, in order.

    Inputs keep their order; inside a folder, paths are sorted. Hidden files and folders are
    skipped.

    Args:
        inputs: files and folders.
        include: inside folders, only files whose name or relative path matches one of these glob
            patterns; empty means all.
        exclude: files and folders whose name or relative path matches are left out.
        on_left_out: called with each folder inside the inputs that cannot be listed, which is a
            fault, or is behind a symbolic link, which is not followed.

    Raises:
        NotFound: an input does not exist.
        InvalidRequest: no file inside the folders is selected, patterns are given without a
            folder, or a folder is a prepared dataset.
    """
    found = list[tuple[str, Path]]()
    passed_over = Counter[str]()
    lost = list[LeftOut]()
    taken = 0
    for given in inputs:
        if given.is_dir():
            label = given.resolve().name
            for relative in sorted(_files_below(given, label, exclude, lost.append)):
                if not include or _matches(relative, include):
                    found.append((f"{label}/{relative}", given / relative))
                    taken += 1
                else:
                    passed_over[Path(relative).suffix] += 1
        elif given.exists():
            found.append((given.name, given))
        elif given.is_symlink():
            raise NotFound(f"{inert_name(given)} is a link that leads nowhere")
        else:
            raise NotFound(f"no file or folder {inert_name(given)}")
    for entry in lost:
        on_left_out(entry)
    folders = [given for given in inputs if given.is_dir()]
    within = [path.parent for _, path in found if path.name == MANIFEST_NAME]
    for folder in folders + within:
        require_no_dataset(folder)
    _require_taken(taken, folders, include, exclude, passed_over, lost)
    return found


def require_no_dataset(folder: Path) -> None:
    """Raises InvalidRequest if a folder is what `lectern data prepare` writes, not its input."""
    try:
        manifest = read_any_manifest(folder)
    except (LecternError, OSError):
        return
    kind, field = "dataset", "data.path"
    if manifest.is_prompts:
        kind, field = "prompt set", "rollout.prompts"
    raise InvalidRequest(
        f"{inert_name(folder)} is already a prepared {kind}; set it as a run's {field}, or name "
        "the text that it was made from here",
        "inputs",
    )


def _require_taken(
    taken: int,
    folders: list[Path],
    include: list[str],
    exclude: list[str],
    passed_over: Counter[str],
    lost: list[LeftOut],
) -> None:
    """Raises InvalidRequest if folders, include and exclude select no file."""
    option, patterns = ("include", include) if include else ("exclude", exclude)
    asked = " ".join(f"--{option} {pattern!r}" for pattern in patterns)
    if not folders:
        if patterns:
            raise InvalidRequest(
                f"{asked} has no effect: it selects files inside folders, and no folder is named",
                option,
            )
        return
    if taken:
        return
    below = ", ".join(map(inert_name, folders))
    unread = "".join(f"; {entry.name}: {entry.reason}" for entry in lost[:_ENDINGS_NAMED])
    if passed_over:
        raise InvalidRequest(
            f"{asked} matches no file in {below}; the files there end in {_endings(passed_over)}"
            f"{unread}",
            option,
        )
    if exclude:
        raise InvalidRequest(f"{asked} leaves no file in {below}{unread}", "exclude")
    raise InvalidRequest(f"no file in {below} (hidden ones are not read){unread}", "inputs")


def _endings(found: Counter[str]) -> str:
    """Returns the endings with their number of files, most frequent first."""
    most = found.most_common(_ENDINGS_NAMED)
    named = ", ".join(f"{inert_name(end) or 'nothing'} ({number:,})" for end, number in most)
    return named + (", ..." if len(found) > len(most) else "")


def _files_below(
    folder: Path, label: str, exclude: list[str], on_left_out: Callable[[LeftOut], None]
) -> Iterator[str]:
    """Yields the wanted files' paths inside the folder; calls back for the folders not walked."""

    def not_listed(error: OSError) -> None:
        name = _named(label, Path(error.filename).relative_to(folder))
        on_left_out(LeftOut(name, f"this folder cannot be read: {error.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=not_listed):
        relative = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if _is_wanted((relative / name).as_posix(), exclude)]
        for name in sorted(folders):
            if Path(parent, name).is_symlink():
                reason = "a link to a folder, which is not followed; name that folder itself"
                on_left_out(LeftOut(_named(label, relative / name), reason, is_fault=False))
        for name in names:
            path = (relative / name).as_posix()
            if _is_wanted(path, exclude):
                yield path


def _named(label: str, relative: Path) -> str:
    return inert_name(Path(label) / relative)


def _is_wanted(relative: str, exclude: list[str]) -> bool:
    return not Path(relative).name.startswith(".") and not _matches(relative, exclude)


def _matches(relative: str, patterns: list[str]) -> bool:
    name = relative.rpartition("/")[2]
    return any(fnmatchcase(relative, glob) or fnmatchcase(name, glob) for glob in patterns)
