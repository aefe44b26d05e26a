"""The files that `lectern data prepare` is given, in a fixed order."""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from lectern_common.errors import NotFound


def find_files(
    inputs: list[Path], include: list[str], exclude: list[str]
) -> list[tuple[str, Path]]:
    """Returns (name, path) of every file named or below a named folder, in a fixed order.

    Inputs keep their order; below a folder, paths are sorted. Hidden files and folders, and folders
    behind symbolic links, are not entered.

    Args:
        include: below folders, only files whose name or relative path matches one of these glob
            patterns; empty takes all.
        exclude: files and folders whose name or relative path matches are left out.

    Raises:
        NotFound: an input does not exist.
    """
    found = []
    for given in inputs:
        if given.is_dir():
            label = given.resolve().name
            found += [
                (f"{label}/{relative}", given / relative)
                for relative in sorted(_files_below(given, exclude))
                if not include or _matches(relative, include)
            ]
        elif given.exists():
            found.append((given.name, given))
        else:
            raise NotFound(f"no file or folder {given}")
    return found


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
