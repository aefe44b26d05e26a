"""Counts, sizes and times in words; an address survives formatting and parsing."""

import os
from pathlib import Path

import pytest

from lectern_common.errors import Misconfigured
from lectern_common.words import (
    address_of,
    bracketed,
    counted,
    duration,
    gib,
    host_and_port,
    inert_name,
    size,
)


def test_a_count_comes_with_its_noun() -> None:
    assert [counted(number, "row") for number in (0, 1, 2, 1200)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,200 rows",
    ]


def test_a_time_is_in_the_unit_of_its_size() -> None:
    assert [duration(hours) for hours in (0.001, 0.5, 3.42, 100)] == [
        "4 s",
        "30 min",
        "3.4 h",
        "4.2 days",
    ]


def test_sizes_are_rounded_to_three_figures() -> None:
    assert [size(number) for number in (0, 999, 1000, 7168, 607_744, 999_600, 1.09e9, 4.8e16)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "7.17 kB",
        "608 kB",
        "1 MB",
        "1.09 GB",
        "48 PB",
    ]


def test_memory_is_in_units_of_1024() -> None:
    assert [gib(number) for number in (0, 3 << 29, 5 << 30)] == ["0.00 GiB", "1.50 GiB", "5.00 GiB"]


def test_only_an_ipv6_host_is_bracketed() -> None:
    assert [bracketed(host) for host in ("::1", "127.0.0.1", "A.b")] == [
        "[::1]",
        "127.0.0.1",
        "A.b",
    ]


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("a.b:65535", ("a.b", 65535))],
)
def test_addresses_are_split_at_the_last_colon_and_joined_again(
    address: str, parts: tuple[str, int]
) -> None:
    assert host_and_port(address) == parts
    assert address_of(*parts) == address


@pytest.mark.parametrize("address", ["", "8080", "host", ":80", "host:", "host:x", "host:-1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(Misconfigured, match=f"--some-bind '{address}' is not host:port"):
        host_and_port(address, "--some-bind")


@pytest.mark.parametrize("address", ["::1:80", "fe80::2:8080", "[::1:80", "::1]:80", "a]:80"])
def test_an_ipv6_address_needs_its_brackets(address: str) -> None:
    with pytest.raises(Misconfigured, match=r"IPv6 address stands in brackets, such as \[::1\]"):
        host_and_port(address)


def test_only_ascii_digits_are_a_port() -> None:
    with pytest.raises(Misconfigured, match="is not host:port"):
        host_and_port("127.0.0.1:\u0668\u0660")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("data/a b.txt", "data/a b.txt"),
        ("a\nb\t\x1b[31m", "a\\nb\\t\\x1b[31m"),
        ("\u202egpj", "\\u202egpj"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
        (Path("caf\xe9") / "[bold]", "caf\xe9/[bold]"),
    ],
)
def test_a_name_is_shown_on_one_line_and_moves_no_cursor(name: object, shown: str) -> None:
    assert inert_name(name) == shown


def test_a_port_above_65535_is_refused_with_a_message_that_says_so() -> None:
    with pytest.raises(Misconfigured, match=r"port in --bind '127\.0\.0\.1:65536' is greater than"):
        host_and_port("127.0.0.1:65536")
