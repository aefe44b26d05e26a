"""A uvicorn server with a limit of connections, and a time limit for their first bytes.

A connection that sends no request costs a descriptor, and a server needs descriptors for its work
too. So at most `limit` connections are open: a new one takes the place of the one that has waited
longest, and is refused only if all of them are being answered. A client that takes nothing of what
it is sent is cut off, since the reply would stay in memory for as long as it likes.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server

REQUEST_SECONDS = 15.0  # from the connection, or the last answer, to the next whole request head
STALLED_SECONDS = 30.0  # without a byte of a reply taken by the client
HANDSHAKE_SECONDS = 10.0  # of TLS
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
        self.waits_since = self._moved_at = type(self).clock()
        self._unsent_before = 0
        # TLS writes through a transport of its own, which asyncio does not name.
        raw = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        self._transports = [transport] if raw is None else [transport, raw]
        super().connection_made(transport)
        for each in self._transports:  # who waits for room waits until the socket has all of it
            each.set_write_buffer_limits(high=1, low=0)
        if sum(not one.transport.is_closing() for one in self.connections) > self.limit:
            waiting = [one for one in waiting_of(self.connections) if one is not self]
            if waiting:
                min(waiting, key=lambda one: one.waits_since).abandon()
            else:
                self._refuse(503, f"{self.limit} requests are being answered; try again later")

    @property
    def waits(self) -> bool:
        """True while no request is being answered, and all replies are sent."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        return not self.unsent and not self.transport.is_closing()

    @property
    def unsent(self) -> int:
        """How many bytes the client has not taken yet."""
        return sum(each.get_write_buffer_size() for each in self._transports)

    def abandon(self) -> None:
        """Closes a connection at once; it is forgotten when it is closed."""
        self.transport.abort()

    def abandon_if_stalled(self) -> None:
        """Closes it if its client has taken nothing of a reply for too long."""
        now, unsent = type(self).clock(), self.unsent
        if not unsent or unsent != self._unsent_before:
            self._moved_at, self._unsent_before = now, unsent
        elif now - self._moved_at > STALLED_SECONDS:
            self.abandon()

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection without a further request, but not what it is still being sent."""
        if self.unsent:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            return
        super().timeout_keep_alive_handler()

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
        await (self._listen(sockets) if sockets and self.config.ssl else super().startup(sockets))
        for listener in (sockets or []) if self.started else []:
            listener.listen(KERNEL_QUEUE)

    async def _listen(self, sockets: list[socket.socket]) -> None:
        """Listens with TLS; uvicorn alone would leave a minute for each handshake."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)

        def connection() -> asyncio.Protocol:
            made: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = made(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return protocol

        self.servers = [
            await asyncio.get_running_loop().create_server(
                connection,
                sock=listener,
                ssl=self.config.ssl,
                backlog=self.config.backlog,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
            for listener in sockets
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for one in list(self.server_state.connections):
            if isinstance(one, Connection):
                one.abandon()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = Connection.clock()
            for one in waiting_of(self.server_state.connections):
                if now - one.waits_since > REQUEST_SECONDS:
                    one.abandon()
            for each in list(self.server_state.connections):
                if isinstance(each, Connection):
                    each.abandon_if_stalled()
        return await super().on_tick(counter)
