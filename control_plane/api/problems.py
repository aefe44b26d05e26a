"""Turns every error into problem+json (RFC 9457), in this one place."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from control_plane.runs.keeping.room import is_full
from control_plane.views.problems import Problem
from lectern_common.errors import CorruptData, InvalidRequest, InvalidSpec, LecternError, Overloaded
from lectern_common.logs import get_logger
from lectern_common.spec.refusals import problems_of
from lectern_common.words import inert_name

MEDIA_TYPE = "application/problem+json"
BUSY_RETRY_SECONDS = 2
PROBLEM = {"model": Problem, "content": {MEDIA_TYPE: {}}}
# Errors of every route; of routes about one run; of routes that change one.
OF_EVERY_ROUTE: dict[int | str, dict[str, Any]] = {
    400: {**PROBLEM, "description": "The request is malformed, or its Host is unknown"},
    401: {**PROBLEM, "description": "The bearer token is missing or wrong"},
    405: {**PROBLEM, "description": "The path has other methods; `Allow` names them"},
    408: {**PROBLEM, "description": "The rest of the request's body did not come in time"},
    413: {**PROBLEM, "description": "The request's body is too large"},
    422: {
        **PROBLEM,
        "description": "A field or a query parameter is invalid or unknown; `errors` names each",
    },
    500: {**PROBLEM, "description": "A fault of the control plane; its log says more"},
    503: {**PROBLEM, "description": "Try again later"},
}
WRITE: dict[int | str, dict[str, Any]] = {
    403: {**PROBLEM, "description": "Another site's page sent it, or the token may only read"}
}
WITH_BODY: dict[int | str, dict[str, Any]] = {
    415: {**PROBLEM, "description": "The body is not application/json"}
}
TEACHER_AWAY: dict[int | str, dict[str, Any]] = {
    502: {**PROBLEM, "description": "The teacher is not reachable, or its answer is unusable"}
}
NO_SPACE: dict[int | str, dict[str, Any]] = {
    507: {**PROBLEM, "description": "The disk of the run folders is full; nothing was made"}
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {**PROBLEM, "description": "No such run"}}
CONFLICT: dict[int | str, dict[str, Any]] = {
    **NOT_FOUND,
    409: {**PROBLEM, "description": "The run's state does not allow it; `detail` says why"},
}
# What a request that makes a run is answered, beside the errors.
ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"schema": {"type": "string"}}}}
}
_REASONS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}

_log = get_logger()


def problem(
    status: int,
    detail: str,
    reason: str | None = None,
    *,
    retryable: bool = False,
    errors: Sequence[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Returns an error response. `errors` are (dotted field, message) pairs."""
    word = reason or _REASONS.get(status, "internal")
    body = {
        "type": f"urn:lectern:problem:{word}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": word,
        "retryable": retryable,
        "errors": [{"field": field, "message": message} for field, message in errors],
    }
    # ASCII with escapes: a message may quote text that is not valid UTF-8.
    return Response(json.dumps(body), status, headers, media_type=MEDIA_TYPE)


def of_error(error: LecternError) -> Response:
    """Returns the response for an error of errors.py."""
    errors: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    if isinstance(error, InvalidSpec):
        errors = error.problems
    elif isinstance(error, (InvalidRequest, CorruptData)) and error.field:
        errors = [(error.field, str(error))]
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return problem(
        error.http_status,
        str(error),
        error.reason,
        retryable=error.retryable,
        errors=errors,
        headers=headers,
    )


def handle_problems(app: FastAPI) -> None:
    """Turns every error that leaves a route into a problem+json response."""

    @app.exception_handler(LecternError)
    async def _lectern(request: Request, error: LecternError) -> Response:
        if error.http_status >= 500:
            _log.warning("request failed", path=request.url.path, error=str(error))
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        pairs = problems_of(error.errors(), skip=1)
        detail = "; ".join(f"{field}: {message}" for field, message in pairs)
        return problem(422, detail, "invalid_request", errors=pairs)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if detail == HTTPStatus.NOT_FOUND.phrase:  # no route, so there is no better message
            detail = f"there is nothing at {request.url.path}"
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(methods_of(app, request.scope))
            detail = f"{request.method} does not exist here; there is {headers['Allow']}"
        return problem(error.status_code, detail, headers=headers)

    @app.exception_handler(sa.exc.DBAPIError)
    async def _database(request: Request, error: sa.exc.DBAPIError) -> Response:
        # Locked, full, read-only: training continues, and so does this process once it passes.
        _log.warning("database not usable", path=request.url.path, error=str(error.orig))
        advice = "runs continue, try again"
        if is_full(error):
            advice = "make room on its disk, such as with `lectern runs prune`, then try again"
        return problem(
            503,
            f"the database cannot be used now ({error.orig}); {advice}",
            "database_unavailable",
            retryable=True,
            headers={"Retry-After": str(BUSY_RETRY_SECONDS)},
        )

    @app.exception_handler(OSError)
    async def _files(request: Request, error: OSError) -> Response:
        # Of the disk or of permissions: a folder of a run that is closed, a disk that fails.
        _log.warning("file not usable", path=request.url.path, error=str(error))
        return problem(
            503,
            f"a file cannot be used now ({inert_name(error)}); mend it and try again",
            "file_unavailable",
            retryable=True,
            headers={"Retry-After": str(BUSY_RETRY_SECONDS)},
        )

    @app.exception_handler(sa.exc.TimeoutError)
    async def _no_connection(request: Request, error: sa.exc.TimeoutError) -> Response:
        return of_error(Overloaded("too many requests wait for the database; try again", 1))


def methods_of(app: FastAPI, scope: Scope) -> list[str]:
    """Returns the methods of all routes at a path; the router itself names those of the first."""
    found: set[str] = set()
    for route in app.state.routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            found |= set(route.methods or ())
    return sorted(found) or ["GET", "HEAD"]  # files, which no route has
