"""The hidden work folder beside a dataset in preparation, which survives a kill."""

import datetime
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lectern_common.errors import Conflict
from lectern_common.files import take_lock, write_atomic
from lectern_common.words import inert_name

_BEGUN_NAME = "begun"


@dataclass
class Work:
    """The hidden work folder. It survives a failure while it `is_needed`."""

    path: Path
    is_needed: bool = True

    def begun(self) -> datetime.date:
        """Returns the day on which the preparation began, noted for after a kill."""
        try:
            return datetime.date.fromisoformat((self.path / _BEGUN_NAME).read_text())
        except (FileNotFoundError, ValueError):
            today = datetime.date.today()
            write_atomic(self.path / _BEGUN_NAME, today.isoformat().encode(), durable=False)
            return today


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
        if not work.is_needed or set(work.path.iterdir()) <= {lock, work.path / _BEGUN_NAME}:
            shutil.rmtree(work.path, ignore_errors=True)
        os.close(descriptor)
