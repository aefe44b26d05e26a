"""Running out of space, recognised however it is said."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from lectern_common.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
