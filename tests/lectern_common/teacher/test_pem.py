"""Certificates and keys in files are usable, or refused before anything starts."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from lectern_common.teacher.pem import MAX_PEM_BYTES, BadPem, read_authorities, read_key_pair
from tests.support.certificates import Authority


def test_several_authorities_in_one_file_are_read_whole(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    parts = [Authority(tmp_path, name).path.read_bytes() for name in ("one", "two")]
    both.write_bytes(b"# a bundle\n" + b"".join(parts))
    assert read_authorities(both) == both.read_bytes()


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe", bytes(MAX_PEM_BYTES + 1)])
def test_a_file_without_a_certificate_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadPem):
        read_authorities(path)
    with pytest.raises(BadPem):
        read_key_pair(path, path)


def test_a_key_is_not_an_authority(tmp_path: Path) -> None:
    _, key = Authority(tmp_path).sign("server", "127.0.0.1")
    with pytest.raises(BadPem, match="no certificate"):
        read_authorities(key)


def test_an_encrypted_key_is_refused_without_a_password_prompt(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).sign("server", "127.0.0.1")
    private = load_pem_private_key(key.read_bytes(), None)
    encryption = BestAvailableEncryption(b"password")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(BadPem, match="unencrypted private key"):
        read_key_pair(certificate, key)
