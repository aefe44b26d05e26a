"""What a host listens on: all of its addresses on one port, or none."""

import errno
import socket

import pytest

from lectern_common.listening import EVERY_IPV4, addresses_named, bound_sockets
from tests.support.names import has_ipv6, listens, resolve, without_ipv6

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def opened(host: str, port: int = 0) -> list[socket.socket]:
    listeners = bound_sockets(host, port)
    for listener in listeners:
        listener.listen()
    return listeners


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [
        ("127.0.0.1", True, False),
        (EVERY_IPV4, True, False),
        ("::1", False, True),
        ("::", True, True),
        ("two.test", True, True),
    ],
)
def test_a_host_listens_on_what_it_names(
    host: str, ipv4: bool, ipv6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "two.test", "::1", "127.0.0.1", "::1")
    listeners = opened(host)
    port = listeners[0].getsockname()[1]
    assert (listens("127.0.0.1", port), listens("::1", port)) == (ipv4, ipv6)
    assert {listener.getsockname()[1] for listener in listeners} == {port}
    for listener in listeners:
        listener.close()


@needs_ipv6
@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_name_with_one_taken_address_is_refused_and_nothing_stays_bound(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "two.test", "127.0.0.1", "::1")
    [other] = opened(taken)
    port = other.getsockname()[1]
    with pytest.raises(OSError) as caught:
        bound_sockets("two.test", port)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.filename == (f"[::1]:{port}" if ":" in taken else f"127.0.0.1:{port}")
    free = "::1" if taken == "127.0.0.1" else "127.0.0.1"
    assert not listens(free, port)
    other.close()


def test_an_unknown_name_and_an_address_of_another_machine_are_errors() -> None:
    for host in ("no-such-host.invalid", "192.0.2.7"):
        with pytest.raises(OSError):
            bound_sockets(host, 0)


def test_localhost_that_leads_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, "localhost", "127.0.0.1", "192.0.2.7")
    with pytest.raises(OSError, match=r"localhost is 127\.0\.0\.1, 192\.0\.2\.7, not this machine"):
        addresses_named("localhost")


@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
@pytest.mark.parametrize("addresses", [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_a_name_listens_without_the_addresses_that_the_machine_lacks(
    addresses: tuple[str, ...], error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ipv6(monkeypatch, error)
    resolve(monkeypatch, "localhost", *addresses)
    [listener] = opened("localhost")
    port = listener.getsockname()[1]
    assert listens("127.0.0.1", port)
    with pytest.raises(OSError) as caught:
        bound_sockets("localhost", port)
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, f"127.0.0.1:{port}")
    listener.close()
    with pytest.raises(OSError) as caught:
        bound_sockets("::1", port)
    assert (caught.value.errno, caught.value.filename) == (error, f"[::1]:{port}")


def test_a_name_without_any_address_of_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve(monkeypatch, "two.test", "192.0.2.7", "192.0.2.8")
    with pytest.raises(OSError) as caught:
        bound_sockets("two.test", 5001)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert caught.value.filename == "192.0.2.7:5001"
