"""The connections of the server: how many, what is refused to them, and what is logged of them.

Runs need descriptors too, so connections get at most half of them: see lectern_common/http_server.
"""

import json
import logging
import resource
import time
from collections.abc import Callable

from starlette.responses import Response
from uvicorn.config import Config

from control_plane.api.guard import SECURITY_HEADERS
from control_plane.api.problems import problem
from lectern_common import http_server

MAX_CONNECTIONS = 1024
REPEAT_SECONDS = 60.0


def raise_descriptor_limit() -> int:
    """Raises this process's limit of open files to what it may set; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # no limit at all cannot be set on every system
        return soft
    return hard


def max_connections(descriptors: int) -> int:
    """Returns how many connections may be open: half of the descriptors, at most 1,024."""
    if descriptors < 0:  # resource.RLIM_INFINITY
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, descriptors // 2))


class BoundedServer(http_server.BoundedServer):
    """The control plane's server: what it refuses itself looks like the application's errors."""

    def __init__(self, config: Config, limit: int) -> None:
        super().__init__(config, limit, _refused)


def _refused(status: int, detail: str) -> Response:
    response = problem(status, detail, "overloaded" if status == 503 else None)
    for name, value in SECURITY_HEADERS.items():
        response.headers[name] = value
    response.headers["cache-control"] = "no-store"
    return response


class Rarely(logging.Filter):
    """Lets one record of a kind through each minute; the next one says how many were left out.

    A client that opens connections or sends nonsense as fast as it can would fill the disk.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        first = str(record.msg).partition("\n")[0][:200]
        now, kind = self._clock(), (record.name, first)
        since, left_out = self._last.get(kind, (float("-inf"), 0))
        if now - since < REPEAT_SECONDS:
            self._last[kind] = since, left_out + 1
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[kind] = now, 0
        # One line: what asyncio adds to it are the socket and a traceback of its own code.
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        text = record.getMessage() if record.name.startswith("uvicorn") else first
        if record.name == "asyncio" and error is not None:
            text, record.exc_info = f"{first}: {json.dumps(str(error))}", None
        if left_out:
            text += f" ({left_out} more of these in the last {now - since:.0f} s)"
        record.msg, record.args = text, ()
        return True
