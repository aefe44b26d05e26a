"""The webhook's file, the signed request, and receivers that fail in every way."""

import asyncio
import hashlib
import hmac
import json
import socket
import ssl
import struct
import time
from email.utils import formatdate

import pytest

from control_plane.observing.receiver import send, signature
from lectern_common.errors import Misconfigured
from lectern_common.run.webhook import Receiver, read_receiver
from tests.support.certificates import Authority
from tests.support.webhook import webhook

SECRET = "a-secret-of-these-tests"
TOKEN = "T0KEN-in-the-path"


def posted(receiver, data=None, *, delivery="7", timeout=5.0, **more):
    return asyncio.run(send(receiver, delivery, data or {"kind": "failed"}, timeout, **more))


def of(url, secret=SECRET):
    return Receiver(url, secret)


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_has_the_url_and_if_it_signs_the_secret(tmp_path):
    (tmp_path / "hook").write_text(f"https://hooks.example.com:8443/services/{TOKEN}?key=abcd\n")
    found = read_receiver(tmp_path, "hook")
    assert (str(found.url), found.secret) == (
        f"https://hooks.example.com:8443/services/{TOKEN}?key=abcd",
        None,
    )
    (tmp_path / "hook").write_text(f"http://u:password@10.0.0.9/{TOKEN}#part\r\n{SECRET}\n\n")
    found = read_receiver(tmp_path, "hook")
    assert found.secret == SECRET
    assert found.shown == "http://10.0.0.9"
    assert repr(found) == "Receiver(http://10.0.0.9)"
    (tmp_path / "hook").write_text("http://[::1]:99/x")
    assert read_receiver(tmp_path, "hook").shown == "http://[::1]:99"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (f"{SECRET}\nhttps://example.com/{TOKEN}", "first line is not"),
        (f"ftp://example.com/{TOKEN}", "not an http or https URL"),
        (f"https:///{TOKEN}", "first line is not"),
        (f"https://example.com:99999/{TOKEN}", "first line is not"),
        (f"https://example.com/{TOKEN} x", "first line is not"),
        (f"https://example.com/{TOKEN}\nshort", "fewer than 16 characters"),
        (f"https://example.com/{TOKEN}\n{SECRET}\nmore", "has 3 lines"),
        (f"https://example.com/{TOKEN}\n\n{SECRET}", "has 3 lines"),
        (f"https://example.com/{TOKEN}\u00e9", "not ASCII"),
        (f"https://example.com/{TOKEN}" + "x" * 5000, "too large"),
    ],
)
def test_a_file_of_another_form_is_refused_without_its_content(tmp_path, text, why):
    (tmp_path / "hook").write_text(text)
    with pytest.raises(Misconfigured, match=why) as caught:
        read_receiver(tmp_path, "hook")
    message = str(caught.value)
    assert "--alert-webhook-file" in message
    assert TOKEN not in message and SECRET not in message and "example.com" not in message


@pytest.mark.parametrize("name", ["absent", "../outside", "folder", "a\0b", "x" * 300])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    (tmp_path / "secrets" / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_text("https://example.com/")
    with pytest.raises(Misconfigured, match="--alert-webhook-file"):
        read_receiver(tmp_path / "secrets", name)


# ---- the request ---------------------------------------------------------------------------------


def test_a_request_is_json_signed_over_timestamp_and_body():
    with webhook("/hook?a=b") as receiver:
        answer = posted(of(receiver.url), {"kind": "failed", "message": "na\u00efve"})
        assert answer.delivered and answer.status == 204
        [got] = receiver.got
    assert got.path == "/hook?a=b"
    assert got.json == {"kind": "failed", "message": "na\u00efve"}
    assert got.headers["content-type"] == "application/json"
    assert got.headers["lectern-delivery"] == "7"
    # The recipe of docs/observing.md, by hand.
    fields = dict(part.split("=", 1) for part in got.headers["lectern-signature"].split(","))
    signed = fields["t"].encode() + b"." + got.body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert fields["v1"] == expected
    assert abs(int(fields["t"]) - time.time()) < 300


def test_a_signature_computed_elsewhere():
    """printf '1700000000.{"kind":"failed"}' | openssl dgst -sha256 -hmac a-secret-of-these-tests"""
    digest = "580eaee1f1f13960324540db6f48b15df75099c62aa35274a4d013bff55ea3e2"
    assert signature(SECRET, 1700000000, b'{"kind":"failed"}') == f"t=1700000000,v1={digest}"


def test_without_a_secret_nothing_is_signed():
    with webhook() as receiver:
        assert posted(of(receiver.url, None)).delivered
        assert "lectern-signature" not in receiver.got[0].headers


def test_credentials_in_the_url_are_sent_and_never_shown():
    with webhook() as receiver:
        receiver.usual = 500
        url = receiver.url.replace("http://", "http://user:pass-word-1@")
        answer = posted(of(url))
        assert receiver.got[0].headers["authorization"].startswith("Basic ")
    assert "pass-word-1" not in (answer.error or "")


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "delivered", "again", "words"),
    [
        (200, True, False, ""),
        (202, True, False, ""),
        (204, True, False, ""),
        (299, True, False, ""),
        (301, False, True, "redirects are not followed"),
        (307, False, True, "redirects are not followed"),
        (400, False, False, "not tried again"),
        (401, False, False, "not tried again"),
        (404, False, False, "404 Not Found"),
        (408, False, True, "408 Request Timeout"),
        (410, False, False, "takes no alerts any more"),
        (422, False, False, "not tried again"),
        (429, False, True, "429 Too Many Requests"),
        (499, False, False, "answered 499"),
        (500, False, True, "500 Internal Server Error"),
        (503, False, True, "503 Service Unavailable"),
        (599, False, True, "answered 599"),
    ],
)
def test_what_a_status_means(status, delivered, again, words):
    with webhook() as receiver:
        receiver.usual = status
        answer = posted(of(receiver.url))
        assert len(receiver.got) == 1
    assert (answer.delivered, answer.again, answer.status) == (delivered, again, status)
    assert words in (answer.error or "")


