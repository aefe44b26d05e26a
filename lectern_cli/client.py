"""The control plane's REST interface, as Python: for `lectern runs`, the demo and your programs.

with ControlPlane("http://127.0.0.1:8080") as service:
    run = service.create_run(load_spec(Path("run.yaml")))
    run = service.wait([run.id])[0]
    print(run.state, run.latest.get("loss/val"))
"""

import difflib
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lectern_common.errors import InvalidRequest, InvalidSpec, LecternError, NotFound, error_of
from lectern_common.run_folder import RESTING, RunState
from lectern_common.run_spec import NAME_PATTERN, RunSpec

PAGE_SIZE = 100
MAX_POINTS = 512
# The server hashes the student's weights and asks the teacher before it accepts a run.
CHECKS_SECONDS = 300.0
_CONNECT_TRIES = 3
_MAX_NAMED = 3


class ControlPlaneUnavailable(LecternError):
    """No answer from the control plane, or one that is not the control plane's."""

    reason = "control_plane_unavailable"
    exit_code = 7
    retryable = True


@dataclass(frozen=True)
class Run:
    """A run as the control plane reports it; `json` is the whole answer.

    `latest` holds the last metrics (`loss/total`, `loss/val`, ...), None where one was not finite;
    `resumes_at` is when an interrupted run goes on by itself, in Unix seconds; None: it does not.
    """

    id: str
    name: str
    state: RunState
    reason: str | None
    message: str | None
    step: int
    steps: int
    device: str | None
    tokens_per_second: float | None
    teacher_wait_share: float | None
    latest: dict[str, float | None]
    resumes_at: float | None
    json: dict[str, Any]

    @property
    def rests(self) -> bool:
        """True where no process works on it, or will without being asked."""
        return self.state in RESTING and self.resumes_at is None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Run":
        """Returns the run of an answer. Raises ControlPlaneUnavailable where it is none."""
        try:
            return cls(
                id=data["id"],
                name=data["name"],
                state=RunState(data["state"]),
                reason=data.get("reason"),
                message=data.get("message"),
                step=data.get("step") or 0,
                steps=data.get("steps") or 0,
                device=data.get("device"),
                tokens_per_second=data.get("tokens_per_second"),
                teacher_wait_share=data.get("teacher_wait_share"),
                latest=data.get("latest") or {},
                resumes_at=data.get("resumes_at"),
                json=data,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ControlPlaneUnavailable(
                f"the answer is not a run of this version ({error!r}); are both sides up to date?"
            ) from None


@dataclass(frozen=True)
class MetricsBatch:
    """Some metric records of a run, in the order of their steps.

    Attributes:
        cursor: where the next ones follow.
        rewound: the run went back to a checkpoint; these records begin at its start.
        more: further ones can be read at once.
    """

    records: list[dict[str, Any]]
    cursor: str
    rewound: bool
    more: bool


class ControlPlane:
    """One control plane. Methods raise the errors of errors.py that the server names.

    Args:
        url: such as http://127.0.0.1:8080.
        token: bearer token, where the server asks for one.
        timeout_seconds: for each answer.
        transport: instead of the network; for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidRequest(f"{url!r} does not begin with http:// or https://", "url")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_seconds,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> "ControlPlane":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create_run(self, spec: RunSpec, idempotency_key: str | None = None) -> Run:
        """Returns the accepted run; with a repeated key, the one that the first call made."""
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        body = spec.model_dump(mode="json")
        return Run.of_json(
            self._json("POST", "/runs", json=body, headers=headers, timeout=CHECKS_SECONDS)
        )

    def list_runs(self, states: Sequence[RunState] = ()) -> list[Run]:
        """Returns every run, or those in one of `states`; newest first."""
        return list(self._all_runs(states))

    def get_run(self, run_id: str) -> Run:
        """Returns one run. Raises NotFound."""
        return Run.of_json(self._json("GET", f"/runs/{_segment(run_id)}"))

    def stop_run(self, run_id: str) -> Run:
        """Asks a run to checkpoint and stop. Raises NotFound, Conflict."""
        return Run.of_json(self._json("POST", f"/runs/{_segment(run_id)}/stop"))

    def resume_run(self, run_id: str, changes: dict[str, Any] | None = None) -> Run:
        """Asks a resting run to go on, with the part of its spec that changes (see
        run_spec.RESUME_MAY_CHANGE). Raises NotFound, Conflict, InvalidSpec.
        """
        path = f"/runs/{_segment(run_id)}/resume"
        return Run.of_json(self._json("POST", path, json=changes or {}, timeout=CHECKS_SECONDS))

    def delete_run(self, run_id: str) -> None:
        """Deletes a resting run with its folder, for good. Raises NotFound, Conflict."""
        self._ask("DELETE", f"/runs/{_segment(run_id)}", timeout=CHECKS_SECONDS)

    def metrics(self, run_id: str, after_step: int | None = None) -> list[dict[str, Any]]:
        """Returns every metric record of the steps above `after_step`, in rising order."""
        params: dict[str, str | int] = {} if after_step is None else {"after_step": after_step}
        records: list[dict[str, Any]] = []
        while True:
            batch = self._metrics(run_id, params)
            records = batch.records if batch.rewound else records + batch.records
            if not batch.more:
                return records
            params = {**params, "cursor": batch.cursor}

    def metrics_since(
        self, run_id: str, cursor: str | None, max_points: int = MAX_POINTS
    ) -> "MetricsBatch":
        """Returns what came after `cursor`; with None the whole so far, thinned to about
        `max_points` records. For displays that follow a run.
        """
        if cursor is None:
            return self._metrics(run_id, {"max_points": max_points})
        return self._metrics(run_id, {"cursor": cursor})

    def logs(self, run_id: str, tail: int = 100) -> str:
        """Returns the last lines that the trainer logged."""
        path = f"/runs/{_segment(run_id)}/logs"
        return self._ask("GET", path, params={"tail": tail}).text

    def samples(self, run_id: str, limit: int = 64) -> list[dict[str, Any]]:
        """Returns the last samples, each {"step", "prompt", "student", "teacher"}, oldest first."""
        answer = self._json("GET", f"/runs/{_segment(run_id)}/samples", params={"limit": limit})
        return list(answer["samples"])

    def teachers(self) -> list[dict[str, Any]]:
        """Returns what the control plane knows of each teacher."""
        return list(self._json("GET", "/teachers")["teachers"])

    def is_ready(self) -> bool:
        """Returns True where the control plane takes runs."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def wait(
        self,
        run_ids: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.5,
        on_poll: Callable[[list[Run]], None] = lambda runs: None,
    ) -> list[Run]:
        """Returns the runs once all of them rest.

        Raises:
            TimeoutError: they do not within `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            runs = [self.get_run(run_id) for run_id in run_ids]
            on_poll(runs)
            if all(run.rests for run in runs):
                return runs
            if deadline is not None and time.monotonic() > deadline:
                states = ", ".join(f"{run.id} {run.state}" for run in runs if not run.rests)
                raise TimeoutError(f"still going after {timeout_seconds:g} s: {states}")
            time.sleep(poll_seconds)

    def _metrics(self, run_id: str, params: dict[str, str | int]) -> "MetricsBatch":
        answer = self._json("GET", f"/runs/{_segment(run_id)}/metrics", params=params)
        return MetricsBatch(
            answer["metrics"], answer["cursor"], rewound=answer["rewound"], more=answer["more"]
        )

    def _all_runs(self, states: Sequence[RunState]) -> Iterator[Run]:
        cursor: str | None = None
        while True:
            params: dict[str, Any] = {"limit": PAGE_SIZE, "state": [str(state) for state in states]}
            if cursor is not None:
                params["cursor"] = cursor
            answer = self._json("GET", "/runs", params=params)
            yield from map(Run.of_json, answer["runs"])
            cursor = answer.get("next_cursor")
            if cursor is None:
                return

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        response = self._ask(method, path, **request)
        try:
            data = response.json()
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise ControlPlaneUnavailable(f"{self.url} is not a Lectern control plane")
        return data

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Returns a successful response. Asks again where no connection came about: then nothing
        was sent."""
        for attempt in range(_CONNECT_TRIES):
            try:
                response = self._http.request(method, path, **request)
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if attempt == _CONNECT_TRIES - 1:
                    raise ControlPlaneUnavailable(
                        f"no control plane at {self.url} ({error}); start one with `lectern up`, "
                        "or set --url or LECTERN_URL"
                    ) from None
                time.sleep(0.2)
            except httpx.HTTPError as error:
                what = str(error) or type(error).__name__
                raise ControlPlaneUnavailable(f"{self.url} did not answer: {what}") from None
        if response.is_success:
            return response
        refusal = problem(response)
        if isinstance(refusal, NotFound) and path.startswith("/runs/"):
            refusal = NotFound(f"{refusal}{self._did_you_mean(path.split('/')[2])}")
        raise refusal

    def _did_you_mean(self, run_id: str) -> str:
        """Returns what ends the message on a run that is not there: ids that are like its own.

        An id is a name and some letters more: a name alone stands for its newest runs.
        """
        try:
            runs = self.list_runs()
        except LecternError:
            return ""  # the run is missing all the same
        like = [run.id for run in runs if run.name == run_id]
        like = like or difflib.get_close_matches(run_id, [run.id for run in runs])
        return f"; did you mean {' or '.join(like[:_MAX_NAMED])}?" if like else ""


def problem(response: httpx.Response) -> LecternError:
    """Returns the error that a problem+json response stands for."""
    try:
        data = response.json()
    except ValueError:
        data = None
    if not isinstance(data, dict) or "reason" not in data:
        return ControlPlaneUnavailable(
            f"{response.request.url} answered {response.status_code} {response.reason_phrase}; "
            "is this the address of a Lectern control plane?"
        )
    detail = str(data.get("detail") or data.get("title") or response.reason_phrase)
    fields = [
        (str(entry.get("field") or ""), str(entry.get("message") or ""))
        for entry in data.get("errors") or []
        if isinstance(entry, dict)
    ]
    error = error_of(str(data["reason"]), detail)
    return InvalidSpec(fields) if fields and isinstance(error, InvalidRequest) else error


def _segment(run_id: str) -> str:
    """Returns a run id as one segment of a path; refuses what could be another path."""
    if re.fullmatch(NAME_PATTERN, run_id) is None:
        raise InvalidRequest(f"{run_id!r} is not a run id; `lectern runs list` shows them", "run")
    return run_id
