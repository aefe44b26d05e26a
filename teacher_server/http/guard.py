"""Access checks before every route: the token, pages of browsers, and the size of a body.

The token comes as `Authorization: Bearer TOKEN`, or as the password of `Basic`, since some clients
carry no header of their own but take a URL such as http://RUN:TOKEN@host. Only health is open to
all. Browsers name the page that sends a request, and no page is a client: where no token is needed,
any site that a person visits could otherwise ask the teacher of that person's machine.
"""

import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lectern_common.errors import Unauthenticated
from lectern_common.logs import get_logger
from teacher_server.http.body import MAX_BODY_BYTES, too_large
from teacher_server.http.errors import plain_refusal, refusal
from teacher_server.rpc.gate import Gate

log = get_logger()

RUN_HEADER = "lectern-run-id"
# The key of an ASGI scope under which the name of a Basic authentication stands.
CALLER = "lectern.caller"

_OPEN_TO_ALL = "/health"
_CHALLENGE = 'Bearer, Basic realm="lectern teacher"'


class Guard:
    """ASGI middleware around the whole application, which counts every request as in flight.

    Args:
        app: the guarded application.
        gate: of the server.
        token: that every request must carry; None means that none is needed.
    """

    def __init__(self, app: ASGIApp, gate: Gate, token: str | None) -> None:
        self._app = app
        self._gate = gate
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        with self._gate.in_flight():
            headers = Headers(scope=scope)
            given, scope[CALLER] = credentials(headers.getlist("authorization"))
            refused = self._refusal(scope["path"], headers, given)
            if refused is not None:
                await refused(scope, receive, send)
                return
            try:
                await self._app(scope, receive, send)
            except Exception:  # a bug outside of calls; the application has answered 500
                log.exception("failed", path=scope["path"])

    def _refusal(self, path: str, headers: Headers, given: bytes) -> Response | None:
        if path == _OPEN_TO_ALL:
            return None
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            return plain_refusal(403, "requests of web pages are refused", "foreign_origin")
        if self._token is not None and not hmac.compare_digest(given, self._token):
            response = refusal(
                Unauthenticated(
                    "this teacher requires its token: send Authorization: Bearer TOKEN, or Basic "
                    "with the token as password (http://RUN:TOKEN@host:port)"
                )
            )
            response.headers["WWW-Authenticate"] = _CHALLENGE
            return response
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:18]) > MAX_BODY_BYTES:
            response = refusal(too_large())
            response.headers["Connection"] = "close"
            return response
        return None


def credentials(given: list[str]) -> tuple[bytes, str]:
    """Returns token and user name of the Authorization headers; both empty if there is no one."""
    if len(given) != 1:
        return b"", ""
    kind, _, text = given[0].partition(" ")
    if kind.lower() == "bearer":
        return text.strip().encode("utf-8", "replace"), ""
    if kind.lower() != "basic":
        return b"", ""
    try:
        name, _, password = base64.b64decode(text.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return b"", ""
    return password, name.decode("utf-8", "replace")