def test_a_redirect_is_not_followed():
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", target.url)
        handler.end_headers()

    with webhook() as receiver, webhook("/other") as target:
        receiver.usual = elsewhere
        answer = posted(of(receiver.url))
        assert (answer.delivered, target.got) == (False, [])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        (formatdate(10_090, usegmt=True), 90),
        (formatdate(9_000, usegmt=True), 0),
        ("999999999", 86_400),
        ("9" * 400, None),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_in_both_forms(text, seconds):
    def later(handler):
        handler.send_response(429)
        handler.send_header("Retry-After", text)
        handler.end_headers()

    with webhook() as receiver:
        receiver.usual = later
        assert posted(of(receiver.url), clock=lambda: 10_000.0).retry_after == seconds


def test_what_the_receiver_says_is_shown_without_any_part_of_the_url():
    def echo(handler):
        path = handler.path
        said = f"no \x1b[31mhook at {path} or {path.upper()} ({TOKEN}, k%20ey-1234, {SECRET})"
        handler.send_response(404)
        handler.end_headers()
        handler.wfile.write(said.encode())

    with webhook(f"/services/{TOKEN}?key=k%20ey-1234") as receiver:
        receiver.usual = echo
        answer = posted(of(receiver.url))
    said = answer.said or ""
    assert said == "no \\x1b[31mhook at [hidden] or [hidden] ([hidden], [hidden], [hidden])"


def test_an_echo_that_is_cut_shows_no_part_of_the_url_either():
    token = "s3cr3t-" * 130

    def echo(handler):
        handler.send_response(404)
        handler.end_headers()
        handler.wfile.write(f"/{token}".encode() * 20)

    with webhook(f"/{token}") as receiver:
        receiver.usual = echo
        assert "s3cr3t" not in (posted(of(receiver.url)).said or "")


# ---- receivers that do not behave ----------------------------------------------------------------


def dead(handler):
    """Resets the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hangs_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def babbles(handler):
    handler.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")


def drips_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1000):
        handler.wfile.write(f"X-{number}: 1\r\n".encode())
        handler.wfile.flush()
        time.sleep(0.05)


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(100_000):
        handler.wfile.write(f"X-{number}: {'x' * 1000}\r\n".encode())


@pytest.mark.parametrize("behaviour", [dead, hangs_up, babbles, drips_headers, endless_headers])
def test_a_receiver_without_a_proper_answer_fails_the_attempt_and_may_be_tried_again(behaviour):
    with webhook(f"/{TOKEN}") as receiver:
        receiver.usual = behaviour
        answer = posted(of(receiver.url), timeout=1.0)
    assert (answer.delivered, answer.again, answer.status) == (False, True, None)
    assert answer.error and TOKEN not in answer.error


def test_a_receiver_that_hangs_is_left_at_the_deadline():
    with webhook() as receiver:
        receiver.usual = receiver.hangs
        answer = posted(of(receiver.url), timeout=0.3)
    assert answer.again and "did not answer within 0.3 s" in (answer.error or "")


def test_of_an_answer_of_50_megabytes_only_the_beginning_is_read():
    sent = []

    def huge(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(50):
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)
        except OSError:
            pass

    with webhook() as receiver:
        receiver.usual = huge
        assert posted(of(receiver.url)).delivered
    assert len(sent) < 50


def test_an_answer_whose_body_never_ends_counts_by_its_status():
    def slow(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"ok")
        handler.wfile.flush()
        receiver.hangs(handler)

    with webhook() as receiver:
        receiver.usual = slow
        answer = posted(of(receiver.url), timeout=1.0)
    assert (answer.delivered, answer.said) == (True, "ok")


def test_a_certificate_that_nobody_trusts_is_refused(tmp_path):
    certificate, key = Authority(tmp_path).sign("hook", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with webhook(f"/{TOKEN}", tls=context) as receiver:
        answer = posted(of(receiver.url))
        assert receiver.got == []
    assert answer.again and "certificate" in (answer.error or "").lower()
    assert TOKEN not in (answer.error or "")


def test_a_server_without_tls_behind_https_is_an_error():
    with webhook(f"/{TOKEN}") as receiver:
        answer = posted(of(receiver.url.replace("http:", "https:")), timeout=2.0)
    assert answer.again and answer.error and TOKEN not in answer.error


def test_a_port_where_nobody_listens_and_a_name_that_does_not_exist():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = posted(of(f"http://127.0.0.1:{port}/{TOKEN}"))
    assert answer.again and "cannot reach http://127.0.0.1" in (answer.error or "")
    answer = posted(of(f"http://no-such-host.invalid/{TOKEN}"))
    assert answer.again and answer.error and TOKEN not in answer.error


def test_certificates_of_the_environment_that_cannot_be_read_fail_only_the_attempt(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    answer = posted(of("https://no-such-host.invalid/x"))
    assert not answer.delivered and answer.again


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with webhook() as receiver:
        assert posted(of(receiver.url)).delivered


def test_a_body_keeps_json_of_every_text():
    with webhook() as receiver:
        posted(of(receiver.url), {"message": "\u2028 \x00 \ud800 <!channel>"})
        assert json.loads(receiver.got[0].body)["message"].startswith("\u2028 \x00")
