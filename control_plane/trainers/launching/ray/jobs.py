"""Ray's REST interface for jobs: what is asked, what it answers, what a refusal means.

Ray answers 404 for a job that it does not know, in these words, and a traceback with 500 to all
that goes wrong within it. A submit that it will never take is 400 to the head, which asks an agent
of a node, and the head makes 500 of that, with the agent's 400 in its text. Another 404 is not
Ray's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from control_plane.trainers.launching.seam import Sight
from lectern_common.callers import token_in
from lectern_common.errors import BackendDown, LaunchRefused
from lectern_common.run.untrusted import cut

ANSWER_SECONDS = 10.0
FRESH_SECONDS = 1.0  # how old an answer about a job may be
AGAIN_SECONDS = 5.0  # until a head that did not answer is asked again
_UNKNOWN_JOB = "does not exist"
_KNOWN_JOB = "already exists"
_REFUSED_BY_AGENT = "Request failed with status code 400:"
_SIGHTS = {
    "PENDING": Sight.WAITING,
    "RUNNING": Sight.ALIVE,
    "STOPPED": Sight.GONE,
    "SUCCEEDED": Sight.GONE,
    "FAILED": Sight.GONE,
}


@dataclass(frozen=True)
class RayJob:
    """What Ray says of a job.

    Attributes:
        id: its submission id.
        entrypoint: the command that it runs.
        exit_status: as subprocess has it; None while it lives, and if nobody knows.
        message: about its state, in Ray's words.
    """

    id: str
    entrypoint: str
    sight: Sight
    exit_status: int | None
    message: str


class Jobs:
    """The jobs of one cluster.

    Args:
        address: the URL of its head's dashboard.
        token_file: read before every call; None sends no token.
        clock: monotonic seconds.
    """

    def __init__(
        self, address: str, token_file: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token_file = token_file
        self._clock = clock
        # A proxy of this machine's environment is for the way out, not to a cluster.
        self._client = httpx.Client(
            base_url=address.rstrip("/"), timeout=ANSWER_SECONDS, trust_env=False
        )
        self._seen: dict[str, tuple[float, RayJob | None]] = {}
        self._away: tuple[float, str] | None = None  # when it did not answer, and why

    def get(self, job_id: str) -> RayJob | None:
        """Returns the job; None if Ray does not know it. Raises BackendDown."""
        now = self._clock()
        self._seen = {key: one for key, one in self._seen.items() if now < one[0] + FRESH_SECONDS}
        if job_id not in self._seen:
            answer = self._ask("GET", _path(job_id))
            self._seen[job_id] = now, self._job_of(job_id, answer)
        return self._seen[job_id][1]

    def submit(self, body: dict[str, Any]) -> bool:
        """Submits a job; returns False if there is one of its id.

        Raises:
            BackendDown: nothing is known.
            LaunchRefused: Ray will never take it.
        """
        job_id = body["submission_id"]
        answer = self._ask("POST", "/api/jobs/", body)
        self._seen.pop(job_id, None)
        if answer.is_success:
            return True
        if job_id in answer.text and _KNOWN_JOB in answer.text:
            return False
        raise LaunchRefused(f"Ray refuses the job: {_last_line(answer.text)}")

    def stop(self, job_id: str) -> None:
        """Makes Ray send SIGTERM, and SIGKILL after its wait; ignores a job that is over.

        Any number of calls are as one. The stop of a job that waits takes effect when it starts.

        Raises:
            BackendDown: it was not passed on; ask again.
        """
        answer = self._ask("POST", f"{_path(job_id)}/stop", {})
        self._seen.pop(job_id, None)
        if answer.is_success and answer.json().get("stopped") is True:
            return
        job = self.get(job_id)
        if job is not None and job.sight is not Sight.GONE:
            raise BackendDown(f"Ray did not pass the stop on to job {job_id}")

    def close(self) -> None:
        self._client.close()

    def _job_of(self, job_id: str, answer: httpx.Response) -> RayJob | None:
        if not answer.is_success:
            return None
        said = answer.json()
        sight = _SIGHTS.get(said.get("status"))
        entrypoint, status = said.get("entrypoint"), said.get("driver_exit_code")
        if sight is None or not isinstance(entrypoint, str):
            raise BackendDown(self._lost(f"it says nothing that is known of job {job_id}"))
        return RayJob(
            job_id,
            entrypoint,
            sight,
            status if isinstance(status, int) else None,
            cut(f"{said['status']}: {said.get('message') or 'no message'}"),
        )

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Returns an answer of Ray's own: success with an object, unknown job, or refused submit.

        Raises:
            BackendDown: there is none.
        """
        if self._away is not None and self._clock() < self._away[0] + AGAIN_SECONDS:
            raise BackendDown(self._away[1])
        try:
            headers = {} if self._token_file is None else self._authorization(self._token_file)
            answer = self._client.request(method, path, json=body, headers=headers)
            understood = not answer.is_success or isinstance(answer.json(), dict)
        except (httpx.HTTPError, ValueError) as error:
            raise BackendDown(self._lost(str(error) or type(error).__name__)) from None
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise BackendDown(self._lost("it refuses the token of --ray-token-file"))
        unknown = answer.status_code == HTTPStatus.NOT_FOUND and _UNKNOWN_JOB in answer.text
        refused = answer.status_code == HTTPStatus.BAD_REQUEST or _REFUSED_BY_AGENT in answer.text
        if not understood or not (answer.is_success or unknown or refused):
            said = f"HTTP {answer.status_code}: {_last_line(answer.text)}"
            raise BackendDown(self._lost(said))
        self._away = None
        return answer

    def _lost(self, why: str) -> str:
        """Notes that the head is not to be asked for a while; returns a sentence about it."""
        sentence = cut(f"Ray at {self._client.base_url.netloc.decode()} does not answer: {why}")
        self._away = self._clock(), sentence
        return sentence

    def _authorization(self, path: Path) -> dict[str, str]:
        try:
            return {"Authorization": f"Bearer {token_in(path)}"}
        except ValueError as error:
            raise ValueError(f"--ray-token-file {path}: {error}") from None


def _path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _last_line(text: str) -> str:
    """Returns the last line of a traceback, which says what was wrong.

    The head's own traceback ends with that of an agent and a full stop.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return cut(lines[-1]) if lines else "it says nothing"
