"""Who may call the server, and warnings about unencrypted traffic.

A bearer token is compared in constant time and never logged. TLS by itself keeps eavesdroppers out
but lets every caller in; with --tls-client-ca, only holders of a certificate may call (mutual TLS).
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from lectern_common.callers import REMEDY, is_loopback, require_known_callers
from lectern_common.errors import Unauthenticated
from lectern_common.teacher.channel import REASON_KEY
from teacher_server.rpc.tls import ServerTls

# Health probes carry no token, and learn only whether the server is up.
_OPEN_TO_ALL = "/grpc.health.v1.Health/"

_DENIED = (
    "this teacher requires a bearer token: set teacher.token_file to a file with the token that "
    "the server was started with"
)


def require_callers_known(
    bind: str, token: str | None, tls: ServerTls | None, option: str = "--bind"
) -> None:
    """Raises Misconfigured unless callers need a token or a certificate, or are on this machine."""
    unchecked = "" if tls is None else " (TLS without --tls-client-ca does not check who calls)"
    require_known_callers(
        bind,
        known=token is not None or (tls is not None and tls.client_ca is not None),
        remedy=f"{REMEDY}, set --tls-client-ca",
        option=option,
        may=f"call{unchecked}",
    )


def callers_text(token: str | None, tls: ServerTls | None) -> str:
    """Returns who may call, for people."""
    known = []
    if token is not None:
        known.append("the bearer token")
    if tls is not None and tls.client_ca is not None:
        known.append("a certificate of --tls-client-ca")
    return f"those with {' and '.join(known)}" if known else "anyone who can reach it"


def plaintext_warning(host: str, token: str | None, tls: ServerTls | None) -> str | None:
    """Returns a loud warning if a token travels over networks unencrypted, else None."""
    if token is None or tls is not None or is_loopback(host):
        return None
    return (
        "WARNING: TOKEN AND DATA TRAVEL UNENCRYPTED TO OTHER MACHINES; set --tls-cert and "
        "--tls-key, unless the network is private"
    )


class BearerTokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers UNAUTHENTICATED to every call without the token, except health checks."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Returns the call's own handler, or one of the same kind that refuses the call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_TO_ALL):
            return handler
        given = [
            value
            for key, value in handler_call_details.invocation_metadata
            if key == "authorization"
        ]
        offered = given[0].encode("utf-8", "replace") if len(given) == 1 else b""
        if hmac.compare_digest(offered, self._expected):
            return handler
        return _refusing(handler)


async def _deny(_request: object, context: Any) -> None:
    trailing = ((REASON_KEY, Unauthenticated.reason),)
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _DENIED, trailing)


def _refusing(handler: Any) -> Any:
    """Returns a handler of the same kind (unary or streaming) that only refuses."""
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return makers[handler.request_streaming, handler.response_streaming](_deny)
