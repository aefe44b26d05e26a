"""TLS and mutual TLS with real certificates, towards a real server process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lectern_common.errors import Misconfigured, TeacherUnavailable, Unauthenticated, Untrusted
from lectern_common.teacher.channel import TeacherChannel, serving_state
from lectern_common.teacher.pem import read_authorities, read_key_pair
from lectern_common.teacher.tls import ClientTls
from teacher_server.rpc.auth import callers_text, plaintext_warning, require_callers_known
from teacher_server.rpc.tls import ServerTls, read_server_tls
from tests.support.asking import gathered, request
from tests.support.certificates import Authority
from tests.support.servers import TeacherProcess, start_teacher, teacher_process

FIXTURE = ("--engine", "fixture", "--vocab-size", "97")
EVERYWHERE = "0.0.0.0"  # noqa: S104
TOKEN = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def other(folder: Path) -> Authority:
    return Authority(folder / "other", "stranger")


def server_options(authority: Authority, name: str, *hosts: str, **dates: float) -> tuple[str, ...]:
    certificate, key = authority.sign(name, *hosts, **dates)
    return (*FIXTURE, "--tls-cert", str(certificate), "--tls-key", str(key))


@pytest.fixture(scope="module")
def server(folder: Path, authority: Authority) -> Iterator[TeacherProcess]:
    """A server with TLS and a token."""
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    options = server_options(authority, "server", "127.0.0.1", "localhost")
    with teacher_process(folder, *options, "--token-file", str(token_file)) as teacher:
        yield teacher


@pytest.fixture(scope="module")
def mutual(folder: Path, authority: Authority) -> Iterator[TeacherProcess]:
    """A server with mutual TLS and no token."""
    options = server_options(authority, "mutual", "127.0.0.1")
    with teacher_process(folder, *options, "--tls-client-ca", str(authority.path)) as teacher:
        yield teacher


def client(authority: Authority, signer: Authority | None = None) -> ClientTls:
    """Trusts one authority; shows a certificate that another, or the same, has signed."""
    ca = read_authorities(authority.path)
    return ClientTls(ca) if signer is None else ClientTls(ca, *read_key_pair(*signer.sign("me")))


def engine_of(address: str, token: str | None, tls: ClientTls | None) -> str:
    """Returns the engine that the server names, after scoring a request."""
    with TeacherChannel(address, token, tls) as channel:
        rows = gathered(channel.call(channel.stub.LogitsForBatch, request([[5]]), 30)).floats
        assert rows.argmax() == 5
        return channel.get_model(30).engine


def refusal(address: str, token: str | None, tls: ClientTls | None, error: type) -> str:
    with TeacherChannel(address, token, tls) as channel, pytest.raises(error) as caught:
        channel.get_model(30)
    assert type(caught.value) is error
    return str(caught.value)


def test_clients_with_the_token_get_answers_over_tls(
    server: TeacherProcess, authority: Authority
) -> None:
    assert engine_of(server.address, TOKEN, client(authority)) == "fixture"
    refusal(server.address, None, client(authority), Unauthenticated)
    refusal(server.address, "wrong" * 8, client(authority), Unauthenticated)


def test_a_name_in_the_certificate_is_accepted(
    server: TeacherProcess, authority: Authority
) -> None:
    port = server.address.rpartition(":")[2]
    assert engine_of(f"localhost:{port}", TOKEN, client(authority)) == "fixture"


def test_a_certificate_of_another_authority_is_refused(
    folder: Path, server: TeacherProcess, other: Authority
) -> None:
    for stranger in (other, Authority(folder / "namesake")):
        said = refusal(server.address, TOKEN, client(stranger), Untrusted)
        assert server.address in said and "teacher.tls_ca_file" in said


def test_a_plaintext_client_is_told_that_the_server_may_speak_tls(server: TeacherProcess) -> None:
    said = refusal(server.address, TOKEN, None, TeacherUnavailable)
    assert "set teacher.tls_ca_file" in said


def test_a_tls_client_is_told_that_the_server_speaks_plaintext(
    folder: Path, authority: Authority
) -> None:
    with teacher_process(folder, *FIXTURE) as plain:
        said = refusal(plain.address, None, client(authority), Untrusted)
    assert "does not speak TLS" in said and "--tls-cert" in said


def test_a_certificate_for_another_name_is_refused(folder: Path, authority: Authority) -> None:
    options = server_options(authority, "elsewhere", "teacher.example")
    with teacher_process(folder, *options) as teacher:
        said = refusal(teacher.address, None, client(authority), Untrusted)
    assert "is not valid for the name 127.0.0.1" in said


def test_an_expired_certificate_is_refused(folder: Path, authority: Authority) -> None:
    options = server_options(authority, "ended", "127.0.0.1", from_days=-9, to_days=-1)
    with teacher_process(folder, *options) as teacher:
        said = refusal(teacher.address, None, client(authority), Untrusted)
    assert "certificate has expired" in said


def test_mutual_tls_accepts_only_clients_of_its_authority(
    mutual: TeacherProcess, authority: Authority, other: Authority
) -> None:
    assert engine_of(mutual.address, None, client(authority, authority)) == "fixture"
    said = refusal(mutual.address, None, client(authority), TeacherUnavailable)
    assert "set teacher.tls_cert_file and teacher.tls_key_file" in said
    said = refusal(mutual.address, None, client(authority, other), TeacherUnavailable)
    assert "Perhaps its --tls-client-ca did not sign the certificate" in said
    refusal(mutual.address, None, None, TeacherUnavailable)


def test_health_is_checked_over_tls(
    server: TeacherProcess, mutual: TeacherProcess, authority: Authority
) -> None:
    assert serving_state(server.address, 30, client(authority)) == "SERVING"
    assert serving_state(mutual.address, 30, client(authority, authority)) == "SERVING"
    with pytest.raises(TeacherUnavailable):
        serving_state(server.address, 30)


def test_the_health_command_takes_certificates(
    mutual: TeacherProcess, authority: Authority
) -> None:
    certificate, key = authority.sign("probe")
    options = ["--tls-ca", authority.path, "--tls-cert", certificate, "--tls-key", key]
    argv = [sys.executable, "-m", "lectern", "teacher", "health", mutual.address]
    done = subprocess.run([*argv, *map(str, options)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, f"{mutual.address}: SERVING\n")
    half = subprocess.run([*argv, "--tls-cert", certificate], capture_output=True, text=True)
    assert half.returncode == 2 and "TLS needs --tls-ca" in half.stderr


def test_the_banner_says_who_may_call_and_what_is_encrypted(
    folder: Path, authority: Authority
) -> None:
    options = server_options(authority, "banner", "127.0.0.1")
    with teacher_process(folder, *options, "--tls-client-ca", str(authority.path)) as teacher:
        _, output, _ = teacher.stop()
    assert "callers      those with a certificate of --tls-client-ca" in output
    assert "encryption   TLS" in output


def test_beyond_loopback_callers_must_be_known(folder: Path, authority: Authority) -> None:
    mutual = ServerTls(b"", b"", client_ca=b"")
    for host, token, tls in (
        ("127.0.0.1", None, None),
        (EVERYWHERE, TOKEN, None),
        (EVERYWHERE, None, mutual),
    ):
        require_callers_known(f"{host}:1", token, tls)
    for tls, says in (
        (None, "set --token-file"),
        (ServerTls(b"", b""), "does not check who calls"),
    ):
        with pytest.raises(Misconfigured, match=says):
            require_callers_known(f"{EVERYWHERE}:1", None, tls)
    certificate_only = server_options(authority, "open", "127.0.0.1")
    started = start_teacher(*certificate_only, "--bind", "0.0.0.0:0")
    try:
        _, errors = started.communicate(timeout=60)
    finally:
        started.kill()
        started.wait()
    assert started.returncode == 2 and "set --tls-client-ca" in errors


def test_a_token_in_plaintext_beyond_loopback_warns_loudly() -> None:
    warning = plaintext_warning(EVERYWHERE, TOKEN, None)
    assert warning is not None and "UNENCRYPTED" in warning and TOKEN not in warning
    assert plaintext_warning("127.0.0.1", TOKEN, None) is None
    assert plaintext_warning(EVERYWHERE, TOKEN, ServerTls(b"", b"")) is None
    assert callers_text(TOKEN, ServerTls(b"", b"", b"")) == (
        "those with the bearer token and a certificate of --tls-client-ca"
    )
    assert callers_text(None, ServerTls(b"", b"")) == "anyone who can reach it"


def test_unusable_certificate_files_are_refused_before_anything_starts(
    folder: Path, authority: Authority, other: Authority
) -> None:
    certificate, key = authority.sign("good", "127.0.0.1")
    _, others_key = other.sign("other", "127.0.0.1")
    garbage, missing = folder / "garbage", folder / "missing"
    garbage.write_text("no PEM")
    cases = [
        ((certificate, None, None), "--tls-key is missing"),
        ((None, key, None), "--tls-cert is missing"),
        ((None, None, authority.path), "--tls-cert is missing"),
        ((certificate, missing, None), "cannot read it: No such file"),
        ((certificate, others_key, None), "certificate and key do not match"),
        ((garbage, key, None), "not a certificate and an unencrypted private key"),
        ((certificate, key, garbage), "--tls-client-ca .*holds no certificate"),
    ]
    for files, says in cases:
        with pytest.raises(Misconfigured, match=says):
            read_server_tls(*files)
    assert read_server_tls(None, None, None) is None
    mismatched = ["--tls-cert", str(certificate), "--tls-key", str(others_key)]
    started = start_teacher(*FIXTURE, "--bind", "127.0.0.1:0", *mismatched)
    try:
        _, errors = started.communicate(timeout=60)
    finally:
        started.kill()
        started.wait()
    assert started.returncode == 2
    (sentence,) = [line for line in errors.splitlines() if line.startswith("lectern teacher: ")]
    assert "certificate and key do not match" in sentence and "Traceback" not in errors
