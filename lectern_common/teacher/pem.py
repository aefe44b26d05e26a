"""Reads certificates and keys from PEM files, and checks them before they are used.

gRPC reports nothing useful about a bad file: it just refuses every connection.
"""

import ssl
from pathlib import Path

MAX_PEM_BYTES = 1 << 20  # a bundle of all public authorities has 0.3 MB


class BadPem(ValueError):
    """A file that cannot be used; the message has neither its path nor its content."""


def read_authorities(path: Path) -> bytes:
    """Returns the CA certificates in a file.

    Raises:
        BadPem: it cannot be read, or holds no certificate.
    """
    text = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise BadPem("it holds no certificate in PEM format") from None
    return text


def read_key_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Returns a certificate (with its chain) and its private key.

    Raises:
        BadPem: one of the two cannot be read, or they do not match.
    """
    texts = _read(certificate), _read(key)
    try:
        # With an empty password an encrypted key does not prompt for one on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise BadPem("certificate and key do not match") from None
        raise BadPem("not a certificate and an unencrypted private key in PEM format") from None
    return texts


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise BadPem(f"cannot read it: {error.strerror}") from None
    if len(text) > MAX_PEM_BYTES:
        raise BadPem(f"it is larger than {MAX_PEM_BYTES >> 20} MiB")
    return text
