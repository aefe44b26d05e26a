"""A small server with the OpenAI interface on loopback, which misbehaves as told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Behaviour = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class OpenAiServer:
    """The requests so far, and how the next ones are answered.

    Attributes:
        url: with /v1.
        got: (path, body, headers) of each request.
        behaviours: of the next requests, in order: what writes the answer, or a status.
        says: returns the answer to a body: a text, or the fields of its choice.
        offers: the paths that it has; others are answered 404.
        most_at_once: requests that were under way at the same time, at most.
    """

    url: str = ""
    got: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    behaviours: list[Behaviour | int] = field(default_factory=list)
    says: Callable[[dict[str, Any]], Any] = lambda body: echo(body)
    offers: tuple[str, ...] = (CHAT, TEXT)
    most_at_once: int = 0
    model: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.got]


def prompt_of(body: dict[str, Any]) -> str:
    """The text of a request: its prompt, or its last message."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def echo(body: dict[str, Any]) -> str:
    return f"answer to {prompt_of(body)}"


def reply(path: str, body: dict[str, Any], said: Any, model: str | None) -> dict[str, Any]:
    """Returns a whole reply around a text, or around the fields of its choice."""
    if isinstance(said, str):
        said = {"message": {"content": said}} if path == CHAT else {"text": said}
    choice = {"index": 0, "finish_reason": "stop", **said}
    if path == CHAT and "message" in choice:
        choice["message"] = {"role": "assistant", **choice["message"]}
    usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    return {"id": "1", "model": model or body["model"], "choices": [choice], "usage": usage}


def write(handler: BaseHTTPRequestHandler, status: int, said: Any, **headers: str) -> None:
    """Answers with JSON, or with bytes as they are."""
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", headers.pop("content_type", "application/json"))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def openai_server(port: int = 0) -> Iterator[OpenAiServer]:
    """Yields a server that is up until the block ends."""
    server = OpenAiServer()
    under_way = [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                under_way[0] += 1
                server.most_at_once = max(server.most_at_once, under_way[0])
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.got.append((self.path, body, headers))
                behaviour = server.behaviours.pop(0) if server.behaviours else None
            try:
                self._answer(body, behaviour)
            finally:
                with server.lock:
                    under_way[0] -= 1

        def _answer(self, body: dict[str, Any], behaviour: Behaviour | int | None) -> None:
            if callable(behaviour):
                behaviour(self)
            elif behaviour is not None:
                write(self, behaviour, {"error": {"message": f"status {behaviour}"}})
            elif self.path not in server.offers:
                write(self, 404, {"detail": "Not Found"})
            else:
                write(self, 200, reply(self.path, body, server.says(body), server.model))

        def log_message(self, *_: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # a client that was killed

    with Listening(("127.0.0.1", port), Handler) as listening:
        server.url = f"http://127.0.0.1:{listening.server_port}/v1"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
