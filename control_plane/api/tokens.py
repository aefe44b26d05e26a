"""The tokens that clients of a control plane must show: made at the first start, unless given.

Every user of a machine reaches its loopback, so an address there is no proof of who calls.
"""

from dataclasses import dataclass
from pathlib import Path

from lectern_common.callers import (
    CONTROL_PLANE_READ_TOKEN,
    CONTROL_PLANE_TOKEN,
    make_token_file,
    read_token_file,
)
from lectern_common.errors import Misconfigured


@dataclass(frozen=True)
class Tokens:
    """What callers must show. Never printed: a dataclass with its values would be, in a traceback.

    Attributes:
        full: allows everything; None means that nothing need be shown.
        read: allows GET and HEAD only; None means that there is none.
        file: where `full` stands, for messages.
    """

    full: str | None = None
    read: str | None = None
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Tokens(file={self.file})"


def require_one_meaning(
    token_file: Path | None, read_only_token_file: Path | None, *, no_token: bool
) -> None:
    """Raises Misconfigured if `--no-token` stands beside an option that names a token."""
    for option, path in (
        ("--token-file", token_file),
        ("--read-only-token-file", read_only_token_file),
    ):
        if no_token and path is not None:
            raise Misconfigured(f"{option} has no effect with --no-token; remove one of the two")


def tokens_of(
    secrets: Path, token_file: Path | None = None, read_only_token_file: Path | None = None
) -> Tokens:
    """Returns the tokens in the given files, else those under the secrets root, made if missing.

    If a token file is given, the read-only token is never made; it is used if it is there.

    Raises:
        Misconfigured: a file cannot be read or written, or both hold the same token.
    """
    full_path = token_file or secrets / CONTROL_PLANE_TOKEN
    read_path = read_only_token_file or secrets / CONTROL_PLANE_READ_TOKEN
    if token_file is None:
        for path, given in ((full_path, token_file), (read_path, read_only_token_file)):
            if given is None:
                _make(path)
    full = _read(full_path, "--token-file", token_file)
    has_read = read_only_token_file is not None or read_path.exists()
    read = _read(read_path, "--read-only-token-file", read_only_token_file) if has_read else None
    if full == read:
        raise Misconfigured(
            f"{full_path} and {read_path} hold the same token, so the second would not be "
            "read-only; make another with: lectern token create NAME"
        )
    return Tokens(full, read, full_path)


def _make(path: Path) -> None:
    try:
        if not path.exists():
            make_token_file(path)
    except OSError as error:
        raise Misconfigured(
            f"cannot make the token {path}: {error.strerror}; make its folder writable for this "
            "user, choose another with --home, or set --token-file or --no-token"
        ) from None


def _read(path: Path, option: str, given: Path | None) -> str:
    return read_token_file(path, option if given is not None else "the token file")
