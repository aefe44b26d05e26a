"""Structured logs on standard error, one event a line as key=value; and log files with a limit."""

import json
import logging
import os
import sys
from pathlib import Path

import structlog
from structlog.typing import EventDict, WrappedLogger

MAX_LOG_BYTES = 64 << 20
KEPT_FIRST_BYTES = 8 << 20
KEPT_LAST_BYTES = 24 << 20
_LINE_BYTES = 1 << 16  # how far to look for the end of a line to cut at


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _plain(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leaves out what is None; writes mappings and lists as JSON."""
    return {
        name: json.dumps(value, default=str) if isinstance(value, (dict, list)) else value
        for name, value in event.items()
        if value is not None
    }


def cap_log(
    path: Path,
    max_bytes: int = MAX_LOG_BYTES,
    first_bytes: int = KEPT_FIRST_BYTES,
    last_bytes: int = KEPT_LAST_BYTES,
) -> int:
    """Cuts the middle out of a log file that has outgrown its limit; returns the bytes cut out.

    The first lines say how a process was started, the last ones how it ended. A line of its own
    says what is missing between them. Processes that have the file open may go on writing, if they
    append: what they write in the moment between the last look at the file and its cut is lost.

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
        size = os.fstat(descriptor).st_size
        if size <= max_bytes:
            return 0
        head = os.pread(descriptor, _LINE_BYTES, first_bytes)
        keep_to = first_bytes + head.find(b"\n") + 1
        tail = bytearray()
        while len(tail) < max_bytes:  # to the end, and what comes meanwhile
            block = os.pread(descriptor, 1 << 20, size - last_bytes + len(tail))
            if not block:
                break
            tail += block
        del tail[: tail.find(b"\n", 0, _LINE_BYTES) + 1]
        missing = os.fstat(descriptor).st_size - keep_to - len(tail)
        os.ftruncate(descriptor, keep_to)
        begun = b"" if keep_to > first_bytes else b"\n"
        note = f"[{missing:,} bytes of this log were cut out here, to keep it below its limit]\n"
        rest = memoryview(begun + note.encode() + tail)
        while rest:
            rest = rest[file.write(rest) :]
    return missing
