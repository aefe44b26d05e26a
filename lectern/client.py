"""The control plane's REST interface, as Python: for `lectern runs`, the demo and your programs.

with Client("http://127.0.0.1:8080") as client:
    run = client.create_run(load_spec(Path("run.yaml")))
    run = client.wait([run.id])[0]
    print(run.state, run.latest.get("loss/val"))
"""

import difflib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from lectern_common.errors import InvalidRequest, InvalidSpec, LecternError, NotFound, error_of
from lectern_common.run_folder import RESTING, RunState
from lectern_common.spec.run_spec import NAME_PATTERN, RunSpec

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
class RunStatus:
    """A run as the control plane reports it; `json` is the whole answer.

    Attributes:
        id: the name and some letters more.
        name: of the spec.
        state: queued, running, succeeded, ...
        reason: a word for why it is in this state.
        message: the same in a sentence.
        step: steps done.
        steps: that the spec asks for.
        device: that it trains on.
        tokens_per_second: of the last steps.
        teacher_wait_share: share of a step's time that it waits for its teacher.
        latest: the last metrics (`loss/total`, `loss/val`, ...); None means not finite.
        resumes_at: when an interrupted run goes on by itself, in Unix seconds; None means never.
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
        """True if no process works on it, or will without being asked."""
        return self.state in RESTING and self.resumes_at is None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "RunStatus":
        """Returns the run of an answer. Raises ControlPlaneUnavailable if it is not one."""
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
            raise _unknown_form("a run", error) from None


@dataclass(frozen=True)
class TeacherStatus:
    """A teacher as the control plane knows it; `json` is the whole answer.

    Attributes:
        address: host:port.
        reachable: it answered the last time it was asked.
        problem: why it is not reachable.
        configured: named when the control plane started, not only by a run.
        model: what it serves; None, as everything below, if it has never answered.
        num_parameters: of the model.
        fingerprint: a hash that promises equal answers.
        weights_sha256: of the model's weights.
    """

    address: str
    reachable: bool
    problem: str | None
    configured: bool
    model: str | None
    num_parameters: int | None
    fingerprint: str | None
    weights_sha256: str | None
    json: dict[str, Any]

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "TeacherStatus":
        """Returns the teacher of an answer. Raises ControlPlaneUnavailable if it is not one."""
        try:
            return cls(
                address=data["address"],
                reachable=data["reachable"],
                problem=data.get("problem"),
                configured=data["configured"],
                model=data.get("model"),
                num_parameters=data.get("num_parameters"),
                fingerprint=data.get("fingerprint"),
                weights_sha256=data.get("weights_sha256"),
                json=data,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _unknown_form("a teacher", error) from None


@dataclass(frozen=True)
class Sample:
    """What a run's student wrote on after a prompt at an evaluation.

    Attributes:
        step: of the evaluation.
        prompt: as the spec has it.
        student: what the student wrote.
        teacher: what the teacher wrote; None if the run has no teacher, or until it has answered.
    """

    step: int
    prompt: str
    student: str
    teacher: str | None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Sample":
        """Returns the sample of an answer. Raises ControlPlaneUnavailable if it is not one."""
        try:
            return cls(data["step"], data["prompt"], data["student"], data["teacher"])
        except (KeyError, TypeError) as error:
            raise _unknown_form("a sample", error) from None


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


class Client:
    """One control plane, over REST.

    Every method that asks the server may also raise ControlPlaneUnavailable (nobody answers, or
    not as a control plane does), Unauthenticated (the token is missing or wrong), InvalidRequest
    (what is asked for is not well formed) and whatever else of `lectern_common.errors` the server
    names.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connects at the first call, not here.

        Args:
            url: such as http://127.0.0.1:8080.
            token: bearer token, if the server asks for one.
            timeout_seconds: for each answer; what makes the server check a run may take longer.
            transport: instead of the network; for tests.

        Raises:
            InvalidRequest: the URL does not begin with http:// or https://.
        """
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

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used any more."""
        self._http.close()

    def create_run(self, spec: RunSpec, idempotency_key: str | None = None) -> RunStatus:
        """Returns the accepted run.

        Args:
            spec: its paths are below the control plane's roots.
            idempotency_key: a call with the same key returns the run that the first one made; None
                takes a new key.

        Raises:
            InvalidSpec: a field is wrong, or what it names is not there.
            InvalidRequest: the key made another run from another spec.
            LecternError: the teacher does not answer, or does not fit the student and the data.
        """
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        body = spec.model_dump(mode="json")
        return RunStatus.of_json(
            self._json("POST", "/runs", json=body, headers=headers, timeout=CHECKS_SECONDS)
        )

    def list_runs(self, states: Sequence[RunState] = ()) -> list[RunStatus]:
        """Returns every run, or only those in one of `states`; newest first."""
        params: dict[str, Any] = {"limit": PAGE_SIZE, "state": [str(state) for state in states]}
        runs: list[RunStatus] = []
        while True:
            answer = self._json("GET", "/runs", params=params)
            runs += map(RunStatus.of_json, answer["runs"])
            cursor = answer.get("next_cursor")
            if cursor is None:
                return runs
            params["cursor"] = cursor

    def get_run(self, run_id: str) -> RunStatus:
        """Returns one run; its `json` has the spec and the history too.

        Raises:
            NotFound: there is no such run; the message names ids that are like it.
        """
        return RunStatus.of_json(self._json("GET", f"/runs/{_segment(run_id)}"))

    def stop_run(self, run_id: str) -> RunStatus:
        """Asks a run to write a checkpoint and stop; returns it, which may still be at work.

        Raises:
            NotFound: there is no such run.
            Conflict: it has succeeded or failed.
        """
        return RunStatus.of_json(self._json("POST", f"/runs/{_segment(run_id)}/stop"))

    def resume_run(self, run_id: str, changes: dict[str, Any] | None = None) -> RunStatus:
        """Asks a resting run to go on from its newest checkpoint; returns it.

        Args:
            run_id: of the run.
            changes: the part of its spec that changes, such as {"schedule": {"steps": 2000}}; see
                `run_spec.RESUME_MAY_CHANGE`.

        Raises:
            NotFound: there is no such run.
            Conflict: it does not rest, or has nothing more to do.
            InvalidSpec: the changes are not what a resume may change.
        """
        path = f"/runs/{_segment(run_id)}/resume"
        return RunStatus.of_json(
            self._json("POST", path, json=changes or {}, timeout=CHECKS_SECONDS)
        )

    def delete_run(self, run_id: str) -> None:
        """Deletes a resting run with its folder, for good.

        Raises:
            NotFound: there is no such run.
            Conflict: it does not rest, or would go on by itself.
        """
        self._ask("DELETE", f"/runs/{_segment(run_id)}", timeout=CHECKS_SECONDS)

    def metrics(self, run_id: str, after_step: int | None = None) -> list[dict[str, Any]]:
        """Returns the metric records of a run, {"step": 3, "loss/kd": 0.5, ...}, in rising order.

        Args:
            run_id: of the run.
            after_step: only the steps above it; None means all.

        Raises:
            NotFound: there is no such run.
        """
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
    ) -> MetricsBatch:
        """Returns the metric records that followed; for displays that watch a run.

        Args:
            run_id: of the run.
            cursor: of the batch before; None means everything so far, thinned.
            max_points: about how many records are left of it then.

        Raises:
            NotFound: there is no such run.
        """
        if cursor is None:
            return self._metrics(run_id, {"max_points": max_points})
        return self._metrics(run_id, {"cursor": cursor})

    def logs(self, run_id: str, tail: int = 100) -> str:
        """Returns the last lines that the trainer logged. Raises NotFound."""
        path = f"/runs/{_segment(run_id)}/logs"
        return self._ask("GET", path, params={"tail": tail}).text

    def samples(self, run_id: str, limit: int = 64) -> list[Sample]:
        """Returns the last samples, oldest first. Raises NotFound."""
        answer = self._json("GET", f"/runs/{_segment(run_id)}/samples", params={"limit": limit})
        return [Sample.of_json(sample) for sample in answer["samples"]]

    def teachers(self) -> list[TeacherStatus]:
        """Returns what the control plane knows of each teacher."""
        return [
            TeacherStatus.of_json(entry) for entry in self._json("GET", "/teachers")["teachers"]
        ]

    def is_ready(self) -> bool:
        """Returns True if the control plane takes runs; False also if nobody answers."""
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
        on_poll: Callable[[list[RunStatus]], None] = lambda runs: None,
    ) -> list[RunStatus]:
        """Returns the runs once all of them rest.

        Args:
            run_ids: of the runs.
            timeout_seconds: for all of them together; None waits as long as it takes.
            poll_seconds: between two looks.
            on_poll: called with the runs after each look.

        Raises:
            NotFound: one of them does not exist.
            TimeoutError: they do not rest within `timeout_seconds`.
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

    def _metrics(self, run_id: str, params: dict[str, str | int]) -> MetricsBatch:
        answer = self._json("GET", f"/runs/{_segment(run_id)}/metrics", params=params)
        return MetricsBatch(
            answer["metrics"], answer["cursor"], rewound=answer["rewound"], more=answer["more"]
        )

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        data = _mapping_of(self._ask(method, path, **request))
        if data is None:
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
            refusal = NotFound(f"{refusal}{_did_you_mean(self, path.split('/')[2])}")
        raise refusal


def _did_you_mean(client: Client, run_id: str) -> str:
    """Returns what ends the message on a run that is not there: ids that are like its own.

    An id is a name and some letters more: a name alone stands for its newest runs.
    """
    try:
        runs = client.list_runs()
    except LecternError:
        return ""  # the run is missing all the same
    like = [run.id for run in runs if run.name == run_id]
    like = like or difflib.get_close_matches(run_id, [run.id for run in runs])
    return f"; did you mean {' or '.join(like[:_MAX_NAMED])}?" if like else ""


def _unknown_form(what: str, error: Exception) -> ControlPlaneUnavailable:
    return ControlPlaneUnavailable(
        f"the answer is not {what} of this version ({error!r}); are both sides up to date?"
    )


def problem(response: httpx.Response) -> LecternError:
    """Returns the error that a problem+json response stands for."""
    data = _mapping_of(response)
    if data is None or "reason" not in data:
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


def _mapping_of(response: httpx.Response) -> dict[str, Any] | None:
    """Returns the JSON object of a response; None if it is anything else."""
    try:
        data = response.json()
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _segment(run_id: str) -> str:
    """Returns a run id as one segment of a path; refuses what could be another path."""
    if re.fullmatch(NAME_PATTERN, run_id) is None:
        raise InvalidRequest(f"{run_id!r} is not a run id; `lectern runs list` shows them", "run")
    return run_id
