"""Certificates and keys in PEM files: read, and checked before anything leans on them.

gRPC itself says nothing useful of a bad file: it refuses every connection instead.
"""

import ssl
from pathlib import Path

MAX_PEM_BYTES = 1 << 20  # a bundle of all public authorities has 0.3 MB


class BadPem(ValueError):
    """A file that cannot be used; the message has no path and nothing of the content."""


def read_authorities(path: Path) -> bytes:
    """Returns the certificates of authorities in a file.

    Raises:
        BadPem: it cannot be read, or holds no certificate.
    """
    text = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise BadPem("it holds no certificate in PEM form") from None
    return text


def read_key_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Returns a certificate (with those that lead to its authority) and its private key.

    Raises:
        BadPem: one of the two cannot be read, or they do not belong together.
    """
    texts = _read(certificate), _read(key)
    try:
        # The empty password keeps an encrypted key from asking for one on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise BadPem("certificate and key do not belong together") from None
        raise BadPem("they are no certificate and unencrypted private key in PEM form") from None
    return texts


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise BadPem(f"cannot read it: {error.strerror}") from None
    if len(text) > MAX_PEM_BYTES:
        raise BadPem(f"it is over {MAX_PEM_BYTES >> 20} MiB")
    return text
