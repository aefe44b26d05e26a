"""Which callers are on this machine, and what a token is."""

import errno
import os
from pathlib import Path

import pytest

from lectern_common.callers import (
    is_loopback,
    make_token_file,
    read_token_file,
    require_known_callers,
)
from lectern_common.errors import Misconfigured


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_hosts_are_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])  # noqa: S104
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("bind", "known"), [("127.0.0.1:80", False), ("[::1]:80", False), ("0.0.0.0:80", True)]
)
def test_callers_on_this_machine_or_with_a_token_are_accepted(bind: str, known: bool) -> None:
    require_known_callers(bind, known=known, remedy="set it")


def test_an_open_bind_is_refused_naming_the_option_and_what_to_set() -> None:
    with pytest.raises(Misconfigured) as refused:
        require_known_callers(
            "[::]:80", known=False, remedy="set --key FILE", option="--some-bind", may="read"
        )
    assert str(refused.value) == (
        "--some-bind [::]:80 can be reached from other machines, so anyone could read: "
        "set --key FILE, or bind 127.0.0.1"
    )


def test_a_token_is_read_without_the_space_around_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" " + "a" * 16 + "\n")
    assert read_token_file(path) == "a" * 16


@pytest.mark.parametrize("text", ["a" * 15, "two words in one file", "", "\xfc" * 20, "a" * 5000])
def test_an_unusable_token_is_refused_by_option_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=f"--some-file {path}") as refused:
        read_token_file(path, "--some-file")
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_token_is_made_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "secrets" / "token"
    assert make_token_file(path)
    token = read_token_file(path)
    assert len(token) > 20 and path.stat().st_mode & 0o777 == 0o600
    assert not make_token_file(path)
    assert read_token_file(path) == token
    assert [one.name for one in path.parent.iterdir()] == ["token"]
