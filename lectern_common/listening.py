"""What `--bind HOST:PORT` listens on: every address that HOST names, and no other.

127.0.0.1, [::1]    this address
0.0.0.0             every IPv4 address of this machine
[::]                every address of this machine, IPv6 and IPv4
localhost, a name   every address that it resolves to and this machine has (hosts files name ::1
                    where IPv6 is off), all on one port; if one of them is taken, nothing is bound,
                    since callers could reach another server by the same name
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lectern_common.callers import is_loopback
from lectern_common.words import address_of

EVERY_IPV4 = "0.0.0.0"  # noqa: S104 - an address to compare with
EVERY_ADDRESS = "::"
# Errors of an address that this machine does not have, so nobody can listen there.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
# Tries to find a port that is free at every address.
_TRIES = 20


@contextmanager
def only_for_this_user(path: Path) -> Iterator[None]:
    """While it is open, a socket may be bound at `path`; the file has mode 0600 from the start.

    A socket that a killed server left is removed first. The process's umask changes for the while.

    Raises:
        OSError: someone listens there, or it cannot be seen whether, or it is not a socket.
    """
    _sweep(path)
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _sweep(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EADDRINUSE, "is not a socket", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server whose queue is full listens, too
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "someone listens there", str(path))
    path.unlink(missing_ok=True)


def addresses_named(host: str) -> list[str]:
    """Returns the IPv4 and IPv6 addresses that a host names on this machine, without repetition.

    Raises:
        OSError: the name is unknown, or is localhost but leads to other machines.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if is_loopback(host) and not all(map(is_loopback, addresses)):
        raise OSError(errno.EADDRNOTAVAIL, f"{host} is {', '.join(addresses)}, not this machine")
    return addresses


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Returns a bound TCP socket for every address of this machine that the host names.

    Args:
        host: a name or an address, an IPv6 one without brackets.
        port: 0 takes one that is free at all of them.

    Raises:
        OSError: an address is taken, or none is of this machine (then it is the error's
            `filename`), or the name is unknown. No socket stays open.
    """
    addresses = addresses_named(host)
    for _ in range(_TRIES - 1):
        try:
            return _all_bound(addresses, port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    return _all_bound(addresses, port)


def _all_bound(addresses: list[str], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    absent: list[OSError] = []
    try:
        for address in addresses:
            try:
                bound.append(_bound(address, bound[0].getsockname()[1] if bound else port))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent.append(error)
        if not bound:
            raise absent[0]
    except OSError:
        for listener in bound:
            listener.close()
        raise
    return bound


def _bound(address: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only_ipv6 = address != EVERY_ADDRESS  # by default it depends on the system
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        listener.bind(where)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise OSError(error.errno, error.strerror, address_of(address, port)) from None
    return listener
