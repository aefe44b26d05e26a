"""Who may call a server: whoever reaches this machine's own addresses, else who has the token."""

import ipaddress
from pathlib import Path

from lectern_common.errors import Misconfigured

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_FILE_BYTES = 4096


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches the host, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: whatever it resolves to
        return False


def read_token_file(path: Path, option: str = "--token-file") -> str:
    """Returns the token that a server asks its callers for, white space around it removed.

    Args:
        option: what named the file.

    Raises:
        Misconfigured: it cannot be read, or holds no usable token. The token is in no message.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKEN_FILE_BYTES + 1)
        token = text.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise Misconfigured(f"cannot read {option} {path}: {why}") from None
    printable = token.isprintable() and " " not in token
    if len(text) > MAX_TOKEN_FILE_BYTES or len(token) < MIN_TOKEN_CHARACTERS or not printable:
        raise Misconfigured(
            f"{option} {path} must hold one token of {MIN_TOKEN_CHARACTERS} characters or more, "
            f"without spaces; make one with: openssl rand -hex 32 > {path}"
        )
    return token
