"""A run as every list, page and stream shows it, and its history."""

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from control_plane.runs.record import Wanted
from control_plane.views.view import View
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec

# A count stays an integer; to JSON Schema both are numbers.
Figure = Annotated[
    int | float | None, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})
]


class ForkedFromView(View):
    """The checkpoint of another run that a run began with."""

    run_id: str
    step: int


class RunView(View):
    """One run as it is now. Times are Unix seconds."""

    id: str
    name: str
    state: RunState
    wanted: Wanted
    """What the user last asked for."""
    stop_at: Literal["checkpoint"] | None
    """`checkpoint` once it is asked to stop at its next one, until it has stopped; else null."""
    forked_from: ForkedFromView | None
    """null if it began with its own first step."""
    reason: str | None
    """Machine-readable word for why it is in this state."""
    message: str | None
    """The reason as a sentence."""
    since: float
    """When it entered this state."""
    created_at: float
    seq: int
    """Its place among all runs ever accepted: without `sort`, the highest comes first."""
    revision: int
    """Rises with every change of any run."""
    attempt: int
    """Processes started for it so far."""
    restarts: int
    """Automatic restarts since its last new checkpoint, or since the last request."""
    resumable: bool
    resumes_at: float | None
    """When it resumes by itself; null if it does not, or if it waits for `resumes_when`."""
    resumes_when: str | None
    """What has to come true before it resumes by itself; null if nothing has to."""
    heals: int
    """Times it went on by itself after a reason that heals, since the last request."""
    disk_bytes: int | None
    """What its folder takes on disk, hard links once; null until it is measured."""
    queue_position: int | None
    """1 is the next to start; null unless queued."""
    alpha: float | None
    """null, as every field of the spec, if its stored spec cannot be read."""
    temperature: float | None
    """Distillation temperature; null if the run does not distil."""
    representation: str | None
    top_k: int | None
    num_draws: int | None
    teacher: str | None
    """host:port, or the record that it learns from; null if the run does not distil."""
    student: str | None
    """Model that it starts from: its weights, or only its shape if the spec sets `config`."""
    keep_every_nth_layer: int | None
    """Which layers of that model are kept; null means all."""
    lora_rank: int | None
    """Rank of the trained adapters; null means that the student's own weights are trained."""
    dataset: str | None
    step: int
    steps: int
    checkpoint_step: int | None
    checkpoint_at: float | None
    """When that checkpoint was complete."""
    device: str | None
    slots: list[str]
    """Its devices while it has a trainer, one for each of its processes: `cuda:0`, `cpu`."""
    threads: int | None
    """CPU threads of each of its processes, while it has a trainer."""
    tokens_per_second: float | None
    """Over the last steps; null unless it is training."""
    eta_seconds: float | None
    """Until its last step, at the pace of the last steps; null unless it is training."""
    teacher_wait_share: float | None
    latest: dict[str, Figure]
    """Last metrics, counts as integers; `loss/val` has its step in `loss/val_step`, and the lowest
    in `loss/val_best`."""
    elapsed_seconds: float
    """Time with a trainer, over all attempts."""
    heartbeat: float | None
    """When the trainer last reported."""
    settings: dict[str, Any]
    """The settings that are not what the spec has unless they are set, by dotted path."""
    stale_since: float | None
    """The last heartbeat, if a trainer that should be alive has been silent since."""
    stalled_since: float | None
    """The last progress, if the trainer is alive but has made none for far longer than usual."""
    activity: str | None
    """What its trainer is doing: `starting`, `step`, `evaluation`, `checkpoint` or `export`."""
    priority: int
    """Of queued runs, those of the highest priority start first."""
    group: str | None
    tags: list[str]
    notes: str


class HistoryView(View):
    """One thing that happened: a change of state, or an event of the trainer."""

    at: float
    kind: str
    """`state`, or the kind of the trainer's event."""
    state: RunState | None = None
    wanted: Wanted | None = None
    attempt: int | None = None
    reason: str | None = None
    message: str | None = None
    by: str | None = None
    """Who asked for it: client, address and token; null for what was done by itself."""
    details: dict[str, Any] = Field({})
    """What else the trainer reported."""


class RunDetail(RunView):
    """A run with its whole spec and what happened to it."""

    spec: RunSpec | None
    """null if its stored spec cannot be read."""
    history: list[HistoryView]
    """The last 200 entries, oldest first: up to 100 are changes of state, up to 50 of each other
    kind. /runs/{run_id}/history has all."""
    folder: str
    """Path on the control plane's machine."""


class HistoryPage(View):
    """What happened to a run, newest first."""

    run_id: str
    entries: list[HistoryView]
    next_cursor: str | None
    """Pass as `cursor` for earlier entries; null at the beginning."""


class RunsPage(View):
    """Runs, in the order asked for."""

    runs: list[RunView]
    total: int
    """All that match, on every page."""
    next_cursor: str | None
    """Pass as `cursor` for the next page; null on the last page."""
    revision: int
    """Pass as `after` to /events, to stream what changes after this answer."""
