"""The hidden work folder beside a dataset in preparation, which survives a kill."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lectern_common.errors import Conflict
from lectern_common.files import take_lock
from lectern_common.words import inert_name


@dataclass
class Work:
    """The hidden work folder. It survives a failure while it `is_needed`."""

    path: Path
    is_needed: bool = True


@contextmanager
def work_folder(output: Path) -> Iterator[Work]:
    """Yields the locked folder beside `output`; removes it when it is done or empty.

    Raises:
        Conflict: another process is preparing the same dataset.
        Misconfigured: the file system has no locks.
    """
    work = Work(output.with_name(f".{output.name}.work"))
    work.path.mkdir(parents=True, exist_ok=True)
    lock = work.path / "lock"
    try:
        descriptor = take_lock(lock)
    except BlockingIOError:
        raise Conflict(f"another process is preparing {inert_name(output)}; wait for it") from None
    except BaseException:
        if set(work.path.iterdir()) <= {lock}:
            shutil.rmtree(work.path, ignore_errors=True)
        raise
    try:
        yield work
    finally:
        if not work.is_needed or set(work.path.iterdir()) <= {lock}:
            shutil.rmtree(work.path, ignore_errors=True)
        os.close(descriptor)
