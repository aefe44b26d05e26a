"""A Python client of the control plane, for `lectern runs`, the demo and your programs.

with Client("http://127.0.0.1:8080") as client:
    run = client.create_run(load_spec(Path("run.yaml")))
    run = client.wait([run.id])[0]
    print(run.state, run.latest.get("loss/val"))
"""

import difflib
import getpass
import re
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from typing import Any

import httpx

from lectern.reconnect import OUTAGE_SECONDS, Reconnecting, ServerEvent, events_of, followed
from lectern.reconnect import ControlPlaneUnavailable as ControlPlaneUnavailable
from lectern_common.callers import CONTROL_PLANE_TOKEN, is_loopback, token_in
from lectern_common.errors import (
    InvalidRequest,
    InvalidSpec,
    LecternError,
    NotFound,
    Unauthenticated,
    error_of,
)
from lectern_common.roots import Roots
from lectern_common.run.status import RESTING, RunState
from lectern_common.spec.run_spec import NAME_PATTERN, RunSpec

PAGE_SIZE = 100
_HISTORY_PAGE = 200
MAX_POINTS = 512
# The server hashes the student's weights and asks the teacher before it accepts a run.
CHECKS_SECONDS = 300.0
_CONNECT_TRIES = 3
_MAX_NAMED = 3
_WHERE_IT_LIES = (
    "the right one lies in secrets/control-plane under the control plane's home; give that file as "
    "--token-file or in LECTERN_TOKEN_FILE, or the token itself in LECTERN_TOKEN"
)


@dataclass(frozen=True)
class RunStatus:
    """A run as the control plane reports it; `json` is the whole answer.

    Attributes:
        id: the name with a random suffix.
        name: the spec's name.
        state: queued, running, succeeded, ...
        reason: a stable word for why the run is in this state.
        message: the same in a sentence.
        step: steps done.
        steps: steps in the spec.
        device: the device it trains on.
        tokens_per_second: over the last steps.
        teacher_wait_share: share of the step time spent waiting for the teacher; None means that
            the run has no teacher, or no step yet.
        latest: the last metrics (`loss/total`, `loss/val`, ...); None means not finite.
        resumes_at: when an interrupted run resumes by itself, in Unix seconds; None means never,
            or that it waits for `resumes_when`.
        resumes_when: what has to come true before it resumes by itself; None means nothing has to.
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
    resumes_when: str | None
    json: dict[str, Any]

    @property
    def rests(self) -> bool:
        """True if no process works on the run and none will start by itself."""
        goes_on = self.resumes_at is not None or self.resumes_when is not None
        return self.state in RESTING and not goes_on

    @property
    def export(self) -> str | None:
        """The folder of the trained student, on the control plane's machine, if there is one.

        Known only from `get_run`, not from a list of runs.
        """
        folder = self.json.get("folder")
        return f"{folder}/export" if folder and self.state is RunState.SUCCEEDED else None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "RunStatus":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a run."""
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
                resumes_when=data.get("resumes_when"),
                json=data,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unknown_form("a run", error) from None


@dataclass(frozen=True)
class TeacherStatus:
    """A teacher as the control plane knows it; `json` is the whole answer.

    Attributes:
        address: host:port.
        reachable: whether it answered when last asked.
        problem: why it is not reachable.
        configured: named when the control plane was started, not only by a run.
        model: the model it serves; this and everything below is None if it has never answered.
        num_parameters: the model's parameters.
        fingerprint: a hash; teachers with the same fingerprint give equal answers.
        weights_sha256: hash of the model's weights.
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
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a teacher."""
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
class DiskStatus:
    """The disk of the run folders.

    Attributes:
        total_bytes: its size.
        free_bytes: what is free.
        needed_bytes: for the next checkpoint of each active run, with a margin.
        low: less is free than needed.
    """

    total_bytes: int
    free_bytes: int
    needed_bytes: int
    low: bool

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "DiskStatus":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a disk."""
        try:
            return cls(**{entry.name: data[entry.name] for entry in fields(cls)})
        except (KeyError, TypeError) as error:
            raise _unknown_form("a disk", error) from None


@dataclass(frozen=True)
class Sample:
    """What a run's student wrote after a prompt at an evaluation.

    Attributes:
        step: the evaluation's step.
        prompt: as in the spec.
        student: what the student wrote.
        teacher: what the teacher wrote; None if the run has no teacher, or none has answered yet.
    """

    step: int
    prompt: str
    student: str
    teacher: str | None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Sample":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a sample."""
        try:
            return cls(data["step"], data["prompt"], data["student"], data["teacher"])
        except (KeyError, TypeError) as error:
            raise _unknown_form("a sample", error) from None


