"""A uvicorn server with a limit of connections, and a time limit for their first bytes.

A connection that sends no request costs a descriptor, and a server needs descriptors for its work
too. So at most `limit` connections are open: a new one takes the place of the one that has waited
longest, and is refused only if all of them are being answered.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server

REQUEST_SECONDS = 15.0  # from the connection, or the last answer, to the next whole request head
# asyncio accepts up to `backlog` connections in one go, and without free descriptors fails, logs
# and schedules another try as many times: so few of them, and a longer queue in the kernel.
ACCEPTED_AT_ONCE = 32
KERNEL_QUEUE = 1024

Refusal = Callable[[int, str], Response]
"""Makes the answer to what never reaches the application, of a status and one sentence."""


class Connection(H11Protocol):
    """One client's connection, which knows since when it has waited for a request."""

    limit: int
    refusal: Refusal
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
        response = type(self).refusal(status, detail)
        headers = [*response.raw_headers, (b"connection", b"close")]
        if status == 503:
            headers.append((b"retry-after", b"1"))
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
    """uvicorn with a limit of connections and a time limit for their first bytes.

    Args:
        config: its `http` and `backlog` are set here.
        limit: of open connections.
        refusal: how a connection beyond it, or one without HTTP, is answered.
    """

    def __init__(self, config: Config, limit: int, refusal: Refusal) -> None:
        connection = type(
            "Limited", (Connection,), {"limit": limit, "refusal": staticmethod(refusal)}
        )
        config.http = connection
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
