"""Access checks before every route: host, origin, token and body size.

In order: the Host header is one of ours (DNS rebinding), a write comes from our own page or from no
page (CSRF), the bearer token is right if one is set, the body is no larger than the cap and comes
in time. Every path not in `PUBLIC` needs the token. Who asks for a change is noted for the history
(runs/callers.py). Every answer gets the security headers, also
that to a request which fails by a bug: nothing stands outside this middleware.
"""

import asyncio
import hmac
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.problems import of_error, problem
from control_plane.runs.callers import calling, described
from lectern_common.errors import ReadOnlyToken
from lectern_common.logs import get_logger
from lectern_common.spec.load import MAX_SPEC_BYTES

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_BODY_BYTES = MAX_SPEC_BYTES
BODY_SECONDS = 30.0  # the longest silence in the middle of a body
WHOLE_BODY_SECONDS = 120.0  # from the head to the end of a body, which may trickle
# The page itself holds no data and prompts for the token. Health shows only that a process runs.
PUBLIC = frozenset({"/", "/healthz", "/readyz"})
PUBLIC_FOLDER = "/web/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_READ_METHODS = frozenset({"GET", "HEAD"})
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_log = get_logger()


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the guarded application.
        hosts: accepted names of the Host header, lower case, without port; IPv6 in brackets.
        token: the required bearer token; None means that none is required.
        read_token: another one, which allows only reading; None means that there is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        token: str | None,
        read_token: str | None = None,
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._full = None if token is None else token.encode()
        self._read = None if read_token is None else read_token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = _Answer(scope["path"], send)
        try:
            refused = self._refusal(scope)
            if refused is not None:
                await refused(scope, receive, answer.send)
            else:
                with calling(self._caller(scope)):
                    await self._app(scope, _bounded(receive), answer.send)
        except ClientDisconnect:
            return
        except Exception as error:
            # Outside the routes' own handlers, or a bug.
            _log.error("request failed", path=scope["path"], exc_info=error)
            if answer.begun:
                raise  # the server cuts the connection, so that nobody takes it for whole
            failed = problem(500, "internal error in the control plane; see its log")
            await failed(scope, receive, answer.send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _host_name(host) not in self._hosts:
            return problem(
                400,
                "this Host header is not one of the control plane's names; start it with "
                "--allowed-host NAME to add one",
                "unknown_host",
            )
        if scope["method"] not in _SAFE_METHODS and not _is_same_origin(headers, host):
            return problem(403, "writes from another site's page are refused", "foreign_origin")
        refused = self._token_refusal(scope["path"], scope["method"], headers)
        if refused is not None:
            return refused
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:18]) > MAX_BODY_BYTES:
            return problem(413, _TOO_LARGE, headers={"Connection": "close"})
        return None

    def _caller(self, scope: Scope) -> str | None:
        """Returns who asks for a change; None for a request that changes nothing."""
        if scope["method"] in _SAFE_METHODS:
            return None
        headers = Headers(scope=scope)
        # Browsers add one of these to every write of a page; another site's page was refused.
        from_page = headers.get("sec-fetch-site") == "same-origin" or "origin" in headers
        address = scope["client"][0] if scope.get("client") else None
        token = None if self._full is None else "full"  # the other one only reads
        client = headers.get("user-agent", "")
        return described(client, address, from_page=from_page, token=token)

    def _token_refusal(self, path: str, method: str, headers: Headers) -> Response | None:
        if self._full is None or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            return None
        kind, _, text = headers.get("authorization", "").partition(" ")
        given = text.strip().encode() if kind.lower() == "bearer" else b""
        if hmac.compare_digest(given, self._full):
            return None
        if self._read is None or not hmac.compare_digest(given, self._read):
            return problem(
                401,
                "the bearer token is wrong"
                if given
                else "this control plane requires its bearer token",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if method in _READ_METHODS:
            return None
        return of_error(ReadOnlyToken("this token may only read (GET); use the full one"))


_TOO_LARGE = f"a body may have at most {MAX_BODY_BYTES} bytes"


def _host_name(host: str) -> str:
    """Returns the name of a Host header: without port, lower case."""
    name, separator, port = host.rpartition(":")
    if separator and (port.isdigit() or not port) and not name.endswith(":"):
        return name.lower()
    return host.lower()


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Returns True if our own page sent the request, or no page at all."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # http://[ and the like
        return False


def _bounded(receive: Receive) -> Receive:
    """Returns a `receive` that refuses a body that is too large, or does not come."""
    received, whole = 0, False
    begun = asyncio.get_running_loop().time()

    async def receive_within_bounds() -> Message:
        nonlocal received, whole
        if whole:  # what comes now is the client's end, however late
            return await receive()
        left = begun + WHOLE_BODY_SECONDS - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(BODY_SECONDS, left)):
                message = await receive()
        except TimeoutError:
            seconds = WHOLE_BODY_SECONDS if left < BODY_SECONDS else BODY_SECONDS
            raise HTTPException(
                408,
                f"the rest of the body did not come within {seconds:g} s",
                headers={"Connection": "close"},
            ) from None
        whole = not message.get("more_body", False)
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE, headers={"Connection": "close"})
        return message

    return receive_within_bounds


class _Answer:
    """Sends an answer with the security headers; knows whether it has begun."""

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
            fresh = "no-cache" if self._path.startswith("/web") else "no-store"
            headers.setdefault("Cache-Control", fresh)
        await self._send(message)
