"""A head of a Ray cluster that a test answers for: its REST interface for jobs, over a dict.

It answers as Ray 2.60 does (dashboard/modules/job/job_head.py): 404 in words for an unknown job,
500 with the traceback of an agent's 400 for a second submit of an id, 401 and 403 for a token that
is missing or wrong.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from control_plane.trainers.launching.ray.launcher import RayLauncher, RayOptions
from tests.support.fakes import FakeClock


@dataclass
class FakeRay:
    """What the head knows, and how it is to answer.

    Attributes:
        jobs: by submission id, as GET shows them.
        bodies: of every submit.
        calls: "METHOD path" of every request.
        token: that a request must have.
        answers: (status, text) instead of all else.
        stops: whether a stop reaches the job.
    """

    address: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    token: str | None = None
    answers: tuple[int, str] | None = None
    stops: bool = True

    def launcher(
        self,
        clock: FakeClock,
        env: dict[str, str] | None = None,
        token_file: Path | None = None,
        grace_seconds: float = 60.0,
    ) -> RayLauncher:
        """Returns a launcher; another one is that of a control plane that was restarted."""
        options = RayOptions(self.address, token_file, grace_seconds)
        return RayLauncher(("python", "-m", "trains"), {}, options, clock, env or {})

    def answer(self, method: str, path: str, body: Any, authorization: str) -> tuple[int, str]:
        self.calls.append(f"{method} {path}")
        if self.answers is not None:
            return self.answers
        if self.token is not None and not authorization:
            return 401, "Unauthorized: Missing authentication token"
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 403, "Forbidden: Invalid authentication token"
        if (method, path) == ("POST", "/api/jobs/"):
            return self._submit(body)
        job_id, _, stop = path.removeprefix("/api/jobs/").partition("/")
        if job_id not in self.jobs:
            return 404, f"Job {job_id} does not exist"
        if method == "GET":
            return 200, json.dumps(self.jobs[job_id])
        assert (method, stop) == ("POST", "stop")
        return 200, json.dumps({"stopped": self.stops})

    def _submit(self, body: dict[str, Any]) -> tuple[int, str]:
        self.bodies.append(body)
        job_id = body["submission_id"]
        if job_id in self.jobs:
            said = f"ValueError: Job with submission_id {job_id} already exists. Please use another"
            said = f"Traceback (most recent call last):\n{said} submission_id.\n."
            return 500, f"RuntimeError: Request failed with status code 400: {said}\n"
        message = "Job has not started yet. It may be waiting for resources."
        job = {"status": "PENDING", "message": message, "driver_exit_code": None}
        self.jobs[job_id] = {**job, "submission_id": job_id, "entrypoint": body["entrypoint"]}
        return 200, json.dumps({"job_id": job_id, "submission_id": job_id})


@contextlib.contextmanager
def fake_ray() -> Iterator[FakeRay]:
    """Yields a head that answers on a free port of 127.0.0.1."""
    ray = FakeRay()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = ray.answer(
                self.command,
                self.path,
                json.loads(body) if body else None,
                self.headers.get("Authorization", ""),
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        ray.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield ray
        finally:
            server.shutdown()
            thread.join()
