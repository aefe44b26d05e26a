"""Host names of a test, which resolve without a name server; and who answers at an address."""

import errno
import os
import socket
from typing import Any

import pytest


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """Makes a name resolve to these addresses in this process."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **options: Any) -> list[Any]:
        if host != name:
            return real(host, port, *rest, **options)
        return [entry for each in addresses for entry in real(each, port, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def without_ipv6(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Makes Python's IPv6 sockets fail: to be made with EAFNOSUPPORT, to be bound with others."""

    class Socket(socket.socket):
        def __init__(self, *args: Any, **options: Any) -> None:
            if error == errno.EAFNOSUPPORT and args[:1] == (socket.AF_INET6,):
                raise OSError(error, os.strerror(error))
            super().__init__(*args, **options)

        def bind(self, address: Any, /) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(error, os.strerror(error))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Socket)


def listens(address: str, port: int) -> bool:
    """Returns whether somebody accepts connections there."""
    try:
        socket.create_connection((address, port), 5).close()
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
