"""Access checks before every route: host, origin, token and body size.

In order: the Host header is one of ours (DNS rebinding), a write comes from our own page or from no
page (CSRF), the bearer token is right if one is set, the body is no larger than the cap. Every path
not in `PUBLIC` needs the token. Every answer gets the security headers.
"""

import hmac
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.api.problems import problem
from lectern_common.spec.load import MAX_SPEC_BYTES

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
MAX_BODY_BYTES = MAX_SPEC_BYTES
# The page itself holds no data and prompts for the token. Health shows only that a process runs.
PUBLIC = frozenset({"/", "/healthz", "/readyz"})
PUBLIC_FOLDER = "/web/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS: Mapping[str, str] = {
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


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the guarded application.
        hosts: accepted names of the Host header, lower case, without port; IPv6 in brackets.
        token: the required bearer token; None means that none is required.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], token: str | None) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_security_headers(scope["path"], send)
        refused = self._refusal(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, _capped(receive), send)

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
        if not self._may_pass(scope["path"], headers):
            return problem(
                401,
                "this control plane requires its bearer token",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:18]) > MAX_BODY_BYTES:
            return problem(413, _TOO_LARGE, headers={"Connection": "close"})
        return None

    def _may_pass(self, path: str, headers: Headers) -> bool:
        if self._token is None or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._token)
        return kind.lower() == "bearer" and is_right


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
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def _capped(receive: Receive) -> Receive:
    received = 0

    async def receive_within_cap() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return receive_within_cap


def _with_security_headers(path: str, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault(
                "Cache-Control", "no-cache" if path.startswith("/web") else "no-store"
            )
        await send(message)

    return send_with_headers
