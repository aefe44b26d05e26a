"""Who may call: holders of one bearer token, compared in constant time and never logged."""

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from lectern_common.errors import Misconfigured, Unauthenticated
from lectern_common.teacher_channel import REASON_KEY

MIN_TOKEN_CHARACTERS = 16
_MAX_TOKEN_FILE_BYTES = 4096

# Probes carry no token, and learn nothing but that the server is up.
_OPEN_TO_ALL = "/grpc.health.v1.Health/"

_DENIED = (
    "this teacher wants a bearer token: set teacher.token_file to a file that holds the one the "
    "server was started with"
)


def read_token_file(path: Path) -> str:
    """Returns the token in a file, white space around it removed.

    Raises:
        Misconfigured: it cannot be read, or holds no usable token. The token is in no message.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TOKEN_FILE_BYTES + 1)
        token = text.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise Misconfigured(f"cannot read --token-file {path}: {why}") from None
    printable = token.isprintable() and " " not in token
    if len(text) > _MAX_TOKEN_FILE_BYTES or len(token) < MIN_TOKEN_CHARACTERS or not printable:
        raise Misconfigured(
            f"--token-file {path} must hold one token of {MIN_TOKEN_CHARACTERS} characters or more;"
            f" make one with: openssl rand -hex 32 > {path}"
        )
    return token


class BearerTokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers UNAUTHENTICATED to every call without the token, but for health checks."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Returns the call's own handler, or one of its kind that refuses it."""
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
