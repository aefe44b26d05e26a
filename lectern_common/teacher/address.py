"""Parses `teacher.address`: one server, a list of replicas, or a DNS name for several.

host:port                one server
host:port,host:port      replicas of one model, asked in turn
dns:///name:port         all servers that the name resolves to
unix:/path               a server of this user on this machine, at a socket file
"""

import ipaddress
import re

DNS_SCHEME = "dns:///"
UNIX_SCHEME = "unix:"
MAX_REPLICAS = 32
# What the system takes as the path of a socket, without the byte that ends it.
MAX_SOCKET_PATH_BYTES = 107
MAX_HOST_CHARACTERS = 253
_EXAMPLE = "must be host:port, for example 127.0.0.1:50051"


def checked_address(text: str) -> str:
    """Returns the address. Raises ValueError if it is not valid."""
    if text.startswith(DNS_SCHEME):
        _require_host_and_port(text.removeprefix(DNS_SCHEME))
        return text
    replicas = text.split(",")
    for replica in replicas:
        _require_host_and_port(replica)
    if len(replicas) > MAX_REPLICAS:
        raise ValueError(f"must name at most {MAX_REPLICAS} servers")
    if len(set(replicas)) < len(replicas):
        twice = next(replica for replica in replicas if replicas.count(replica) > 1)
        raise ValueError(f"names {twice} twice")
    return text


def replica_addresses(address: str) -> tuple[str, ...]:
    """Returns the servers that an address names; a `dns:///` name stays as it is."""
    return tuple(address.split(","))


def socket_path(address: str) -> str | None:
    """Returns the path of a `unix:/path`; None for any other address, such as `unix:1`, a host.

    Raises ValueError if the path is not one that gRPC takes literally.
    """
    path = address.removeprefix(UNIX_SCHEME)
    if path == address or not path.startswith("/"):
        return None
    if len(path) > MAX_SOCKET_PATH_BYTES or not re.fullmatch(
        r"[A-Za-z0-9._/-]*[A-Za-z0-9_-]", path
    ):
        raise ValueError(
            f"must be unix:/path, of at most {MAX_SOCKET_PATH_BYTES} letters, digits and ._/-"
        )
    return path


def _require_host_and_port(text: str) -> None:
    if socket_path(text) is not None:
        return
    host, separator, port = text.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()):
        raise ValueError(_EXAMPLE)
    if not 0 < int(port[:6]) < 65536 or len(host) > MAX_HOST_CHARACTERS:
        raise ValueError(_EXAMPLE)
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"must be host:port; {host} is not an IPv6 address") from None
    # No colon: gRPC would take the part before it for a scheme, such as unix.
    elif any(ord(character) <= 32 or character in "/,@?#:[]%" for character in host):
        raise ValueError(_EXAMPLE)


def is_one_server(address: str) -> bool:
    """Returns True if a checked address can only mean a single server."""
    return not address.startswith(DNS_SCHEME) and len(replica_addresses(address)) == 1