@dataclass(frozen=True)
class MetricsBatch:
    """Metric records of a run, in step order.

    Attributes:
        cursor: where the next records start.
        rewound: the run went back to a checkpoint; these records start over from its first step.
        more: further records can be read right away.
    """

    records: list[dict[str, Any]]
    cursor: str
    rewound: bool
    more: bool


@dataclass(frozen=True)
class Buckets:
    """One metric as buckets of consecutive lines: lists with one entry a bucket.

    Attributes:
        step: the last step of each bucket.
        first_step: its first.
        mean, min, max: of its finite values; None without one.
        count: how many values were finite.
        non_finite: how many were not.
        tokens: trained on so far, at the last step; None if the trainer did not write it.
        seconds: of training so far, over all attempts, at the last step; or None.
        time: Unix seconds at the last step; or None.
    """

    step: list[int]
    first_step: list[int]
    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]
    count: list[int]
    non_finite: list[int]
    tokens: list[int | None]
    seconds: list[float | None]
    time: list[float | None]

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Buckets":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes buckets."""
        try:
            return cls(**{entry.name: data[entry.name] for entry in fields(cls)})
        except (KeyError, TypeError) as error:
            raise _unknown_form("a series", error) from None


class Client:
    """A client of one control plane, over REST.

    Every method that calls the server may also raise ControlPlaneUnavailable (no answer, or not
    from a control plane), Unauthenticated (the token is missing or wrong), InvalidRequest (the
    request is malformed) and any other error of `lectern_common.errors` that the server names.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Makes a client that connects at its first call.

        Args:
            url: such as http://127.0.0.1:8080.
            token: bearer token; None means the one in secrets/control-plane under LECTERN_HOME
                (~/.lectern), if the server is on this machine and there is such a file. "" sends
                none.
            timeout_seconds: for each answer; calls that make the server check a run get longer.
            transport: replaces the network; for tests.

        Raises:
            InvalidRequest: the URL does not begin with http:// or https://.
        """
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidRequest(f"{url!r} does not begin with http:// or https://", "url")
        if token is None:
            token = _own_token(self.url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={
                "user-agent": _user_agent(),
                **({"authorization": f"Bearer {token}"} if token else {}),
            },
            timeout=timeout_seconds,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        self._http.close()

    def create_run(self, spec: RunSpec, idempotency_key: str | None = None) -> RunStatus:
        """Creates a run; returns it once the control plane has accepted it.

        Args:
            spec: its paths are relative to the control plane's roots.
            idempotency_key: a second call with the same key returns the run of the first; None
                takes a new key.

        Raises:
            InvalidSpec: a field is wrong, or names something that does not exist.
            InvalidRequest: the key was used before with another spec.
            LecternError: the teacher does not answer, or does not fit the student and the data.
        """
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        body = spec.model_dump(mode="json")
        return RunStatus.of_json(
            self._json("POST", "/runs", json=body, headers=headers, timeout=CHECKS_SECONDS)
        )

    def list_runs(
        self,
        states: Sequence[RunState] = (),
        *,
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> list[RunStatus]:
        """Returns every run, newest first.

        Args:
            states: only those in one of these states.
            group: only those of this group.
            tags: only those with all of these tags.
        """
        params: dict[str, Any] = {
            "limit": PAGE_SIZE,
            "state": [str(state) for state in states],
            "tag": list(tags),
            **({} if group is None else {"group": group}),
        }
        runs: list[RunStatus] = []
        while True:
            answer = self._json("GET", "/runs", params=params)
            runs += map(RunStatus.of_json, answer["runs"])
            cursor = answer.get("next_cursor")
            if cursor is None:
                return runs
            params["cursor"] = cursor

    def get_run(self, run_id: str) -> RunStatus:
        """Returns one run; its `json` also has the spec and the history.

        Raises:
            NotFound: there is no such run; the message names similar ids.
        """
        return RunStatus.of_json(self._json("GET", f"/runs/{_segment(run_id)}"))

    def set_labels(self, run_id: str, labels: dict[str, Any]) -> RunStatus:
        """Changes what says something about a run and nothing about its training; returns it.

        Args:
            run_id: the run's id, in any state.
            labels: such as {"priority": 5, "group": None, "tags": ["a"], "notes": "..."}; those
                that are absent stay, and None clears the group.

        Raises:
            NotFound: there is no such run.
            InvalidSpec: a field is no label, or has an invalid value.
        """
        return RunStatus.of_json(self._json("PATCH", f"/runs/{_segment(run_id)}", json=labels))

    def history(self, run_id: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Returns what happened to a run, oldest first: changes of state and trainer's events.

        Each entry has at, kind, message, and of a change of state also state, wanted, attempt,
        reason and `by`, which says who asked for it.

        Args:
            run_id: the run's id.
            limit: only the last so many; None means all.

        Raises:
            NotFound: there is no such run.
        """
        params: dict[str, str | int] = {"limit": _HISTORY_PAGE}
        entries: list[dict[str, Any]] = []
        while True:
            page = self._json("GET", f"/runs/{_segment(run_id)}/history", params=params)
            entries += page["entries"]
            if page["next_cursor"] is None or (limit is not None and len(entries) >= limit):
                return entries[:limit][::-1]
            params["cursor"] = page["next_cursor"]

    def stop_run(self, run_id: str) -> RunStatus:
        """Asks a run to write a checkpoint and stop; returns it, possibly still running.

        Raises:
            NotFound: there is no such run.
            Conflict: it has succeeded or failed.
        """
        return RunStatus.of_json(self._json("POST", f"/runs/{_segment(run_id)}/stop"))

    def resume_run(self, run_id: str, changes: dict[str, Any] | None = None) -> RunStatus:
        """Resumes a resting run from its newest checkpoint; returns it.

        Args:
            run_id: the run's id.
            changes: what to change in its spec, such as {"schedule": {"steps": 2000}}; see
                `run_spec.RESUME_MAY_CHANGE`.

        Raises:
            NotFound: there is no such run.
            Conflict: it is not at rest, or has nothing left to do.
            InvalidSpec: a resume may not change these fields, or not to these values.
        """
        path = f"/runs/{_segment(run_id)}/resume"
        return RunStatus.of_json(
            self._json("POST", path, json=changes or {}, timeout=CHECKS_SECONDS)
        )

    def delete_run(self, run_id: str) -> None:
        """Deletes a resting run and its folder for good.

        Raises:
            NotFound: there is no such run.
            Conflict: it is not at rest, or would resume by itself.
        """
        self._ask("DELETE", f"/runs/{_segment(run_id)}", timeout=CHECKS_SECONDS)

    def metrics(self, run_id: str, after_step: int | None = None) -> list[dict[str, Any]]:
        """Returns the metric records of a run, {"step": 3, "loss/kd": 0.5, ...}, in step order.

        Args:
            run_id: the run's id.
            after_step: returns only later steps; None means all.

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
        """Returns the metric records since the last batch; for displays that watch a run.

        Args:
            run_id: the run's id.
            cursor: the last batch's cursor; None means all records so far, thinned.
            max_points: about how many records to keep when thinning.

        Raises:
            NotFound: there is no such run.
        """
        if cursor is None:
            return self._metrics(run_id, {"max_points": max_points})
        return self._metrics(run_id, {"cursor": cursor})

    def series(
        self,
        run_id: str,
        keys: Sequence[str] | None = None,
        *,
        max_points: int = MAX_POINTS,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> dict[str, Buckets]:
        """Returns each metric as at most `max_points` buckets, which lose no low and no high.

        If a metric has no more values than that, each value is a bucket of its own. This reads
        little however long the run is; `metrics` reads all of it.

        Args:
            run_id: the run's id.
            keys: metrics such as "loss/kd"; None means all that the run has logged.
            max_points: buckets of each metric, 16 to 5000.
            from_step: leaves out earlier steps.
            to_step: leaves out later steps.

        Raises:
            NotFound: there is no such run.
        """
        given = {"from_step": from_step, "to_step": to_step}
        params: dict[str, str | int] = {k: v for k, v in given.items() if v is not None}
        params["max_points"] = max_points
        if keys is not None:
            params["keys"] = ",".join(keys)
        answer = self._json("GET", f"/runs/{_segment(run_id)}/series", params=params)
        series = _mapping_in(answer, "series")
        return {key: Buckets.of_json(buckets) for key, buckets in series.items()}

    def logs(self, run_id: str, tail: int = 100) -> str:
        """Returns the last `tail` lines of the trainer's log. Raises NotFound."""
        path = f"/runs/{_segment(run_id)}/logs"
        return self._ask("GET", path, params={"tail": tail}).text

    def follow_log(
        self,
        run_id: str,
        tail: int = 100,
        *,
        outage_seconds: float = OUTAGE_SECONDS,
        say: Callable[[str], None] = lambda text: None,
    ) -> Iterator[str]:
        """Yields the last lines of the trainer's log, then what is appended, until the run rests.

        Each line comes once, also if the control plane is restarted meanwhile.

        Args:
            run_id: the run's id.
            tail: lines to begin with, at most 5000.
            outage_seconds: how long the control plane may be away in between.
            say: is told when it is away and back, and what of the log is missing.

        Raises:
            NotFound: there is no such run, or it was deleted.
            ControlPlaneUnavailable: it does not answer at first, or is away for longer.
        """
        path = f"/runs/{_segment(run_id)}/log/stream"

        def opened(last: str | None) -> Generator[ServerEvent]:
            return self._events(path, {"tail": tail} if last is None else {"after": last})

        with closing(followed(opened, Reconnecting(say, outage_seconds))) as events:
            for event in events:
                if event.kind == "log":
                    yield str(event.data.get("text", ""))
                elif event.kind == "cut":
                    say(f"{event.data.get('bytes')} bytes of the log are no longer there")
                elif event.kind == "rewind":
                    say("the log was replaced; it follows from its start")
                elif event.kind == "rests":
                    return
                elif event.kind == "deleted":
                    raise NotFound(f"run {run_id} was deleted")

    def samples(self, run_id: str, limit: int = 64) -> list[Sample]:
        """Returns the last samples, oldest first. Raises NotFound."""
        answer = self._json("GET", f"/runs/{_segment(run_id)}/samples", params={"limit": limit})
        return [Sample.of_json(sample) for sample in answer["samples"]]

    def teachers(self) -> list[TeacherStatus]:
        """Returns what the control plane knows about each teacher."""
        return [
            TeacherStatus.of_json(entry) for entry in self._json("GET", "/teachers")["teachers"]
        ]

    def disk(self) -> DiskStatus:
        """Returns how full the disk of the run folders is.

        Raises:
            NotFound: the control plane is of a release that does not tell.
        """
        return DiskStatus.of_json(self._json("GET", "/disk"))

    def is_ready(self) -> bool:
        """Returns True if the control plane accepts runs; False also if nothing answers."""
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
        outage_seconds: float = OUTAGE_SECONDS,
        say: Callable[[str], None] = lambda text: None,
    ) -> list[RunStatus]:
        """Waits until all runs are at rest; returns them.

        Args:
            run_ids: the runs' ids.
            timeout_seconds: for all of them together; None means no limit.
            poll_seconds: pause between two polls.
            on_poll: called with the runs after each poll.
            outage_seconds: how long the control plane may be away in between, such as during its
                restart.
            say: is told when it is away, and when it is back.

        Raises:
            ControlPlaneUnavailable: it does not answer the first poll, or is away for longer.
            NotFound: one of them does not exist.
            TimeoutError: they are not all at rest after `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if timeout_seconds is not None:
            outage_seconds = min(outage_seconds, timeout_seconds)
        outlasting = Reconnecting(say, outage_seconds)
        while True:
            runs = [outlasting.ask(partial(self.get_run, run_id)) for run_id in run_ids]
            on_poll(runs)
            if all(run.rests for run in runs):
                return runs
            if deadline is not None and time.monotonic() > deadline:
                states = ", ".join(f"{run.id} {run.state}" for run in runs if not run.rests)
                raise TimeoutError(f"not at rest after {timeout_seconds:g} s: {states}")
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
        """Returns a successful response. Retries only if no connection was made, so that no
        request is sent twice."""
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
        raise self._refusal(response, path)

    def _events(self, path: str, params: dict[str, str | int]) -> Generator[ServerEvent]:
        """Yields the events of a stream until it ends."""
        try:
            with self._http.stream("GET", path, params=params) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(response, path)
                yield from events_of(response.iter_lines())
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ControlPlaneUnavailable(f"no stream from {self.url}: {what}") from None

    def _refusal(self, response: httpx.Response, path: str) -> LecternError:
        """Returns the error that a refused request raises."""
        refusal = problem(response)
        if response.status_code == 401:
            return Unauthenticated(f"{refusal}: {_WHERE_IT_LIES}")
        if isinstance(refusal, NotFound) and path.startswith("/runs/"):
            return NotFound(f"{refusal}{_did_you_mean(self, path.split('/')[2])}")
        return refusal


def _user_agent() -> str:
    """Returns "lectern/0.3.0 (ann@box)", which the history of a run shows beside a change."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    who = re.sub(r"[^\w.@-]", "?", f"{user}@{socket.gethostname()}", flags=re.ASCII)
    return f"lectern/{version('lectern')} ({who})"


def _own_token(url: str) -> str | None:
    """Returns the token that a control plane on this machine has made; None if there is none.

    It is sent to this machine only: whoever got it could steer the runs here.
    """
    try:
        if not is_loopback(httpx.URL(url).host):
            return None
        return token_in(Roots.of_home().secrets / CONTROL_PLANE_TOKEN) or None
    except (ValueError, httpx.InvalidURL):
        return None


def _did_you_mean(client: Client, run_id: str) -> str:
    """Returns the end of the message about a missing run: similar ids, or "" if there are none.

    An id is a name with a random suffix; a name without one matches its newest runs.
    """
    try:
        runs = client.list_runs()
    except LecternError:
        return ""  # the run is missing either way
    like = [run.id for run in runs if run.name == run_id]
    like = like or difflib.get_close_matches(run_id, [run.id for run in runs])
    return f"; did you mean {' or '.join(like[:_MAX_NAMED])}?" if like else ""


def _unknown_form(what: str, error: Exception) -> ControlPlaneUnavailable:
    return ControlPlaneUnavailable(
        f"the answer does not describe {what} ({error!r}); are both sides up to date?"
    )


def problem(response: httpx.Response) -> LecternError:
    """Returns the error that a problem+json response describes."""
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
    error.retryable = error.retryable or data.get("retryable") is True
    return InvalidSpec(fields) if fields and isinstance(error, InvalidRequest) else error


def _mapping_of(response: httpx.Response) -> dict[str, Any] | None:
    """Returns the JSON object of a response; None if it is anything else."""
    try:
        data = response.json()
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _mapping_in(answer: dict[str, Any], key: str) -> dict[str, Any]:
    found = answer.get(key)
    if not isinstance(found, dict):
        raise _unknown_form(key, TypeError(type(found).__name__))
    return found


def _segment(run_id: str) -> str:
    """Returns a run id as one URL path segment. Raises InvalidRequest unless it is one."""
    if re.fullmatch(NAME_PATTERN, run_id) is None:
        raise InvalidRequest(f"{run_id!r} is not a run id; `lectern runs list` shows them", "run")
    return run_id
