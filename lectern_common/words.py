"""Formats counts, sizes, times and addresses for people, and parses host:port."""

from lectern_common.errors import Misconfigured

GIB = 1 << 30
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def counted(number: int, noun: str) -> str:
    """Returns "1 shard", "2 shards", "1,200 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(hours: float) -> str:
    """Returns "40 s", "12 min", "3.4 h" or "2.1 days"."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def size(num_bytes: float) -> str:
    """Returns "7.17 kB": three figures, in units of 1,000."""
    power = 0
    while num_bytes >= 999.5 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


def gib(num_bytes: int) -> str:
    """Returns "4.00 GiB", the unit in which memory and disks are bought."""
    return f"{num_bytes / GIB:.2f} GiB"


def inert_name(name: object) -> str:
    """Returns a name, such as a file's, that is safe in a message and on one line of a terminal.

    What is not printable (line breaks, escape sequences, marks that turn the direction of writing,
    bytes that are not UTF-8) is spelt as in a Python string: a line break becomes a backslash and
    an n.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(name)
    )


def host_and_port(address: str, option: str = "--bind") -> tuple[str, int]:
    """Returns the host and port of the value of `option`, an IPv6 host without its brackets.

    Raises Misconfigured.
    """
    host, colon, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]") and len(host) > 2
    if not colon or not host or not (port.isascii() and port.isdecimal()) or host == "[]":
        raise Misconfigured(f"{option} {address!r} is not host:port, such as 127.0.0.1:8080")
    if not is_bracketed and any(character in host for character in ":[]"):
        raise Misconfigured(
            f"{option} {address!r} is not host:port; an IPv6 address stands in brackets, such as "
            "[::1]:8080"
        )
    if int(port) > 65535:
        raise Misconfigured(f"the port in {option} {address!r} is greater than 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_of(host: str, port: int) -> str:
    """Returns "127.0.0.1:80" or "[::1]:80"; `host_and_port` reads it back."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """Returns the host as an address or URL needs it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def layout(tensor_parallel: int) -> str:
    """Returns what to say behind a teacher's device: "", or that several ranks share the model."""
    return "" if tensor_parallel == 1 else f", tensor parallel over {tensor_parallel} ranks"
