"""The connections of the server: how many, for how long without a request, and what is logged.

A connection that sends no request costs a descriptor, and runs need descriptors too. So at most
`max_connections` are open: a new one takes the place of the one that has waited longest, and is
refused only if all of them are being answered.
"""

import json
import logging
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server

from control_plane.api.guard import SECURITY_HEADERS
from control_plane.api.problems import problem

MAX_CONNECTIONS = 1024
REQUEST_SECONDS = 15.0  # from the connection, or the last answer, to the next whole request head
# asyncio accepts up to `backlog` connections in one go, and without free descriptors fails, logs
# and schedules another try as many times: so few of them, and a longer queue in the kernel.
ACCEPTED_AT_ONCE = 32
KERNEL_QUEUE = 1024
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


class Connection(H11Protocol):
    """One client's connection, which knows since when it has waited for a request."""

    limit = MAX_CONNECTIONS
    clock: Callable[[], float] = time.monotonic

    def connection_made(self, transport: Any) -> None:
        self.waits_since = type(self).clock()
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            waiting = [one for one in waiting_of(self.connections) if one is not self]
            if waiting:
                min(waiting, key=lambda one: one.waits_since).abandon()
            else:
                self._refuse(503, f"{self.limit} requests are being answered; try again later")

    @property
    def waits(self) -> bool:
        """True while no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def abandon(self) -> None:
        """Closes a connection that waits."""
        self.connections.discard(self)
        self.transport.close()

    def on_response_complete(self) -> None:
        self.waits_since = type(self).clock()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP, as the application answers its own errors."""
        self._refuse(400, "this is not a valid HTTP request, or its headers are too large")

    def _refuse(self, status: int, detail: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or not self.waits:
            # In the middle of an answer, which now ends; the application is told.
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.close()
            return
        response = problem(status, detail, "overloaded" if status == 503 else None)
        headers = [*response.raw_headers, (b"connection", b"close")]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        headers += [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        headers.append((b"cache-control", b"no-store"))
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def waiting_of(connections: Any) -> list[Connection]:
    """Returns the connections on which no request is being answered."""
    return [one for one in connections if isinstance(one, Connection) and one.waits]


class BoundedServer(Server):
    """uvicorn with a limit of connections and a time limit for their first bytes."""

    def __init__(self, config: Config, limit: int) -> None:
        class Limited(Connection):
            pass

        Limited.limit = limit
        config.http = Limited
        config.backlog = ACCEPTED_AT_ONCE
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in (sockets or []) if self.started else []:
            listener.listen(KERNEL_QUEUE)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = Connection.clock()
            for one in waiting_of(self.server_state.connections):
                if now - one.waits_since > REQUEST_SECONDS:
                    one.abandon()
        return await super().on_tick(counter)


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
