"""Who is on this machine, and what is a token."""

from pathlib import Path

import pytest

from lectern_common.callers import host_and_port, is_loopback, read_token_file
from lectern_common.errors import Misconfigured


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])  # noqa: S104
def test_what_is_beyond_loopback_is_known(host: str) -> None:
    assert not is_loopback(host)


def test_a_token_is_read_without_the_space_around_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" " + "a" * 16 + "\n")
    assert read_token_file(path) == "a" * 16


@pytest.mark.parametrize("text", ["a" * 15, "two words in one file", "", "\xfc" * 20, "a" * 5000])
def test_what_is_no_token_is_refused_by_the_option_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=f"--some-file {path}") as refused:
        read_token_file(path, "--some-file")
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("a.b:65535", ("a.b", 65535))],
)
def test_addresses_are_split_at_the_last_colon(address: str, parts: tuple[str, int]) -> None:
    assert host_and_port(address) == parts


@pytest.mark.parametrize("address", ["", "8080", "host", ":80", "host:", "host:x", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(Misconfigured, match=f"--some-bind '{address}' is not host:port"):
        host_and_port(address, "--some-bind")


def test_a_port_that_there_is_not_is_called_so() -> None:
    with pytest.raises(Misconfigured, match="the port of --bind '127.0.0.1:65536' is beyond 65535"):
        host_and_port("127.0.0.1:65536")
