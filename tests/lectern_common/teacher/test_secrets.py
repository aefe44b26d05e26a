"""The files that a spec names under the secrets root are read, or refused by field."""

from pathlib import Path

import pytest

from lectern_common.errors import InvalidRequest, InvalidSpec
from lectern_common.roots import Roots
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.secrets import SecretFiles, read_secrets
from tests.support.certificates import Authority

TOKEN = "a-token-of-many-characters"


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    roots = Roots.of_home(tmp_path)
    authority = Authority(roots.secrets)
    authority.sign("mine")
    authority.sign("other")
    (roots.secrets / "token").write_text(f"{TOKEN}\n")
    (roots.secrets / "garbage").write_text("no PEM")
    return roots


def test_the_named_files_are_read(roots: Roots) -> None:
    secrets = read_secrets(roots, SecretFiles("token", "authority.pem", "mine.pem", "mine.key"))
    assert secrets.token == TOKEN
    assert secrets.tls is not None
    for name, text in (
        ("authority.pem", secrets.tls.ca),
        ("mine.pem", secrets.tls.certificate),
        ("mine.key", secrets.tls.key),
    ):
        assert text == (roots.secrets / name).read_bytes()
    without = read_secrets(roots, SecretFiles(tls_ca_file="authority.pem"))
    assert without.tls is not None and without.tls.certificate is without.tls.key is None
    assert read_secrets(roots, SecretFiles()).tls is None


def test_secrets_do_not_appear_in_repr(roots: Roots) -> None:
    secrets = read_secrets(roots, SecretFiles("token", "authority.pem", "mine.pem", "mine.key"))
    shown = f"{secrets!r} {secrets.tls!r}"
    assert TOKEN not in shown and "PRIVATE" not in shown


@pytest.mark.parametrize(
    ("files", "field", "says"),
    [
        (SecretFiles(tls_ca_file="none"), "tls_ca_file", "No such file"),
        (SecretFiles(tls_ca_file="garbage"), "tls_ca_file", "holds no certificate"),
        (
            SecretFiles(None, "authority.pem", "mine.pem", "other.key"),
            "tls_cert_file",
            "certificate and key do not match",
        ),
        (
            SecretFiles(None, "authority.pem", "garbage", "mine.key"),
            "tls_cert_file",
            "not a certificate and an unencrypted private key",
        ),
        (SecretFiles(None, "authority.pem", "mine.pem", "none"), "tls_cert_file", "No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_by_its_field(
    roots: Roots, files: SecretFiles, field: str, says: str
) -> None:
    with pytest.raises(InvalidSpec, match=says) as caught:
        read_secrets(roots, files)
    assert caught.value.field == f"teacher.{field}"
    assert str(roots.secrets) not in str(caught.value)


def test_a_link_out_of_the_secrets_root_is_refused(roots: Roots, tmp_path: Path) -> None:
    outside = Authority(tmp_path / "outside").path
    (roots.secrets / "linked").symlink_to(outside)
    with pytest.raises(InvalidRequest, match="leads outside its root"):
        read_secrets(roots, SecretFiles(tls_ca_file="linked"))


def test_the_files_come_from_the_teachers_spec() -> None:
    files = {"token_file": "t", "tls_ca_file": "a", "tls_cert_file": "c", "tls_key_file": "k"}
    assert SecretFiles.of(TeacherSpec(**files)) == SecretFiles("t", "a", "c", "k")
    assert SecretFiles.of(TeacherSpec(**files)).named() == files
    assert SecretFiles.of(TeacherSpec()).named() == {}
