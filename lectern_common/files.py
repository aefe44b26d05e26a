"""Puts files and folders in place atomically; also fsync, a file lock, and a file's end.

A rename is atomic: readers see the old content or the new, never half of it, even after a kill.
What must also survive a power cut is *durable*: its bytes are fsynced before the rename, and its
parent folder after it.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lectern_common.errors import Conflict, Misconfigured, NotFound
from lectern_common.words import inert_name

# The environment variable that names a folder for locks, for file systems that have none.
LOCKS_VARIABLE = "LECTERN_LOCKS"
_LOCK_POLL_SECONDS = 0.05


def fsync(path: Path) -> None:
    """Makes the bytes of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_durably(path: Path, target: Path) -> None:
    """Renames a file or folder; returns when a power cut cannot undo it."""
    path.rename(target)
    fsync(target.parent)


@contextmanager
def replaced_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a hidden path to write to, which replaces `path` at the end.

    After an error `path` is unchanged, and the hidden file is removed.

    Args:
        path: the file to replace.
        durable: False suits files that are rewritten soon, or checked when they are read.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield hidden
        if durable:
            fsync(hidden)
        hidden.replace(path)
    except BaseException:
        # Otherwise every try on a full disk would leave a file.
        with suppress(OSError):
            hidden.unlink()
        raise
    if durable:
        fsync(path.parent)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replaces the bytes of `path`: readers see the old ones or the new."""
    with replaced_file(path, durable=durable) as hidden:
        hidden.write_bytes(data)


@contextmanager
def new_folder(
    target: Path, hidden: Path, *, aside: Path | None = None, durable: bool = True
) -> Iterator[Path]:
    """Yields the empty folder `hidden` and puts it in place at the end; see `put_in_place`.

    After an error `target` is unchanged, and the hidden folder is removed. After a kill it may
    remain; the next call with the same name removes it.
    """
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        yield hidden
        put_in_place(hidden, target, aside=aside, durable=durable)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def put_in_place(
    folder: Path, target: Path, *, aside: Path | None = None, durable: bool = True
) -> None:
    """Renames a finished folder to `target`.

    Args:
        folder: on the same file system as `target`.
        target: replaced if `aside` is given.
        aside: holds the old folder between two renames (and after a kill between them), then is
            removed. None means that nothing is replaced.
        durable: fsync everything in the folder first.

    Raises:
        OSError: `target` exists and may not be replaced, or a rename failed; `target` is
            unchanged.
    """
    if durable:
        for path in (*folder.rglob("*"), folder):
            fsync(path)
    try:
        if aside is not None and target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        folder.rename(target)
    except BaseException:
        if aside is not None and aside.exists() and not target.exists():
            aside.rename(target)
        raise
    if durable:
        fsync(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


class NotRegularError(FileNotFoundError):
    """Something else, such as a pipe or a folder, is in the place of a file."""


def opened_regular(path: Path, *, writes: bool = False) -> BinaryIO:
    """Opens an existing regular file for reading, without waiting.

    A pipe in its place would make a plain open wait for somebody who writes to it.

    Args:
        path: the file.
        writes: open it for writing too.

    Raises:
        NotRegularError: it is a pipe, a folder, a socket or a device.
        FileNotFoundError: there is no such file.
        OSError: it cannot be opened.
    """
    flags = (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except NotADirectoryError:
        raise FileNotFoundError(path) from None
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise NotRegularError(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(path)
    return open(descriptor, "r+b") if writes else open(descriptor, "rb")


def take_lock(path: Path, patience_seconds: float = 0.0) -> int:
    """Returns a descriptor that holds a file's lock until it is closed, or the process ends.

    Child processes inherit it only if they are given the descriptor: then the lock is free once
    all of them have ended.

    Args:
        path: created if missing. If LECTERN_LOCKS names a folder, a file in there stands for it.
        patience_seconds: how long to wait for the process that holds it.

    Raises:
        BlockingIOError: another process still holds it.
        Misconfigured: the file system has no locks.
        OSError: the file cannot be opened or created.
    """
    lock = lock_file(path)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError as error:
                raise _no_locks(lock.parent, error) from None
            else:
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def locked_folder(
    folder: Path, *, missing: str, busy: str, patience_seconds: float = 0.0
) -> Iterator[int]:
    """Holds the lock of a folder, which one process works in; yields its descriptor.

    Child processes inherit the lock only if they are given the descriptor: then it is free once all
    of them have ended.

    Args:
        folder: the file "lock" in it is locked.
        missing: what to say if there is no such folder.
        busy: what to say if another process holds the lock.
        patience_seconds: how long to wait for that one: the children of a killed process end a
            moment after it.

    Raises:
        Conflict: another process still holds it.
        NotFound: there is no such folder.
        Misconfigured: the file system has no locks.
    """
    try:
        descriptor = take_lock(folder / "lock", patience_seconds)
    except FileNotFoundError:
        raise NotFound(missing) from None
    except BlockingIOError:
        raise Conflict(busy) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(lock: AbstractContextManager[int]) -> bool:
    """Returns whether another process holds the lock of a folder, as `locked_folder` returns it.

    Raises:
        NotFound: there is no such folder.
        Misconfigured: the file system has no locks.
    """
    try:
        with lock:
            return False
    except Conflict:
        return True


def require_locks(folder: Path) -> None:
    """Raises Misconfigured if files in an existing folder cannot be locked; leaves nothing."""
    probe = folder / f".lock-{os.getpid()}-{threading.get_ident()}"
    try:
        os.close(take_lock(probe))
    finally:
        with suppress(OSError):
            lock_file(probe).unlink()


def lock_file(path: Path) -> Path:
    """Returns the file whose lock is taken for `path`: itself, or one in the LECTERN_LOCKS folder.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        Misconfigured: the LECTERN_LOCKS folder cannot be used.
    """
    elsewhere = os.environ.get(LOCKS_VARIABLE)
    if not elsewhere:
        return path
    name = hashlib.sha256(os.fsencode(path.parent.resolve(strict=True) / path.name)).hexdigest()
    try:
        Path(elsewhere).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(
            f"cannot use {inert_name(elsewhere)} for locks: {error.strerror}; set {LOCKS_VARIABLE} "
            "to a folder that this user can write"
        ) from None
    return Path(elsewhere) / f"{name[:32]}.lock"


def _no_locks(folder: Path, error: OSError) -> Misconfigured:
    return Misconfigured(
        f"{inert_name(folder)} is on a file system without file locks ({error.strerror}), so two "
        "processes could write there at once: use a folder on another file system, or set "
        f"{LOCKS_VARIABLE} to a folder on a local disk, the same for every process that works "
        f"with {inert_name(folder)}, and use it from one machine only"
    )


def end_of(path: Path, at_most_bytes: int, first_byte: int = 0) -> tuple[bytes, bool]:
    """Returns the last bytes of a file from `first_byte` on, and whether they were cut.

    They were cut if bytes after `first_byte` are left out. A missing file counts as empty, as does
    what is no regular file.
    """
    try:
        with opened_regular(path) as file:
            start = max(first_byte, file.seek(0, os.SEEK_END) - at_most_bytes)
            file.seek(start)
            return file.read(at_most_bytes), start > first_byte
    except FileNotFoundError:
        return b"", False
