"""Running out of space, recognised however it is said."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lectern_common.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)
# A status and an event take a block of a file system each.
_RESERVE_BYTES = 1 << 14


@contextmanager
def disk_full_as_error(what: str) -> Iterator[None]:
    """Within, running out of space raises DiskFull, naming what could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"no space left to write {what}; free some, then resume the run from its last "
            "checkpoint"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Returns True for "no space left", also as safetensors words it, which keeps no errno."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


class Reserve:
    """Room on the disk, kept in a file, and given up for the words that a run must still say."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Keeps room, where there is any. The bytes are random: no file system shrinks them."""
        try:
            self._path.write_bytes(os.urandom(_RESERVE_BYTES))
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)

    def spent_on(self, write: Callable[[], None]) -> None:
        """Writes; where the disk is full, once more without the reserve. Raises OSError."""
        try:
            write()
        except OSError as error:
            if not is_disk_full(error) or not self._path.exists():
                raise
            self.give_up()
            write()
