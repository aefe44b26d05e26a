"""Structured logs on standard error: one event per line, as key=value."""

import json
import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger


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
