"""TLS to a teacher server: the client's certificates, and the messages of failed handshakes."""

from dataclasses import dataclass, field

from lectern_common.errors import Untrusted

_HANDSHAKE = "Tls handshake failed"
_PROTOCOL = "SSL_ERROR_SSL"  # not a connection that broke during the handshake
_NOT_TLS = "WRONG_VERSION_NUMBER"
_OTHER_NAME = "Hostname Verification Check failed"
_CLOSED = ("Socket closed", "Connection reset")


@dataclass(frozen=True)
class ClientTls:
    """PEM texts.

    Attributes:
        ca: the authorities whose server certificates are trusted.
        certificate, key: the client's own, for a server with --tls-client-ca; both or neither.
    """

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def refusal(detail: str, address: str) -> Untrusted | None:
    """Returns the TLS error behind gRPC's message for a failed connection, or None.

    A handshake that fails because of certificates is not retried: it would fail again.
    """
    if _OTHER_NAME in detail:
        name = address.removeprefix("dns:///").rpartition(":")[0]
        return Untrusted(
            f"the certificate of the teacher at {address} is not valid for the name {name}: set "
            "teacher.address to a name in the certificate, or start the teacher with a certificate "
            "for this name"
        )
    if _HANDSHAKE not in detail or _PROTOCOL not in detail:
        return None
    if _NOT_TLS in detail:
        return Untrusted(
            f"the teacher at {address} does not speak TLS: start it with --tls-cert and --tls-key, "
            "or remove teacher.tls_ca_file"
        )
    why = detail.rpartition("OPENSSL_internal:")[2].removesuffix(": OK")
    return Untrusted(
        f"the certificate of the teacher at {address} is not trusted ({why}): set "
        "teacher.tls_ca_file to the authority that signed it"
    )


def closed_hint(detail: str, tls: ClientTls | None) -> str:
    """Returns what to try if a server closes a new connection without an error; else "".

    It may be starting or stopping; a server also refuses a client's TLS this way.
    """
    if "failed to connect" not in detail or not any(words in detail for words in _CLOSED):
        return ""
    if tls is None:
        return ". If the server was started with --tls-cert, set teacher.tls_ca_file"
    if tls.certificate is None:
        return (
            ". If the server was started with --tls-client-ca, set teacher.tls_cert_file and "
            "teacher.tls_key_file"
        )
    return ". Perhaps its --tls-client-ca did not sign the certificate in teacher.tls_cert_file"
