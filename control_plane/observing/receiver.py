"""One attempt to deliver an alert: a signed request, and what its receiver answers.

The receiver's URL may hold a token, so what it answers is shown without any part of the URL or the
secret.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx

from lectern_common.callers import is_loopback
from lectern_common.run.webhook import OPTION, Receiver

TIMEOUT_SECONDS = 10.0
SIGNATURE, DELIVERY = "Lectern-Signature", "Lectern-Delivery"
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
_READ_BYTES = 4096  # of an answer
_SAID_CHARACTERS = 200


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        status: of the answer; None if there was none.
        said: the beginning of its body, without parts of the URL.
        error: a sentence; None if the alert was delivered.
        again: whether the same request may succeed later.
        retry_after: seconds that the receiver asks to wait; None if it does not.
        seconds: how long it took.
    """

    status: int | None
    said: str | None
    error: str | None
    again: bool
    retry_after: float | None
    seconds: float

    @property
    def delivered(self) -> bool:
        return self.error is None


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Returns the header that signs a body: HMAC-SHA256 over `TIMESTAMP.BODY`, in hex."""
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"


async def send(
    receiver: Receiver,
    delivery: str,
    data: dict[str, Any],
    timeout_seconds: float = TIMEOUT_SECONDS,
    clock: Callable[[], float] = time.time,
) -> Answer:
    """Posts one JSON body; returns what became of it, within the timeout whatever happens.

    Redirects are not followed, and of the answer only the beginning is read.

    Args:
        delivery: names the alert; the same in each attempt.
    """
    body = json.dumps(data, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "lectern",
        "Accept-Encoding": "identity",
        DELIVERY: delivery,
    }
    if receiver.secret is not None:
        headers[SIGNATURE] = signature(receiver.secret, int(clock()), body)
    begun = time.monotonic()

    def answer(error: str | None, *, status: int | None = None, **more: Any) -> Answer:
        known: dict[str, Any] = {"said": None, "again": True, "retry_after": None, **more}
        return Answer(status, error=error, seconds=time.monotonic() - begun, **known)

    try:
        async with (
            asyncio.timeout(timeout_seconds),
            httpx.AsyncClient(
                timeout=timeout_seconds,
                follow_redirects=False,
                verify=receiver.url.startswith("https:"),  # reading the certificates takes a while
                # A proxy of the environment is for addresses beyond this machine.
                trust_env=not is_loopback(receiver.host),
            ) as client,
            client.stream("POST", receiver.url, content=body, headers=headers) as response,
        ):
            status, retry_after = response.status_code, _retry_after(response, clock())
            text = await _beginning(response, begun + timeout_seconds / 2)
            said = receiver.inert(text)[:_SAID_CHARACTERS]
    except (TimeoutError, httpx.TimeoutException):
        return answer(f"{receiver.shown} did not answer within {timeout_seconds:g} s")
    # OSError and ValueError: certificates or a proxy of the environment that cannot be used.
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        what = receiver.inert(str(error)) or type(error).__name__
        return answer(f"cannot reach {receiver.shown}: {what}")
    problem, again = _judged(receiver, status)
    return answer(problem, status=status, said=said or None, again=again, retry_after=retry_after)


async def _beginning(response: httpx.Response, until: float) -> str:
    """Returns the first characters of an answer, as far as they come in time."""
    data = b""
    with suppress(TimeoutError, httpx.HTTPError):  # only the status counts, and it is known
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            async for piece in response.aiter_raw():
                data += piece
                if len(data) >= _READ_BYTES:
                    break
    return data[:_READ_BYTES].decode("latin-1")


def _judged(receiver: Receiver, status: int) -> tuple[str | None, bool]:
    """Returns what is wrong with a status, and whether the same request may succeed later."""
    if 200 <= status < 300:
        return None, False
    phrase = next((f" {known.phrase}" for known in HTTPStatus if known == status), "")
    what = f"{receiver.shown} answered {status}{phrase}"
    if 300 <= status < 400:
        return f"{what}; redirects are not followed: put the final URL into {OPTION}", True
    if status == HTTPStatus.GONE:
        return f"{what}: it takes no alerts any more; not tried again", False
    if 400 <= status < 500 and status not in (
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
    ):
        return f"{what}: it refuses this alert, so it is not tried again; check the URL", False
    return what, True


def _retry_after(response: httpx.Response, now: float) -> float | None:
    """Returns the seconds of Retry-After, a number or a date; None without a usable one."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)
