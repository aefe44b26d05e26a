"""Sweeps as the control plane reports them, for `lectern.Client` and `lectern sweeps`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from lectern_common.run.status import RESTING, RunState

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        run_id: its id.
        state: queued, running, succeeded, ...
        step: steps done.
        steps: steps in its spec.
        settings: value by dotted path, of the settings in which the runs differ.
        value: the last value of the sweep's metric; None without one, or if it was not finite.
        best: the best value so far.
        at_step: the first step that had it.
        note: why it cannot be the best: no value yet, or it diverged.
        resumes: it is interrupted, and goes on by itself.
    """

    run_id: str
    state: RunState
    step: int
    steps: int
    settings: dict[str, Any]
    value: float | None
    best: float | None
    at_step: int | None
    note: str | None
    resumes: bool

    @property
    def rests(self) -> bool:
        """True if no process works on the run and none will start by itself."""
        return self.state in RESTING and not self.resumes


@dataclass(frozen=True)
class SweepGroup:
    """Runs that differ only in `seed`.

    Attributes:
        settings: those of its runs, without `seed`.
        runs: run ids.
        n: how many of them have a best value; the mean is over these values.
        mean: of their best values; None without one.
        spread: the sample standard deviation of these; None with fewer than two.
        note: why it cannot be the best.
    """

    settings: dict[str, Any]
    runs: list[str]
    n: int
    mean: float | None
    spread: float | None
    note: str | None


@dataclass(frozen=True)
class SweepStatus:
    """A sweep with the table of its runs; `json` is the whole answer.

    Attributes:
        id: the name with a random suffix; the `group` of its runs.
        name: as it was asked for.
        metric: what its runs are compared by.
        goal: "min" or "max": which value of it is best.
        settings: dotted paths in which its runs differ.
        runs: those that still exist, in the order in which they were made.
        groups: the same runs, those together that differ only in `seed`.
        best: the run id of the best; None while there is none.
        best_group: an index into `groups`; the best by mean.
        teacher: how much of the teacher's work its runs share; None without a teacher.
    """

    id: str
    name: str
    metric: str
    goal: str
    settings: list[str]
    runs: list[SweepRun]
    groups: list[SweepGroup]
    best: str | None
    best_group: int | None
    teacher: dict[str, Any] | None
    json: dict[str, Any]

    @property
    def rests(self) -> bool:
        """True if no run is active, queued, or goes on by itself."""
        return all(run.rests for run in self.runs)

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "SweepStatus":
        """Parses an answer. Raises KeyError, TypeError or ValueError if it is no sweep."""
        runs = [_entry(SweepRun, {**one, "state": RunState(one["state"])}) for one in data["runs"]]
        groups = [_entry(SweepGroup, one) for one in data["groups"]]
        return _entry(cls, {**data, "runs": runs, "groups": groups, "json": data})


@dataclass(frozen=True)
class SweepSummary:
    """A sweep in a list; `states` is how many of its runs are in which state."""

    id: str
    name: str
    metric: str
    goal: str
    settings: list[str]
    num_runs: int
    states: dict[str, int]
    created_at: float
    json: dict[str, Any]

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "SweepSummary":
        """Parses an answer. Raises KeyError or TypeError if it is no sweep."""
        return _entry(cls, {**data, "json": data})


def _entry(kind: type[_Entry], data: Mapping[str, Any]) -> _Entry:
    """Returns a dataclass of those values that it has fields for."""
    return kind(**{one.name: data[one.name] for one in fields(kind)})  # type: ignore[arg-type]
