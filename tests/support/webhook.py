"""A receiver of alerts on loopback that misbehaves as told."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = int | Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Got:
    """One request."""

    path: str
    headers: dict[str, str]  # lower-case names
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Webhook:
    """The requests so far, and how the next ones are answered.

    Attributes:
        behaviours: of the next requests, in order.
        usual: of all others: a status, or what writes the answer.
    """

    url: str
    got: list[Got] = field(default_factory=list)
    behaviours: list[Behaviour] = field(default_factory=list)
    usual: Behaviour = 204
    ended: threading.Event = field(default_factory=threading.Event)

    def hangs(self, _: BaseHTTPRequestHandler) -> None:
        """Says nothing until the receiver is shut down."""
        self.ended.wait(60)


@contextmanager
def webhook(path: str = "/hook", tls: ssl.SSLContext | None = None) -> Iterator[Webhook]:
    """Yields a receiver that is up until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            behaviour = receiver.behaviours.pop(0) if receiver.behaviours else receiver.usual
            receiver.got.append(Got(self.path, headers, body))
            if callable(behaviour):
                behaviour(self)
                return
            self.send_response(behaviour)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that hung up

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    receiver = Webhook(f"{scheme}://127.0.0.1:{server.server_address[1]}{path}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
