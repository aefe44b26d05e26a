"""Who may call a server: callers on this machine, or those with its token."""

import errno
import ipaddress
import os
import secrets
from contextlib import suppress
from pathlib import Path

from lectern_common.errors import Misconfigured
from lectern_common.words import host_and_port

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_FILE_BYTES = 4096
REMEDY = "set --token-file to a file with a token"
# Under the secrets root: the token of the control plane, and the one that only reads.
CONTROL_PLANE_TOKEN = "control-plane"  # noqa: S105 - a file's name
CONTROL_PLANE_READ_TOKEN = "control-plane-read"  # noqa: S105 - a file's name
_TOKEN_BYTES = 32


def is_loopback(host: str) -> bool:
    """Returns whether the host, a name or an address, is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, whatever it resolves to
        return False


def require_known_callers(
    bind: str, *, known: bool, remedy: str = REMEDY, option: str = "--bind", may: str = "call"
) -> None:
    """Raises Misconfigured unless callers must identify themselves, or are on this machine.

    Args:
        bind: host:port, the value of `option`.
        known: callers must show a token or a certificate.
        remedy: what to set so that they must.
        option: the name of the option, for the message.
        may: what anyone could do otherwise.
    """
    if not known and not is_loopback(host_and_port(bind, option)[0]):
        raise Misconfigured(
            f"{option} {bind} can be reached from other machines, so anyone could {may}: {remedy}, "
            "or bind 127.0.0.1"
        )


# What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EMLINK)


def make_token_file(path: Path) -> bool:
    """Writes a new random token that only this user can read; returns False if the file exists.

    The file appears whole: a kill leaves it as it was. Its folder is created, for this user only.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        hidden.unlink()
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(hidden, path)
    except FileExistsError:
        return False
    finally:
        hidden.unlink(missing_ok=True)
    return True


def _put_in_place(hidden: Path, path: Path) -> None:
    """Gives a file its name, and replaces nothing. Raises FileExistsError."""
    try:
        os.link(hidden, path)  # unlike a rename
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # exFAT, some network mounts: the empty file takes the name, and is then replaced by the whole.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        hidden.rename(path)
    except OSError:
        path.unlink()
        raise


def read_token_file(path: Path, option: str = "--token-file") -> str:
    """Returns the token that a server requires of its callers, without surrounding white space.

    Args:
        option: the option that named the file, for the message.

    Raises:
        Misconfigured: it cannot be read, or holds no usable token. No message has the token.
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
    """Returns the content of a token file, stripped of white space; "" if it is too large.

    Raises ValueError, which says why, if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOKEN_FILE_BYTES + 1)
        return content.decode("ascii").strip() if len(content) <= MAX_TOKEN_FILE_BYTES else ""
    except OSError as error:
        raise ValueError(error.strerror) from None
    except UnicodeDecodeError:
        raise ValueError("it is not ASCII") from None
