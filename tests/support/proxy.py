"""A TCP proxy that cuts connections in the middle of what the server sends."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

_BLOCK_BYTES = 1 << 16


class CuttingProxy:
    """Forwards to `target`, and cuts as many connections as `cuts` has numbers.

    A connection is cut, with a reset on both sides, once so many bytes of the server's have passed;
    one that ends earlier leaves its number to the next.
    """

    def __init__(self, target: str, cuts: Sequence[int]) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cuts = list(cuts)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._sockets:
                _reset(end)
        for thread in self._threads:
            thread.join()

    def _start(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

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
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            self._start(self._forward_all, client, server)

    def _forward_all(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(client, server), daemon=True)
        back.start()
        limit = self._cuts[0] if self._cuts else None
        is_cut = self._pump(server, client, limit)
        if is_cut and limit is not None:
            with self._lock:
                self._cuts.remove(limit)
        for end in (client, server):
            _reset(end)
        back.join()
        with self._lock:
            self._sockets -= {client, server}
        for end in (client, server):
            end.close()

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None = None) -> bool:
        """Forwards until one side ends, or `limit` bytes have passed: then returns True."""
        left = limit
        while left is None or left > 0:
            try:
                data = source.recv(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES))
                sink.sendall(data)
            except OSError:
                return False
            if not data:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return False
            left = None if left is None else left - len(data)
        return True


def _reset(end: socket.socket) -> None:
    """Makes the peer see a reset, and wakes who reads here. Closing it is still to be done."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutting_proxy(target: str, cuts: Sequence[int]) -> Iterator[CuttingProxy]:
    """Yields a proxy, and closes it."""
    proxy = CuttingProxy(target, cuts)
    try:
        yield proxy
    finally:
        proxy.close()
