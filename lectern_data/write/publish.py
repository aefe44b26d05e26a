"""Publishes dataset folders, which appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lectern_common.errors import Conflict
from lectern_common.files import put_in_place, rename_durably
from lectern_common.tokens.shards import MANIFEST_NAME
from lectern_common.words import inert_name


@contextmanager
def published(targets: list[Path], *, replace: bool = False) -> Iterator[list[Path]]:
    """Yields one new hidden folder for each target, and renames them into place at the end.

    A hidden folder left empty publishes nothing. After an error none is published and the hidden
    folders are removed; after a kill the next call for the same target removes them.

    Args:
        targets: the folders to publish.
        replace: existing datasets are replaced, or removed if their target publishes nothing.

    Raises:
        Conflict: a target exists and `replace` is False, or it is not a dataset.
    """
    for target in targets:
        require_free(target, replace=replace)
        _sweep(target)
    hidden = [_hidden(target, "new") for target in targets]
    try:
        for folder in hidden:
            folder.mkdir(parents=True)
        yield hidden
        for target, folder in zip(targets, hidden, strict=True):
            _put_in_place(folder, target, replace=replace)
    finally:
        for folder in hidden:
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, target: Path, *, replace: bool) -> None:
    require_free(target, replace=replace)
    before = _hidden(target, "old")
    if any(folder.iterdir()):
        put_in_place(folder, target, aside=before if replace else None)
    elif target.exists():
        rename_durably(target, before)
        shutil.rmtree(before, ignore_errors=True)


def require_free(target: Path, *, replace: bool) -> None:
    """Raises Conflict if a target exists and `replace` is False, or it is not a dataset."""
    if not target.exists():
        return
    if not (target / MANIFEST_NAME).is_file():
        raise Conflict(f"{inert_name(target)} exists and is not a dataset; choose another name")
    if not replace:
        raise Conflict(
            f"dataset {inert_name(target)} exists; choose another name, or --force to replace it"
        )


def _hidden(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}.{os.getpid()}")


def _sweep(target: Path) -> None:
    """Removes the hidden folders of processes that no longer exist."""
    if not target.parent.is_dir():
        return
    for role in ("new", "old"):
        prefix = f".{target.name}.{role}."
        for path in target.parent.glob(f"{prefix}*"):
            pid = path.name.removeprefix(prefix)
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(path, ignore_errors=True)
