"""Certificates made in a test: an authority, and what it signs."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates and writes them as PEM files into a folder.

    Attributes:
        path: of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = _signed(self._name, self._name, self._key, self._key, is_authority=True)
        self.path = _written(folder / f"{name}.pem", certificate)

    def sign(
        self, name: str, *hosts: str, from_days: float = -1, to_days: float = 1
    ) -> tuple[Path, Path]:
        """Returns (certificate file, key file) of a holder that is called by these hosts.

        Args:
            hosts: DNS names and IP addresses; none for a client.
            from_days, to_days: from now, when it begins and ends to hold.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(
            _name(name), self._name, key, self._key, hosts, from_days=from_days, to_days=to_days
        )
        key_path = self._folder / f"{name}.key"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return _written(self._folder / f"{name}.pem", certificate), key_path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signing_key: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...] = (),
    *,
    is_authority: bool = False,
    from_days: float = -1,
    to_days: float = 1,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    constraints = x509.BasicConstraints(ca=is_authority, path_length=None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + from_days * DAY)
        .not_valid_after(now + to_days * DAY)
        .add_extension(constraints, critical=True)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signing_key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _written(path: Path, certificate: x509.Certificate) -> Path:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path
