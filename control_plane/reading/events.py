"""Encodes server-sent events."""

import json
from typing import Any


def event(kind: str, data: dict[str, Any], event_id: str) -> bytes:
    """Returns one server-sent event."""
    return f"id: {event_id}\n".encode() + event_body(kind, data)


def event_body(kind: str, data: dict[str, Any]) -> bytes:
    """Returns a server-sent event without its id."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {text}\n\n".encode()
