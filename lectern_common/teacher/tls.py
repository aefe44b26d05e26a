"""TLS towards a teacher server: whom a client believes, and what it shows of itself."""

from dataclasses import dataclass, field

from lectern_common.errors import Untrusted

_HANDSHAKE = "Tls handshake failed"
_PROTOCOL = "SSL_ERROR_SSL"  # not a connection that broke meanwhile
_NOT_TLS = "WRONG_VERSION_NUMBER"
_OTHER_NAME = "Hostname Verification Check failed"
_CLOSED = ("Socket closed", "Connection reset")


@dataclass(frozen=True)
class ClientTls:
    """PEM texts.

    Attributes:
        ca: the authorities whose server certificates are believed.
        certificate, key: the client's own, for a server with --tls-client-ca; both or neither.
    """

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


def refusal(detail: str, address: str) -> Untrusted | None:
    """Returns the error that gRPC's words for a failed connection stand for, or None.

    A handshake that fails over certificates fails again: to ask once more would not help.
    """
    if _OTHER_NAME in detail:
        name = address.removeprefix("dns:///").rpartition(":")[0]
        return Untrusted(
            f"the certificate of the teacher at {address} is not for the name {name}: call it by a "
            "name in its certificate (teacher.address), or give it one with this name"
        )
    if _HANDSHAKE not in detail or _PROTOCOL not in detail:
        return None
    if _NOT_TLS in detail:
        return Untrusted(
            f"the teacher at {address} does not speak TLS: start it with --tls-cert and --tls-key, "
            "or leave teacher.tls_ca_file out"
        )
    why = detail.rpartition("OPENSSL_internal:")[2].removesuffix(": OK")
    return Untrusted(
        f"the certificate of the teacher at {address} is not believed ({why}): set "
        "teacher.tls_ca_file to the authority that signed it"
    )


def closed_hint(detail: str, tls: ClientTls | None) -> str:
    """Returns what to try where a server closes a new connection without a word; else "".

    It may be starting or ending; it also is how a server refuses a client over TLS.
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
    return ". Perhaps the certificate in teacher.tls_cert_file is not of its --tls-client-ca"
