"""python -m faults.teacher.clients.attackers HOW ADDRESS ...: a hostile client, in its own process.

read ADDRESS FILE...         sends the request in each file over its own connection, prints
                             "reading" once each has received its first bytes, and reads no more
idle ADDRESS N               holds N connections until standard input ends
ping ADDRESS SECONDS         pings as fast as it can; reopens a closed connection
reset ADDRESS SECONDS        begins calls and cancels them at once
The last three print a count: connections, pings or calls. Uses only the standard library, to start
fast.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from faults.teacher.clients import frames

_PINGS_AT_ONCE = 64
_CALLS_AT_ONCE = 50
# A client's initial window is 65,535 bytes; the server fills it, then waits.
_FIRST_WINDOW_BYTES = 60_000


def read(address: str, *paths: str) -> None:
    with contextlib.ExitStack() as stack:
        for path in paths:
            connection = stack.enter_context(frames.connected(address))
            data = frames.message(Path(path).read_bytes())
            connection.sendall(frames.call(1, frames.SCORE) + _in_frames(data))
            if not _received(connection, _FIRST_WINDOW_BYTES):
                return
        print("reading", flush=True)
        sys.stdin.read()


def _in_frames(data: bytes) -> bytes:
    """Returns the DATA frames of the whole request of stream 1."""
    parts = [data[start : start + 16_384] for start in range(0, len(data), 16_384)]
    flags = [0] * (len(parts) - 1) + [frames.END_STREAM]
    return b"".join(
        frames.frame(frames.DATA, flag, 1, part) for flag, part in zip(flags, parts, strict=True)
    )


def _received(connection: socket.socket, number: int) -> bool:
    """Reads `number` bytes; returns whether they arrived."""
    connection.settimeout(10)
    while number > 0:
        part = connection.recv(min(number, 4096))
        if not part:
            return False
        number -= len(part)
    return True


def idle(address: str, number: str) -> None:
    held: list[socket.socket] = []
    for _ in range(int(number)):
        try:
            held.append(frames.connected(address))
        except OSError:
            break
    print(len(held), flush=True)
    sys.stdin.read()
    for connection in held:
        connection.close()


def ping(address: str, seconds: str) -> None:
    burst = frames.frame(frames.PING, 0, 0, b"12345678") * _PINGS_AT_ONCE
    print(_flood(address, float(seconds), lambda _: burst) * _PINGS_AT_ONCE)


def reset(address: str, seconds: str) -> None:
    def burst(number: int) -> bytes:
        first = 1 + 2 * _CALLS_AT_ONCE * number
        streams = range(first, first + 2 * _CALLS_AT_ONCE, 2)
        return b"".join(
            frames.call(stream, frames.SCORE) + frames.reset(stream) for stream in streams
        )

    print(_flood(address, float(seconds), burst) * _CALLS_AT_ONCE)


def _flood(address: str, seconds: float, burst: Callable[[int], bytes]) -> int:
    """Sends bursts, reconnecting whenever the connection closes; returns how many."""
    deadline = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < deadline:
        try:
            with frames.connected(address) as connection:
                number = 0
                connection.setblocking(False)
                while time.monotonic() < deadline:
                    connection.setblocking(True)
                    connection.settimeout(1)
                    connection.sendall(burst(number))
                    number += 1
                    sent += 1
                    if _is_closed(connection):
                        break
        except OSError:
            continue
    return sent


def _is_closed(connection: socket.socket) -> bool:
    """Reads what has arrived; returns whether the peer has closed."""
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    return True


_WAYS: dict[str, Callable[..., None]] = {
    "read": read,
    "idle": idle,
    "ping": ping,
    "reset": reset,
}

if __name__ == "__main__":
    _WAYS[sys.argv[1]](*sys.argv[2:])
