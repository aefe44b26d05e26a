"""The webhook that a control plane posts alerts to: the file that names it.

The file lies under the secrets root. Its first line is the URL, its second one, if there is one,
the secret that signs:

    https://hooks.example.com/services/T0/B0/xyz
    4f0c9a...

The URL may hold a token, so only its scheme and host are ever shown.
"""

import itertools
import re
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit

from lectern_common.callers import MIN_TOKEN_CHARACTERS, token_in
from lectern_common.errors import InvalidRequest, Misconfigured
from lectern_common.roots import resolve_under
from lectern_common.words import inert_name

OPTION = "--alert-webhook-file"
_FORM = "put its URL (https://...) on the first line and, to sign alerts, a secret on the second"
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_PIECE = 8  # characters


@dataclass(frozen=True)
class Receiver:
    """Where alerts go. Never printed: a dataclass with its values would be, in a traceback.

    Attributes:
        url: may hold a token.
        secret: signs each request; None signs none.
    """

    url: str
    secret: str | None = None

    def __repr__(self) -> str:
        return f"Receiver({self.shown})"

    @property
    def host(self) -> str:
        """The host, an IPv6 address without its brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def shown(self) -> str:
        """What may be shown of the URL: scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def inert(self, text: str) -> str:
        """Returns what the receiver said on one line, without pieces of the URL or the secret.

        A piece is _PIECE characters in a row, so that what the receiver has cut is found, too.
        """
        parts = urlsplit(self.url)
        raw, user = f"{parts.path}?{parts.query}", parts.netloc.rpartition("@")[0]
        known = {raw, unquote(raw), unquote_plus(raw), user, unquote(user), self.secret or ""}
        short = {*unquote(user).split(":", 1), *(value for _, value in parse_qsl(parts.query))}
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


def read_receiver(secrets: Path, name: str) -> Receiver:
    """Returns the receiver that the file `name` under the secrets root describes.

    Raises:
        Misconfigured: the file cannot be read, or has another form. No message has its content.
    """
    where = f"{OPTION} {inert_name(name)}"
    try:
        path = resolve_under(secrets, name, OPTION)
        lines = [line.strip() for line in token_in(path).splitlines()]
    except InvalidRequest as error:
        raise Misconfigured(f"{where}: {error}") from None
    except ValueError as error:
        raise Misconfigured(f"{where} under the secrets root: {error}; {_FORM}") from None
    if not lines or len(lines) > 2:
        what = f"has {len(lines)} lines" if lines else "is empty or too large"
        raise Misconfigured(f"{where} {what}: {_FORM}")
    url = _url_of(lines[0])
    if url is None:
        raise Misconfigured(f"{where}: its first line is not an http or https URL; {_FORM}")
    secret = lines[1] if len(lines) > 1 else None
    if secret is not None and (len(secret) < MIN_TOKEN_CHARACTERS or not secret.isprintable()):
        raise Misconfigured(
            f"{where}: the signing secret on its second line has fewer than "
            f"{MIN_TOKEN_CHARACTERS} characters; make one with: openssl rand -hex 32"
        )
    return Receiver(url, secret)


def _url_of(line: str) -> str | None:
    """Returns the URL without its fragment; None if it is not one."""
    try:
        parts = urlsplit(line)
        port = parts.port
    except ValueError:
        return None
    known = parts.scheme in ("http", "https") and _HOST.fullmatch(parts.hostname or "")
    if not known or port == 0 or not line.isprintable() or " " in line:
        return None
    return parts._replace(fragment="").geturl()
