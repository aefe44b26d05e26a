"""GET /metrics over HTTP on a port of its own, on the server's event loop.

Callers need the same bearer token and TLS as for the teacher itself. A connection gets one answer
and a few seconds, and the number of connections is bounded, so slow clients hold up nothing.
"""

import asyncio
import hmac
import http.client
import io
import ssl
from collections.abc import Callable
from http import HTTPStatus

from lectern_common.errors import Misconfigured
from lectern_common.listening import bound_sockets
from lectern_common.logs import get_logger
from lectern_common.words import address_of
from protos import teacher_pb2
from teacher_server.observing.metrics import CONTENT_TYPE, exposition

log = get_logger()

PATH = "/metrics"
MAX_CONNECTIONS = 32
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_MAX_REQUEST_BYTES = 8192


class MetricsServer:
    """Answers scrapes from `start` to `stop`, inside one event loop.

    Args:
        host: where to listen.
        port: 0 picks a free one.
        stats: the counters now, None while the teacher takes no calls; called on the event loop.
        token: bearer token that a scrape must carry; None means that none is needed.
        tls: the server's TLS context; None means plaintext.
        request_seconds: time limit for receiving the request.
    """

    def __init__(
        self,
        host: str,
        port: int,
        stats: Callable[[], teacher_pb2.Stats | None],
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        request_seconds: float = _REQUEST_SECONDS,
    ) -> None:
        self._host = host
        self._port = port
        self._stats = stats
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._tls = tls
        self._request_seconds = request_seconds
        self._connections: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    @property
    def url(self) -> str:
        """The URL to scrape, valid once started."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{address_of(self._host, self._port)}{PATH}"

    async def start(self) -> None:
        """Binds the port and starts to answer.

        Raises:
            Misconfigured: the port is taken, or the address is not this machine's.
        """
        try:
            sockets = bound_sockets(self._host, self._port)
        except OSError as error:
            raise Misconfigured(
                f"cannot serve metrics on {error.filename or address_of(self._host, self._port)}: "
                "the port is taken or the address is not this machine's; set another --metrics-bind"
            ) from None
        self._port = sockets[0].getsockname()[1]
        for bound in sockets:
            server = await asyncio.start_server(
                self._connected,
                sock=bound,
                limit=_MAX_REQUEST_BYTES,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._request_seconds,
            )
            self._servers.append(server)

    async def stop(self) -> None:
        """Closes the port and every connection."""
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        connection = asyncio.create_task(self._converse(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads one request, answers it, closes; a slow client delays nothing else."""
        try:
            async with asyncio.timeout(self._request_seconds):
                request = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(_ANSWER_SECONDS):
                writer.write(await self._answer(request))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("scrape cut off")
        finally:
            writer.transport.abort()  # does nothing if it is closed

    async def _answer(self, request: bytes) -> bytes:
        """Returns the whole response."""
        line, _, rest = request.partition(b"\r\n")
        words = line.decode("latin-1").split(" ")
        try:
            headers = http.client.parse_headers(io.BytesIO(rest))
        except http.client.HTTPException:
            return _response(HTTPStatus.BAD_REQUEST)
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        method, path, _ = words
        if path.partition("?")[0] != PATH:
            return _response(HTTPStatus.NOT_FOUND)
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        if not self._is_known(headers.get_all("authorization", [])):
            return _response(HTTPStatus.UNAUTHORIZED, "WWW-Authenticate: Bearer")
        # Counters are read on the loop; formatting those of a thousand runs takes a while.
        body = await asyncio.to_thread(exposition, self._stats())
        return _response(
            HTTPStatus.OK, f"Content-Type: {CONTENT_TYPE}", body=body, with_body=method == "GET"
        )

    def _is_known(self, given: list[str]) -> bool:
        if self._expected is None:
            return True
        offered = given[0].encode("utf-8", "replace") if len(given) == 1 else b""
        return hmac.compare_digest(offered, self._expected)


def _response(
    status: HTTPStatus, *headers: str, body: bytes | None = None, with_body: bool = True
) -> bytes:
    if body is None:
        body = f"{status.phrase}\n".encode()
        headers = (*headers, "Content-Type: text/plain; charset=utf-8")
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *headers,
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    head = "".join(f"{line}\r\n" for line in [*lines, ""])
    return head.encode("ascii") + (body if with_body else b"")
