"""What a control plane answers about runs, teachers, its disk and its alerts."""

from dataclasses import dataclass, fields
from typing import Any

from lectern.client.problems import unknown_form
from lectern_common.run.status import RESTING, RunState


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
            raise unknown_form("a run", error) from None


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
            raise unknown_form("a teacher", error) from None


@dataclass(frozen=True)
class DiskStatus:
    """The disk of the run folders.

    Attributes:
        total_bytes: its size.
        free_bytes: what is free.
        needed_bytes: for the next checkpoint of each active run, with a margin.
        low: less is free than needed.
        warning: a sentence if it is low, too small for what active runs still write, or full within
            a day at its present pace; None otherwise, and from earlier releases.
    """

    total_bytes: int
    free_bytes: int
    needed_bytes: int
    low: bool
    warning: str | None = None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "DiskStatus":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a disk."""
        try:
            known = {"warning": None, **data}
            return cls(**{entry.name: known[entry.name] for entry in fields(cls)})
        except (KeyError, TypeError) as error:
            raise unknown_form("a disk", error) from None


@dataclass(frozen=True)
class Pruned:
    """What `prune_runs` has deleted, or would delete.

    Attributes:
        runs: {"run_id", "name", "state", "since", "disk_bytes"} of each, oldest first.
        bytes: what is free without them; a file that another run shares frees nothing.
        deleted: how many were deleted; 0 in a dry run.
        left_out: {"run_id", "detail"} of those that could not be deleted.
    """

    runs: list[dict[str, Any]]
    bytes: int
    deleted: int
    left_out: list[dict[str, Any]]

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Pruned":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes pruned runs."""
        try:
            return cls(**{entry.name: data[entry.name] for entry in fields(cls)})
        except (KeyError, TypeError) as error:
            raise unknown_form("pruned runs", error) from None


@dataclass(frozen=True)
class Alert:
    """Something that somebody should hear of; `json` is the whole answer.

    Attributes:
        seq: rises with each alert.
        at: when it was made, in Unix seconds.
        kind: failed, diverged, finished, stalled, waiting or disk.
        run_id: the run that it is about; None if it is about the control plane.
        message: one sentence.
        delivered_at: when the webhook's receiver took it; None if it has not, or none is set.
        last_error: what was wrong with the last attempt to deliver it.
    """

    seq: int
    at: float
    kind: str
    run_id: str | None
    message: str
    delivered_at: float | None
    last_error: str | None
    json: dict[str, Any]

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Alert":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes an alert."""
        names = [entry.name for entry in fields(cls) if entry.name != "json"]
        try:
            return cls(**{name: data[name] for name in names}, json=data)
        except (KeyError, TypeError) as error:
            raise unknown_form("an alert", error) from None
