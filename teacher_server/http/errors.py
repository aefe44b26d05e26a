"""Turns errors into JSON in the shape that clients of vLLM and SGLang read, in this one place.

{"error": {"message": ..., "type": reason word, "param": field or null, "code": status}}
"""

import math
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.responses import Response

from lectern_common.errors import InvalidRequest, LecternError, Overloaded

_RETRY_SECONDS = 1.0


def refusal(error: LecternError) -> Response:
    """Returns the answer to a request that ended with an error.

    What may succeed later is 503 with Retry-After, in whole seconds: clients retry nothing else.
    """
    headers = {}
    status = error.http_status
    if error.retryable:
        status = 503
        seconds = error.retry_after_seconds if isinstance(error, Overloaded) else _RETRY_SECONDS
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    field = error.field if isinstance(error, InvalidRequest) else None
    return plain_refusal(status, str(error), error.reason, field, headers)


def plain_refusal(
    status: int,
    message: str,
    reason: str = "invalid_request",
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Returns a refusal that no error of the tree stands for, such as an unknown path."""
    error = {"message": message, "type": reason, "param": field, "code": status}
    return JSONResponse({"error": error}, status, headers=dict(headers or {}))
