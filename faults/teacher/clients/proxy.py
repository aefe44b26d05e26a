"""A TCP proxy that acts as a bad network: distant, slow, stalling, resetting."""

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable

_BLOCK_BYTES = 16_384


class BadNetwork:
    """Forwards to `target`. Use as a context manager.

    Args:
        target: host:port.
        latency_seconds: per round trip; half of it each way.
        bytes_per_second: over all connections, each way.
    """

    def __init__(self, target: str, latency_seconds: float, bytes_per_second: float) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._one_way_seconds = latency_seconds / 2
        self._lines = [_Line(bytes_per_second) for _ in range(2)]
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stalled_until = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        _start(self._accept)

    def __enter__(self) -> "BadNetwork":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """Resets every connection; new ones are accepted."""
        with self._lock:
            ends, self._sockets = self._sockets, set()
        for end in ends:
            _reset(end)

    def stall(self, seconds: float) -> None:
        """Holds back all data for this long, in both directions; loses nothing."""
        self._stalled_until = time.monotonic() + seconds

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._sockets |= {client, server}
            for line, source, sink in zip(
                self._lines, (client, server), (server, client), strict=True
            ):
                self._forward(line, source, sink)

    def _forward(self, line: "_Line", source: socket.socket, sink: socket.socket) -> None:
        """Starts one direction of a connection: a reader, and a writer with a delay."""
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def read() -> None:
            data = b"begin"
            while data:
                try:
                    data = source.recv(_BLOCK_BYTES)
                except OSError:
                    data = b""
                line.carry(len(data))
                under_way.put((time.monotonic() + self._one_way_seconds, data))

        def write() -> None:
            while True:
                arrives, data = under_way.get()
                while (wait := max(arrives, self._stalled_until) - time.monotonic()) > 0:
                    time.sleep(wait)
                try:
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.sendall(data)
                except OSError:
                    return

        _start(read)
        _start(write)


class _Line:
    """One direction's capacity, shared by all connections."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def carry(self, number: int) -> None:
        """Waits until `number` bytes have gone over the line."""
        with self._lock:
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + number / self._bytes_per_second
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _reset(end: socket.socket) -> None:
    """Sends the peer a reset, and wakes the thread that reads here."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()
