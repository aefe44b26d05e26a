"""The receiver of alerts: its file, the signed request that it gets, and what it answers.

The file lies under the secrets root. Its first line is the URL, its second one, if there is one,
the secret that signs:

    https://hooks.example.com/services/T0/B0/xyz
    whsec-4f0c...

The URL may hold a token, so only its scheme and host are ever shown; what the receiver answers is
shown without any part of the URL or the secret.
"""

import asyncio
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

import httpx

from lectern_common.callers import MIN_TOKEN_CHARACTERS, is_loopback, token_in
from lectern_common.errors import InvalidRequest, Misconfigured
from lectern_common.roots import resolve_under
from lectern_common.words import inert_name

OPTION = "--alert-webhook-file"
TIMEOUT_SECONDS = 10.0
SIGNATURE, DELIVERY = "Lectern-Signature", "Lectern-Delivery"
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
_READ_BYTES = 4096  # of an answer
_SAID_CHARACTERS = 200
_PIECE = 8  # characters
_FORM = "put its URL (https://...) on the first line and, to sign alerts, a secret on the second"


@dataclass(frozen=True)
class Receiver:
    """Where alerts go. Never printed: a dataclass with its values would be, in a traceback.

    Attributes:
        url: may hold a token.
        secret: signs each request; None signs none.
    """

    url: httpx.URL
    secret: str | None = None

    def __repr__(self) -> str:
        return f"Receiver({self.shown})"

    @property
    def shown(self) -> str:
        """What may be shown of the URL: scheme, host and port."""
        port = "" if self.url.port is None else f":{self.url.port}"
        host = f"[{self.url.host}]" if ":" in self.url.host else self.url.host
        return f"{self.url.scheme}://{host}{port}"

    def inert(self, text: str) -> str:
        """Returns what the receiver said on one line, without pieces of the URL or the secret.

        A piece is _PIECE characters in a row, so that what the receiver has cut is found, too.
        """
        url = self.url
        raw = url.raw_path.decode("ascii")
        known = {raw, unquote(raw), unquote_plus(raw), url.userinfo.decode(), self.secret or ""}
        short = {url.username, url.password, *url.params.values()}
        pieces = {
            one.lower()[start : start + _PIECE]
            for one in known | short
            for start in range(len(one) - _PIECE + 1)
        }
        pieces |= {one.lower() for one in short if 4 <= len(one) < _PIECE}
        hidden = [False] * len(text)
        lower = text.encode("ascii", "replace").decode().lower()
        for piece in pieces:
            start = lower.find(piece)
            while start >= 0:
                hidden[start : start + len(piece)] = [True] * len(piece)
                start = lower.find(piece, start + 1)
        runs = itertools.groupby(zip(text, hidden, strict=True), key=itemgetter(1))
        shown = ("[hidden]" if is_hidden else "".join(c for c, _ in run) for is_hidden, run in runs)
        return inert_name(" ".join("".join(shown).split()))


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


def read_receiver(secrets: Path, name: str) -> Receiver:
    """Returns the receiver that the file `name` under the secrets root describes.

    Raises:
        Misconfigured: the file cannot be read, or has another form. No message has its content.
    """
    try:
        path = resolve_under(secrets, name, OPTION)
        lines = [line.strip() for line in token_in(path).splitlines()]
    except InvalidRequest as error:
        raise Misconfigured(f"{OPTION} {inert_name(name)}: {error}") from None
    except ValueError as error:
        why = f"{OPTION}: cannot read {inert_name(name)} under the secrets root: {error}"
        raise Misconfigured(f"{why}; {_FORM}") from None
    where = f"{OPTION} {inert_name(name)}"
    if not lines or len(lines) > 2:
        what = f"has {len(lines)} lines" if lines else "is empty or too large"
        raise Misconfigured(f"{where} {what}: {_FORM}")
    try:
        url = httpx.URL(lines[0])
    except (httpx.InvalidURL, ValueError):
        raise Misconfigured(f"{where}: its first line is not a URL; {_FORM}") from None
    is_usable = url.host and " " not in lines[0] and (url.port is None or 0 < url.port < 1 << 16)
    if url.scheme not in ("http", "https") or not is_usable:
        raise Misconfigured(f"{where}: its first line is not an http or https URL; {_FORM}")
    secret = lines[1] if len(lines) > 1 else None
    if secret is not None and (len(secret) < MIN_TOKEN_CHARACTERS or not secret.isprintable()):
        raise Misconfigured(
            f"{where}: the signing secret on its second line has fewer than "
            f"{MIN_TOKEN_CHARACTERS} characters; make one with: openssl rand -hex 32"
        )
    return Receiver(url.copy_with(fragment=None), secret)


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
                verify=receiver.url.scheme == "https",  # reading the certificates takes a while
                # A proxy of the environment is for addresses beyond this machine.
                trust_env=not is_loopback(receiver.url.host),
            ) as client,
            client.stream("POST", receiver.url, content=body, headers=headers) as response,
        ):
            status, retry_after = response.status_code, _retry_after(response, clock())
            text = await _beginning(response, begun + timeout_seconds / 2)
            said = receiver.inert(text)[:_SAID_CHARACTERS]
    except (TimeoutError, httpx.TimeoutException):
        return answer(f"{receiver.shown} did not answer within {timeout_seconds:g} s")
    # OSError and ValueError: certificates or a proxy of the environment that cannot be used.
    except (httpx.HTTPError, OSError, ValueError) as error:
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
