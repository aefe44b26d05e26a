"""Structured logs on standard error, one event a line as key=value; and log files with a limit.

A line that cannot be written is lost: a full disk under a log must not end what it is about.
"""

import io
import json
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from lectern_common.errors import CorruptData
from lectern_common.words import inert_name

MAX_LOG_BYTES = 64 << 20
KEPT_FIRST_BYTES = 8 << 20
KEPT_LAST_BYTES = 24 << 20
_LINE_BYTES = 1 << 16  # how far to look for the end of a line to cut at
_NOTE = b"[N bytes of this log were cut out here, to keep it below its limit]\n"
_A_NOTE = re.compile(re.escape(_NOTE).replace(b"N", rb"(\d[\d,]{0,19})", 1))
# Held while a log is cut, and while one is read: in between, it lacks its end.
_cutting = threading.Lock()


def configure_logs(level: str = "info") -> None:
    """Configures structlog for this process; called once, in a `__main__`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _plain,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Lines(sys.stderr),
    )


def get_logger() -> Any:
    """Returns a logger for a module.

    A program that configures no logs, as one that imports a part of Lectern, gets only warnings,
    on standard error: its standard output is its own.
    """
    if not structlog.is_configured():
        configure_logs("warning")
    return structlog.get_logger()


class _Lines(structlog.WriteLogger):
    """Writes lines to a file; drops those for which there is no room or no reader."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(file)

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _plain(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leaves out what is None; writes mappings and lists as JSON, and texts without escapes.

    A request's path, or a file's name, must not write lines of its own or move a terminal's cursor.
    """
    return {name: _shown(value) for name, value in event.items() if value is not None}


def _shown(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=str)
    if isinstance(value, (bool, int, float)):
        return value
    return "\n".join(map(inert_name, str(value).split("\n")))  # the renderer spells line breaks


@dataclass(frozen=True)
class Cut:
    """Where the middle of a log was cut out: a line that says so stands from `at` to `end`.

    Attributes:
        at: where that line begins in the file.
        end: where it ends.
        missing: bytes that were written in its place, of all cuts so far.
    """

    at: int
    end: int
    missing: int


@dataclass(frozen=True)
class OpenLog:
    """A log file that is not cut while it is open; see `opened_log`.

    A *position* in it counts the bytes ever written, so a cut does not change it.
    """

    descriptor: int
    size: int
    version: tuple[int, int, int]  # differs whenever the content does
    cut: Cut | None

    def position_of(self, offset: int) -> int:
        """Returns the position of an offset of the file; that behind the cut for its line."""
        if self.cut is None or offset < self.cut.at:
            return offset
        return max(offset, self.cut.end) - self.cut.end + self.cut.at + self.cut.missing

    def offset_of(self, position: int) -> int:
        """Returns the offset of a position in the file; where the cut ends for one that is cut out.

        It is beyond the end if the file has never had so many bytes: it is another one.
        """
        if self.cut is None or position < self.cut.at:
            return position
        return max(0, position - self.cut.at - self.cut.missing) + self.cut.end

    def read(self, offset: int, at_most: int) -> bytes:
        """Returns the bytes from an offset on, fewer than asked for only at the end of the file."""
        return os.pread(self.descriptor, max(0, min(at_most, self.size - offset)), offset)


@contextmanager
def opened_log(path: Path, first_bytes: int = KEPT_FIRST_BYTES) -> Iterator[OpenLog]:
    """Yields a log file; `cap_log` in another thread of this process waits meanwhile.

    Args:
        first_bytes: as `cap_log` has it.

    Raises:
        FileNotFoundError: there is none.
        CorruptData: it is no regular file, or cannot be read.
    """
    try:
        # A pipe in the file's place would make a plain open wait for its writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        with _cutting, open(os.open(path, flags), "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise CorruptData(f"{path.name} is not a regular file")
            version = found.st_ino, found.st_size, found.st_mtime_ns
            cut = _cut_in(file.fileno(), first_bytes)
            yield OpenLog(file.fileno(), found.st_size, version, cut)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptData(f"{path.name} cannot be read: {error.strerror}") from None


def cap_log(
    path: Path,
    max_bytes: int = MAX_LOG_BYTES,
    first_bytes: int = KEPT_FIRST_BYTES,
    last_bytes: int = KEPT_LAST_BYTES,
) -> int:
    """Cuts the middle out of a log file that has outgrown its limit; returns the bytes cut out.

    The first lines say how a process was started, the last ones how it ended. A line of its own
    says what is missing between them, this time and before. Processes that have the file open may
    go on writing, if they append: what they write in the moment between the last look at the file
    and its cut is lost.

    Args:
        path: the file; a missing one has nothing to cut.
        max_bytes: a file up to this size is left alone.
        first_bytes: about how much to keep of its start; much below `max_bytes`.
        last_bytes: about how much to keep of its end; with `first_bytes`, at most `max_bytes`.

    Raises:
        OSError: it cannot be read or written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        return 0
    with open(descriptor, "r+b", buffering=0) as file:
        if os.fstat(descriptor).st_size <= max_bytes:
            return 0
        with _cutting:
            return _cut_out(file, first_bytes, max_bytes, last_bytes)


def _cut_out(file: io.FileIO, first_bytes: int, max_bytes: int, last_bytes: int) -> int:
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    before = OpenLog(descriptor, size, (0, 0, 0), _cut_in(descriptor, first_bytes))
    head = os.pread(descriptor, _LINE_BYTES, first_bytes)
    keep_to = first_bytes + head.find(b"\n") + 1
    begin = size - last_bytes
    tail = bytearray()
    while len(tail) < max_bytes:  # to the end, and what comes meanwhile
        block = os.pread(descriptor, 1 << 20, begin + len(tail))
        if not block:
            break
        tail += block
    part_of_line = tail.find(b"\n", 0, _LINE_BYTES) + 1
    del tail[:part_of_line]
    begin += part_of_line
    begun = b"" if keep_to > first_bytes else b"\n"
    missing = before.position_of(begin) - keep_to - len(begun)
    os.ftruncate(descriptor, keep_to)
    rest = memoryview(begun + _NOTE.replace(b"N", f"{missing:,}".encode(), 1) + tail)
    while rest:
        rest = rest[file.write(rest) :]
    return begin - keep_to


def _cut_in(descriptor: int, first_bytes: int) -> Cut | None:
    block = os.pread(descriptor, _LINE_BYTES + 2 * len(_NOTE), first_bytes)
    begin = block.find(b"\n") + 1
    note = _A_NOTE.match(block, begin) if begin else None
    if note is None:
        return None
    at, end = first_bytes + begin, first_bytes + note.end()
    return Cut(at, end, int(note[1].replace(b",", b"")))
