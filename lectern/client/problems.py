"""What a control plane refused, as errors; and answers that are none of a control plane."""

from typing import Any

import httpx

from lectern.reconnect import ControlPlaneUnavailable
from lectern_common.errors import InvalidRequest, InvalidSpec, LecternError, error_of


def problem(response: httpx.Response) -> LecternError:
    """Returns the error that a problem+json response describes."""
    data = mapping_of(response)
    if data is None or "reason" not in data:
        return ControlPlaneUnavailable(
            f"{response.request.url} answered {response.status_code} {response.reason_phrase}; "
            "is this the address of a Lectern control plane?"
        )
    detail = str(data.get("detail") or data.get("title") or response.reason_phrase)
    fields = [
        (str(entry.get("field") or ""), str(entry.get("message") or ""))
        for entry in data.get("errors") or []
        if isinstance(entry, dict)
    ]
    error = error_of(str(data["reason"]), detail)
    error.retryable = error.retryable or data.get("retryable") is True
    return InvalidSpec(fields) if fields and isinstance(error, InvalidRequest) else error


def mapping_of(response: httpx.Response) -> dict[str, Any] | None:
    """Returns the JSON object of a response; None if it is anything else."""
    try:
        data = response.json()
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def unknown_form(what: str, error: Exception) -> ControlPlaneUnavailable:
    """Returns the error for an answer that is not what was asked for, such as "a run"."""
    return ControlPlaneUnavailable(
        f"the answer does not describe {what} ({error!r}); are both sides up to date?"
    )
