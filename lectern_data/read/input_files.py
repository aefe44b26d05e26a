"""Finds the input files of `lectern data prepare`, in a fixed order."""

import os
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from lectern_common.errors import InvalidRequest, LecternError, NotFound
from lectern_common.tokens.shards import MANIFEST_NAME, read_manifest

_ENDINGS_NAMED = 8


def find_files(
    inputs: list[Path], include: list[str], exclude: list[str]
) -> list[tuple[str, Path]]:
    """Returns (name, path) of every input file and every file inside an input folder, in order.

    Inputs keep their order; inside a folder, paths are sorted. Hidden files and folders, and
    folders behind symbolic links, are skipped.

    Args:
        inputs: files and folders.
        include: inside folders, only files whose name or relative path matches one of these glob
            patterns; empty means all.
        exclude: files and folders whose name or relative path matches are left out.

    Raises:
        NotFound: an input does not exist.
        InvalidRequest: no file inside the folders is selected, patterns are given without a
            folder, or a folder is a prepared dataset.
    """
    found = list[tuple[str, Path]]()
    passed_over = Counter[str]()
    taken = 0
    for given in inputs:
        if given.is_dir():
            label = given.resolve().name
            for relative in sorted(_files_below(given, exclude)):
                if not include or _matches(relative, include):
                    found.append((f"{label}/{relative}", given / relative))
                    taken += 1
                else:
                    passed_over[Path(relative).suffix] += 1
        elif given.exists():
            found.append((given.name, given))
        else:
            raise NotFound(f"no file or folder {given}")
    folders = [given for given in inputs if given.is_dir()]
    within = [path.parent for _, path in found if path.name == MANIFEST_NAME]
    for folder in folders + within:
        require_no_dataset(folder)
    _require_taken(taken, folders, include, exclude, passed_over)
    return found


def require_no_dataset(folder: Path) -> None:
    """Raises InvalidRequest if a folder is the output of `lectern data prepare`, not its text."""
    try:
        read_manifest(folder)
    except (LecternError, OSError):
        return
    raise InvalidRequest(
        f"{folder} is already a prepared dataset; set it as a run's data.path, or name the text "
        "that it was made from here",
        "inputs",
    )


def _require_taken(
    taken: int,
    folders: list[Path],
    include: list[str],
    exclude: list[str],
    passed_over: Counter[str],
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
    below = ", ".join(map(str, folders))
    if passed_over:
        raise InvalidRequest(
            f"{asked} matches no file in {below}; the files there end in {_endings(passed_over)}",
            option,
        )
    if exclude:
        raise InvalidRequest(f"{asked} leaves no file in {below}", "exclude")
    raise InvalidRequest(f"no file in {below} (hidden ones are not read)", "inputs")


def _endings(found: Counter[str]) -> str:
    """Returns the endings with their number of files, most frequent first."""
    most = found.most_common(_ENDINGS_NAMED)
    named = ", ".join(f"{suffix or 'nothing'} ({number:,})" for suffix, number in most)
    return named + (", ..." if len(found) > len(most) else "")


def _files_below(folder: Path, exclude: list[str]) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if _is_wanted((relative / name).as_posix(), exclude)]
        for name in names:
            path = (relative / name).as_posix()
            if _is_wanted(path, exclude):
                yield path


def _is_wanted(relative: str, exclude: list[str]) -> bool:
    return not Path(relative).name.startswith(".") and not _matches(relative, exclude)


def _matches(relative: str, patterns: list[str]) -> bool:
    name = relative.rpartition("/")[2]
    return any(fnmatchcase(relative, glob) or fnmatchcase(name, glob) for glob in patterns)
