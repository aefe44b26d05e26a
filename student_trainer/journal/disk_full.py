"""Recognises a full disk, however it is reported, and keeps room for a last status."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lectern_common.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
# A status and an event each take one block of a file system.
_RESERVE_BYTES = 1 << 14


@contextmanager
def disk_full_as_error(
    what: str, then: str = "resume the run from its last checkpoint"
) -> Iterator[None]:
    """Turns running out of space into DiskFull, naming what could not be written.

    Args:
        what: could not be written.
        then: what to do once there is space again.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"no space left to write {what}; free some, then {then}") from error


def is_disk_full(error: BaseException) -> bool:
    """Returns True for "no space left", also from safetensors, whose error carries no errno."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


class Reserve:
    """Disk space held by a file, released so that a run can still write its last status."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Reserves space if there is any. Random bytes, so that no file system compresses them."""
        try:
            self._path.write_bytes(os.urandom(_RESERVE_BYTES))
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)

    def spent_on(self, write: Callable[[], None]) -> None:
        """Writes; if the disk is full, releases the reserve and retries once. Raises OSError."""
        try:
            write()
        except OSError as error:
            if not is_disk_full(error) or not self._path.exists():
                raise
            self.give_up()
            write()
