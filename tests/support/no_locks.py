"""A file system without locks, such as NFS without a lock daemon."""

import errno
import fcntl
import os
from pathlib import Path

import pytest


def refuse_locks(
    monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK, but: Path | None = None
) -> None:
    """Makes `flock` fail in this process, except on files below `but`."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if but is None or not path.is_relative_to(but):
            raise OSError(number, os.strerror(number))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
