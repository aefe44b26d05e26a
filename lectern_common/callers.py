"""Who may call a server: whoever reaches this machine's own addresses, else who has the token."""

import ipaddress
from pathlib import Path

from lectern_common.errors import Misconfigured
from lectern_common.words import host_and_port

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_FILE_BYTES = 4096
REMEDY = "set --token-file to a file with a token"


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches the host, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: whatever it resolves to
        return False


def require_known_callers(
    bind: str, *, known: bool, remedy: str = REMEDY, option: str = "--bind", may: str = "call"
) -> None:
    """Raises Misconfigured unless callers are known, or on this machine.

    Args:
        bind: host:port, as `option` names it.
        known: callers have to show a token or a certificate.
        remedy: what to set so that they have to.
        may: what anyone could do otherwise.
    """
    if not known and not is_loopback(host_and_port(bind, option)[0]):
        raise Misconfigured(
            f"{option} {bind} can be reached from other machines, and anyone may {may}: {remedy}, "
            "or bind 127.0.0.1"
        )


def read_token_file(path: Path, option: str = "--token-file") -> str:
    """Returns the token that a server asks its callers for, white space around it removed.

    Args:
        option: what named the file.

    Raises:
        Misconfigured: it cannot be read, or holds no usable token. The token is in no message.
    """
    try:
        token = token_in(path)
    except ValueError as error:
        raise Misconfigured(f"cannot read {option} {path}: {error}") from None
    printable = token.isprintable() and " " not in token
    if len(token) < MIN_TOKEN_CHARACTERS or not printable:
        raise Misconfigured(
            f"{option} {path} must hold one token of {MIN_TOKEN_CHARACTERS} characters or more, "
            f"without spaces; make one with: openssl rand -hex 32 > {path}"
        )
    return token


def token_in(path: Path) -> str:
    """Returns what a token file holds, white space around it removed; "" where that is too much.

    Raises ValueError, saying why, where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOKEN_FILE_BYTES + 1)
        return content.decode("ascii").strip() if len(content) <= MAX_TOKEN_FILE_BYTES else ""
    except OSError as error:
        raise ValueError(error.strerror) from None
    except UnicodeDecodeError:
        raise ValueError("it is not ASCII") from None
