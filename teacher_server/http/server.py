"""Listens for HTTP on a port of its own, on the teacher's event loop.

start()  binds the port, with the gRPC port, before the model is loaded; /health answers 503
stop()   after the drain: the calls in flight have been answered, and what is open is closed
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator

from starlette.responses import Response
from uvicorn.config import Config

from lectern_common.errors import Misconfigured
from lectern_common.http_server import BoundedServer
from lectern_common.listening import bound_sockets
from lectern_common.words import address_of
from teacher_server.http.app import create_app
from teacher_server.http.errors import plain_refusal
from teacher_server.http.guard import Guard
from teacher_server.rpc.gate import Gate

MAX_CONNECTIONS = 256
_MAX_HEADER_BYTES = 16 << 10
_GRACE_SECONDS = 1


class HttpServer:
    """The HTTP face of a teacher. Make, start and stop it inside one event loop.

    Args:
        host: where to listen.
        port: 0 picks a free one.
        gate: of the teacher; calls of HTTP and gRPC share its queue, counters and drain.
        token: that every request but health must carry; None means that none is needed.
        tls: the server's TLS context; None means plaintext.
    """

    def __init__(
        self,
        host: str,
        port: int,
        gate: Gate,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        config = Config(
            Guard(create_app(gate), gate, token),
            lifespan="off",
            log_config=None,
            log_level="critical",  # clients' nonsense; errors of ours are logged where they occur
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ssl_context_factory=None if tls is None else lambda _config, _make: tls,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The base URL, valid once started."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{address_of(self._host, self._port)}"

    async def start(self) -> None:
        """Binds the port and starts to answer.

        Raises:
            Misconfigured: the port is taken, or the address is not this machine's.
        """
        try:
            sockets = bound_sockets(self._host, self._port)
        except OSError as error:
            raise Misconfigured(
                f"cannot serve HTTP on {error.filename or address_of(self._host, self._port)}: "
                "the port is taken or the address is not this machine's; set another --http"
            ) from None
        self._port = sockets[0].getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait((self._serving, listening), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def stop(self) -> None:
        """Closes the port and every connection, those in the middle of an answer a second later."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait([self._serving])


class _Server(BoundedServer):
    """uvicorn that leaves the process's signals alone, and says when it listens."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, MAX_CONNECTIONS, _refused)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


def _refused(status: int, detail: str) -> Response:
    return plain_refusal(status, detail, "overloaded" if status == 503 else "invalid_request")
