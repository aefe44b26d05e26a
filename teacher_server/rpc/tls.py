"""The server's certificate and key, and the authority that signs client certificates."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from lectern_common.errors import Misconfigured
from lectern_common.teacher.pem import BadPem, read_authorities, read_key_pair


@dataclass(frozen=True)
class ServerTls:
    """PEM texts. With `client_ca`, clients need a certificate signed by that authority."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


def ssl_context(certificate: Path, key: Path, client_ca: bytes | None) -> ssl.SSLContext:
    """Returns the context for a server other than gRPC's, from files already checked."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_server_tls(
    certificate: Path | None, key: Path | None, client_ca: Path | None
) -> ServerTls | None:
    """Returns the files of --tls-cert, --tls-key and --tls-client-ca; None if none is set.

    Raises:
        Misconfigured: one is missing or cannot be read, or they do not belong together.
    """
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise Misconfigured(
            f"{missing} is missing: TLS needs --tls-cert and --tls-key, the server's certificate "
            "and its private key"
        )
    try:
        pair = read_key_pair(certificate, key)
    except BadPem as error:
        raise Misconfigured(f"--tls-cert {certificate}, --tls-key {key}: {error}") from None
    try:
        authority = None if client_ca is None else read_authorities(client_ca)
    except BadPem as error:
        raise Misconfigured(f"--tls-client-ca {client_ca}: {error}") from None
    return ServerTls(*pair, client_ca=authority)
