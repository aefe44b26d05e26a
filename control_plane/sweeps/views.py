"""The model of every response about sweeps."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from control_plane.views.checks import CheckView
from lectern_common.run.status import RunState
from lectern_common.spec.sweep import Goal


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class SweepRunView(_View):
    """A run of a sweep, with what it set and what it reached."""

    run_id: str
    name: str
    state: RunState
    reason: str | None
    message: str | None
    step: int
    steps: int
    settings: dict[str, Any]
    """Value by dotted path, of the settings in which the runs of the sweep differ."""
    value: float | None
    """The last value of the metric; null if there is none, or it was not finite."""
    value_step: int | None
    best: float | None
    """The best finite value so far."""
    at_step: int | None
    """The first step that had it."""
    note: str | None
    """Why it cannot be the best: no value yet, or it diverged."""
    resumes: bool
    """It is interrupted, and goes on by itself."""
    group: int
    """Index into `groups`."""


class SweepGroupView(_View):
    """Runs that differ in nothing but `seed`."""

    settings: dict[str, Any]
    """Those of its runs, without `seed`."""
    runs: list[str]
    """Run ids."""
    n: int
    """How many of them have a best value; the mean is over these values."""
    mean: float | None
    spread: float | None
    """Sample standard deviation of these values; null with fewer than two."""
    note: str | None
    """Why it cannot be the best: a run has no value yet, or diverged."""


class SweepTeacherView(_View):
    """How much of the teacher's work the runs of a sweep share, since the teacher started."""

    problem: str | None
    """Why it is not known; every number is then null."""
    counted_runs: int | None
    """How many of the runs the teacher still knows."""
    asked_tokens: int | None
    """Tokens that they asked about; null also if the teacher is of a release that does not say."""
    computed_tokens: int | None
    """Tokens that were computed for them; what other runs shared counts in part."""
    shared: float | None
    """Share of the asked tokens that was not computed again: 0.75 if four runs cost one pass."""
    asked_sequences: int | None
    computed_sequences: int | None


class _SweepFields(_View):
    id: str
    name: str
    group: str
    """The `group` of its runs: its id."""
    created_at: float
    metric: str
    goal: Goal
    """Whether the lowest or the highest value of the metric is best."""
    num_runs: int
    """How many it made; some may have been deleted since."""
    settings: list[str]
    """Dotted paths in which its runs differ, in the order given."""


class SweepView(_SweepFields):
    """A sweep with the table of its runs."""

    runs: list[SweepRunView]
    """In the order in which they were made."""
    groups: list[SweepGroupView]
    best: str | None
    """Run id; null while no group can be compared."""
    best_group: int | None
    """Index into `groups`, by mean; a group is compared once each of its runs has a value."""
    teacher: SweepTeacherView | None
    """null if no run has a teacher."""


class SweepSummary(_SweepFields):
    """A sweep in a list."""

    states: dict[str, int]
    """How many of its runs are in which state."""


class SweepsPage(_View):
    """Sweeps, newest first."""

    sweeps: list[SweepSummary]
    total: int
    next_cursor: str | None
    """Pass as `cursor` for the next page; null on the last page."""


class SweepEstimateView(_View):
    """What all runs of a sweep need together. Null means that it is not known."""

    tokens: int
    """That they train on."""
    teacher_tokens: int
    """That they ask the teacher about."""
    teacher_tokens_shared: int
    """That the teacher computes if runs that ask for the same rows share all of them."""
    teacher_hours: float | None
    """For these, at the speed that the teacher has measured, without other clients."""
    free_disk_bytes: int | None


class CombinationView(_View):
    """A run that a sweep would make."""

    name: str
    settings: dict[str, Any]


class SweepCheckView(_View):
    """What POST /sweeps would do: nothing was created."""

    ok: bool
    """Whether POST /sweeps would accept it now."""
    runs: list[CombinationView]
    settings: list[str]
    checks: list[CheckView]
    """Checks that are equal for several runs are made once."""
    estimate: SweepEstimateView
    advice: list[str]
    """What keeps its runs from sharing the teacher's work."""
