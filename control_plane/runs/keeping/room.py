"""Room for deletions on a full disk: a file beside the database, given up while one is made.

SQLite writes in order to delete, so on a disk without a free byte nothing could be deleted, and
nothing else makes room.
"""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import disk_usage
from typing import TypeVar

import sqlalchemy as sa

from lectern_common.logs import get_logger

# The rows of a long run, about a thousand pages.
ROOM_BYTES = 4 << 20
_LEAST_FREE = 8 * ROOM_BYTES  # taking room must not be what fills the disk

T = TypeVar("T")

_log = get_logger()


class Room:
    """Bytes of a disk held by a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Takes the room unless it is taken, or little is free. Never raises."""
        try:
            if self._path.exists() or disk_usage(self._path.parent).free < _LEAST_FREE:
                return
            # Random, so that no file system compresses it.
            self._path.write_bytes(os.urandom(ROOM_BYTES))
        except OSError as error:
            _log.warning("no room reserved for deletions", file=str(self._path), error=str(error))
            self._path.unlink(missing_ok=True)

    def spent_on(self, delete: Callable[[], T]) -> T:
        """Returns what `delete` returns; if the disk is full, tries once more in the room.

        Raises:
            Exception: what `delete` raises.
        """
        try:
            return delete()
        except sa.exc.OperationalError as error:
            if not is_full(error) or not self._path.exists():
                raise
            self._path.unlink()
        try:
            return delete()
        finally:
            self.take()


def is_full(error: sa.exc.DBAPIError) -> bool:
    """Returns True if the database could not be written for want of space."""
    return "disk is full" in str(error.orig)
