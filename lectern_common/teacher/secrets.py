"""Reads a run's secrets for its teacher from the secrets root: token, certificates and key."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from lectern_common.callers import token_in
from lectern_common.errors import InvalidSpec
from lectern_common.roots import Roots, resolve_under
from lectern_common.teacher.pem import BadPem, read_authorities, read_key_pair
from lectern_common.teacher.tls import ClientTls


class _NamesSecrets(Protocol):
    """Anything with the fields of SecretFiles, such as TeacherSpec."""

    @property
    def token_file(self) -> str | None: ...
    @property
    def tls_ca_file(self) -> str | None: ...
    @property
    def tls_cert_file(self) -> str | None: ...
    @property
    def tls_key_file(self) -> str | None: ...


@dataclass(frozen=True)
class SecretFiles:
    """File names under the secrets root: the fields of the same names in a spec's `teacher`."""

    token_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None

    @classmethod
    def of(cls, teacher: _NamesSecrets) -> "SecretFiles":
        """Returns the files of a teacher's spec."""
        return cls(
            teacher.token_file, teacher.tls_ca_file, teacher.tls_cert_file, teacher.tls_key_file
        )

    def named(self) -> dict[str, str]:
        """Returns field -> name for the fields that are set."""
        return {field: name for field, name in asdict(self).items() if name is not None}


@dataclass(frozen=True)
class Secrets:
    """The content of the files."""

    token: str | None = None
    tls: ClientTls | None = None

    def __repr__(self) -> str:
        return "Secrets(...)"


def read_secrets(roots: Roots, files: SecretFiles) -> Secrets:
    """Returns the content of the files under the secrets root.

    Raises:
        InvalidSpec: a file cannot be used; names its field. No message has its content.
    """
    return Secrets(read_token(roots, files.token_file), _read_tls(roots, files))


def read_token(roots: Roots, token_file: str | None) -> str | None:
    """Returns the bearer token that `teacher.token_file` names under the secrets root, or None.

    Raises:
        InvalidSpec: the file is missing, empty or too large. No message has the token.
    """
    if token_file is None:
        return None
    path = resolve_under(roots.secrets, token_file, "teacher.token_file")
    try:
        token = token_in(path)
    except ValueError as error:
        raise InvalidSpec(
            [("teacher.token_file", f"cannot read {token_file} under the secrets root: {error}")]
        ) from None
    if not token:
        raise InvalidSpec([("teacher.token_file", f"{token_file} is empty or too large")])
    return token


def require_whole(files: SecretFiles) -> None:
    """Raises ValueError if a TLS file is named without another that it needs."""
    if (files.tls_cert_file is None) != (files.tls_key_file is None):
        raise ValueError("set tls_cert_file and tls_key_file together, or neither")
    if files.tls_cert_file is not None and files.tls_ca_file is None:
        raise ValueError("tls_cert_file has no effect without tls_ca_file, which turns TLS on")


def _read_tls(roots: Roots, files: SecretFiles) -> ClientTls | None:
    if files.tls_ca_file is None:
        return None
    ca_path = _path(roots, "tls_ca_file", files.tls_ca_file)
    try:
        ca = read_authorities(ca_path)
    except BadPem as error:
        raise _unusable("tls_ca_file", files.tls_ca_file, error) from None
    if files.tls_cert_file is None or files.tls_key_file is None:
        return ClientTls(ca)
    certificate_path = _path(roots, "tls_cert_file", files.tls_cert_file)
    key_path = _path(roots, "tls_key_file", files.tls_key_file)
    try:
        return ClientTls(ca, *read_key_pair(certificate_path, key_path))
    except BadPem as error:
        name = f"{files.tls_cert_file} with {files.tls_key_file}"
        raise _unusable("tls_cert_file", name, error) from None


def _path(roots: Roots, field: str, name: str) -> Path:
    return resolve_under(roots.secrets, name, f"teacher.{field}")


def _unusable(field: str, name: str, error: BadPem) -> InvalidSpec:
    return InvalidSpec([(f"teacher.{field}", f"{name} under the secrets root: {error}")])
