"""What `--bind HOST:PORT` listens on: every address that HOST names, and no other.

127.0.0.1, [::1]    this address
0.0.0.0             every IPv4 address of this machine
[::]                every address of this machine, IPv6 and IPv4
localhost, a name   every address that it resolves to, all on one port; if one of them is taken,
                    nothing is bound, since callers could reach another server by the same name
"""

import errno
import socket

from lectern_common.callers import is_loopback
from lectern_common.words import address_of

EVERY_IPV4 = "0.0.0.0"  # noqa: S104 - an address to compare with
EVERY_ADDRESS = "::"
# Tries to find a port that is free at every address.
_TRIES = 20


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
    """Returns a bound TCP socket for every address that the host names, all on one port.

    Args:
        host: a name or an address, an IPv6 one without brackets.
        port: 0 takes one that is free at all of them.

    Raises:
        OSError: an address is taken or not of this machine (then it is the error's `filename`), or
            the name is unknown. No socket stays open.
    """
    addresses = addresses_named(host)
    for last_try in [False] * (_TRIES - 1) + [True]:
        bound: list[socket.socket] = []
        try:
            for address in addresses:
                chosen = bound[0].getsockname()[1] if bound else port
                bound.append(_bound(address, chosen))
        except OSError as error:
            for listener in bound:
                listener.close()
            if port or not bound or last_try or error.errno != errno.EADDRINUSE:
                raise
        else:
            break
    return bound


def _bound(address: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only_ipv6 = address != EVERY_ADDRESS  # by default it depends on the system
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, address_of(address, port)) from None
    return listener
