"""Structured logs on standard error: one event per line, as key=value.

A line that cannot be written is lost: a full disk under a log must not end what it is about.
"""

import logging
import sys
from contextlib import suppress
from typing import TextIO

import structlog


def configure_logs(level: str = "info") -> None:
    """Configures structlog for this process; called once, in a `__main__`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Lines(sys.stderr),
    )


class _Lines(structlog.WriteLogger):
    """Writes lines to a file; drops those for which there is no room or no reader."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(file)

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg
