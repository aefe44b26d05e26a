"""What the control plane answers: the models of every response, and how a run becomes one."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from control_plane.runs.record import Run, Wanted
from lectern_common.run_folder import RunState
from lectern_common.spec.run_spec import RunSpec

STALE_SECONDS = 15.0


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class RunView(_View):
    """One run as it is now. Times are Unix seconds."""

    id: str
    name: str
    state: RunState
    wanted: Wanted
    """What the user last asked for."""
    reason: str | None
    """Machine-readable word for why it is in this state."""
    message: str | None
    """The same in a sentence."""
    since: float
    """Of the state."""
    created_at: float
    revision: int
    """Rises with every change of any run."""
    attempt: int
    """Processes started for it so far."""
    resumable: bool
    resumes_at: float | None
    """When it goes on by itself; null where it does not."""
    queue_position: int | None
    """1 is the next to start; null unless queued."""
    alpha: float
    temperature: float | None
    """Of the distillation; null where the run does not distil."""
    representation: str | None
    top_k: int | None
    num_draws: int | None
    teacher: str | None
    """host:port; null where the run does not distil."""
    student: str
    """Model that it starts from: weights, or with `config` in the spec a shape alone."""
    keep_every_nth_layer: int | None
    """Of that model's layers; null: all of them."""
    lora_rank: int | None
    """Of the adapters that are trained on it; null: its own weights are."""
    dataset: str | None
    step: int
    steps: int
    checkpoint_step: int | None
    device: str | None
    tokens_per_second: float | None
    teacher_wait_share: float | None
    latest: dict[str, float | None]
    """Last metrics, `loss/val` included."""
    elapsed_seconds: float
    """With a trainer, over all attempts."""
    heartbeat: float | None
    """When the trainer last said anything."""
    stale_since: float | None
    """The heartbeat, where a trainer that should live has been silent since."""


class HistoryView(_View):
    """One thing that happened: a change of state, or an event of the trainer."""

    at: float
    kind: str
    """`state`, or the trainer's word."""
    state: RunState | None = None
    wanted: Wanted | None = None
    attempt: int | None = None
    reason: str | None = None
    message: str | None = None
    details: dict[str, Any] = {}
    """What else the trainer said."""


class RunDetail(RunView):
    """A run with its whole spec and what happened to it."""

    spec: RunSpec
    history: list[HistoryView]
    """Oldest first, the last 200."""
    folder: str
    """On the control plane's machine."""


class RunsPage(_View):
    """Runs, newest first."""

    runs: list[RunView]
    next_cursor: str | None
    """For `cursor`, to go on; null at the end."""
    revision: int
    """For `after` of /events: streams what changes after this answer."""


class MetricsView(_View):
    """Metric records in the order of their steps; null stands for a number that was not finite."""

    run_id: str
    metrics: list[dict[str, Any]]
    cursor: str
    """For `cursor`, or a stream: goes on after the last record."""
    rewound: bool
    """The trainer went back to a checkpoint: forget all records, these begin at the start."""
    more: bool
    """Further records can be read at once."""


class SampleView(_View):
    """What a student put after a prompt at one evaluation, beside its teacher."""

    step: int
    prompt: str
    student: str
    teacher: str | None
    """The same at every step; null where the run has none, and until it has answered."""


class SamplesView(_View):
    """Samples in the order of their steps, the newest last."""

    run_id: str
    samples: list[SampleView]


class RepresentationView(_View):
    """One representation of a teacher, and why it is not offered where it is not."""

    name: str
    offered: bool
    reason: str


class CacheView(_View):
    """What a teacher need not compute again, since it started."""

    hits: int
    """Sequences answered without a forward of their own."""
    misses: int
    hit_share: float | None
    evictions: int
    used_bytes: int
    capacity_bytes: int
    """0: nothing is kept; sequences asked at the same time are still computed once."""
    disk_hits: int
    """Among `hits`."""
    disk_used_bytes: int
    disk_capacity_bytes: int
    """0: nothing is kept on disk."""


class AccountView(_View):
    """What one run has had of a teacher since that started."""

    run_id: str
    name: str | None = None
    """Of the run; null where it is none of this control plane."""
    requests: int
    tokens: int
    """Computed for it; its part of those that several runs wanted."""
    sent_bytes: int
    compute_seconds: float
    compute_share: float | None
    """Of all that the teacher has computed."""
    mean_queue_seconds: float | None
    cache_hits: int
    hit_share: float | None
    weight: float | None
    """Its share of the teacher while others ask too, relative to theirs."""


class TeacherView(_View):
    """One teacher as it answered last. Everything but the address may be unknown."""

    address: str
    reachable: bool
    problem: str | None
    """Why it is not reachable."""
    seen_at: float | None
    """When it last answered."""
    configured: bool
    """Named at the control plane's start, not by a run alone."""
    runs: list[str]
    """Runs at work that ask it."""
    warning: str | None
    """What is wrong with it although it answers."""
    model: str | None = None
    revision: str | None = None
    engine: str | None = None
    num_parameters: int | None = None
    fingerprint: str | None = None
    weights_sha256: str | None = None
    device: str | None = None
    device_utilization: float | None = None
    """0 .. 1; null where the device does not say."""
    dtype: str | None = None
    quantization: str | None = None
    mode: str | None = None
    """`independent` or `throughput`."""
    representations: list[RepresentationView] = []
    uptime_seconds: float | None = None
    measured_tokens_per_second: float | None = None
    """At its start, with full batches."""
    tokens_per_second: float | None = None
    """Of the time it computed in the last minute."""
    scored_tokens: int | None = None
    scored_sequences: int | None = None
    sent_bytes: int | None = None
    compute_seconds: float | None = None
    forwards: int | None = None
    padding_share: float | None = None
    """Of the tokens that went through the model."""
    queued_requests: int | None = None
    queued_tokens: int | None = None
    running_requests: int | None = None
    max_queued_requests: int | None = None
    refused_requests: int | None = None
    failed_requests: int | None = None
    cache: CacheView | None = None
    accounts: list[AccountView] = []
    """By compute, the most first; at most 100."""
    num_accounts: int | None = None
    """Runs that the teacher keeps account of."""


class TeachersView(_View):
    teachers: list[TeacherView]


class DatasetView(_View):
    """One dataset folder under the data root."""

    path: str
    """For `data.path` of a spec."""
    problem: str | None
    total_tokens: int | None = None
    shard_count: int | None = None
    vocab_size: int | None = None
    seq_length_hint: int | None = None
    tokenizer_sha256: str | None = None


class DatasetsView(_View):
    datasets: list[DatasetView]


class ModelView(_View):
    """One model folder under the models root."""

    path: str
    """For `student.init` (with weights) or `student.config` of a spec."""
    problem: str | None
    architecture: str | None = None
    vocab_size: int | None = None
    has_weights: bool = False
    has_tokenizer: bool = False
    weights_bytes: int | None = None


class ModelsView(_View):
    models: list[ModelView]


class HealthView(_View):
    status: Literal["ok"]


class ReadyView(_View):
    status: Literal["ready"]
    max_running_runs: int
    cuda_devices: int


class FieldProblem(_View):
    field: str
    """Dotted; empty for the whole."""
    message: str


class Problem(_View):
    """RFC 9457 problem details; every error is one."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    """Stable word for programs."""
    retryable: bool
    errors: list[FieldProblem] = []


def run_view(run: Run, now: float, queue: Mapping[str, int]) -> RunView:
    """Returns what is shown of a run. `queue` maps ids of queued runs to their positions."""
    return RunView(**_run_fields(run, now, queue))


def run_detail(
    run: Run, now: float, queue: Mapping[str, int], history: list[HistoryView], folder: str
) -> RunDetail:
    """Returns all there is to say of a run."""
    fields = _run_fields(run, now, queue)
    return RunDetail(**fields, spec=run.run_spec, history=history, folder=folder)


def _run_fields(run: Run, now: float, queue: Mapping[str, int]) -> dict[str, Any]:
    spec, status = run.spec, run.last_status
    teacher, student = spec["teacher"] or {}, spec["student"]
    has_trainer = run.pid is not None
    heartbeat = status.heartbeat if status is not None else None
    silent = has_trainer and status is not None and now - status.heartbeat > STALE_SECONDS
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "wanted": run.wanted,
        "reason": run.reason,
        "message": run.message,
        "since": run.since,
        "created_at": run.created_at,
        "revision": run.revision,
        "attempt": run.attempt,
        "resumable": run.resumable,
        "resumes_at": run.resume_at if run.resumes_itself else None,
        "queue_position": queue.get(run.id) if run.state is RunState.QUEUED else None,
        "alpha": spec["objective"]["alpha"],
        "temperature": spec["objective"]["temperature"] if teacher else None,
        "representation": teacher.get("representation"),
        "top_k": teacher.get("top_k"),
        "num_draws": teacher.get("num_draws"),
        "teacher": teacher.get("address"),
        "student": student["init"] or student["config"],
        "keep_every_nth_layer": student.get("keep_every_nth_layer"),
        "lora_rank": (student.get("lora") or {}).get("rank"),
        "dataset": spec["data"]["path"],
        "step": status.step if status else 0,
        "steps": spec["schedule"]["steps"],
        "checkpoint_step": status.checkpoint_step if status else None,
        "device": (status.device if status else None) or run.slot,
        "tokens_per_second": status.tokens_per_second if status else None,
        "teacher_wait_share": status.teacher_wait_share if status else None,
        "latest": status.latest if status else {},
        "elapsed_seconds": run.elapsed_seconds(now),
        "heartbeat": heartbeat,
        "stale_since": heartbeat if silent else None,
    }
