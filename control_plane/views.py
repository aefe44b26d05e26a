"""The model of every response, and how a run becomes one."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema

from control_plane.runs.alerts import Alert
from control_plane.runs.keeping.adoption import Adopted
from control_plane.runs.keeping.pruning import Pruned
from control_plane.runs.record import Run, Wanted
from lectern_common.errors import InvalidSpec
from lectern_common.run.status import RunState
from lectern_common.spec.changed import changed_settings
from lectern_common.spec.run_spec import LABELS, RunSpec

# A count stays an integer; to JSON Schema both are numbers.
Figure = Annotated[
    int | float | None, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})
]


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class ForkedFromView(_View):
    """The checkpoint of another run that a run began with."""

    run_id: str
    step: int


class RunView(_View):
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


class HistoryView(_View):
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
    details: dict[str, Any] = {}
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


class HistoryPage(_View):
    """What happened to a run, newest first."""

    run_id: str
    entries: list[HistoryView]
    next_cursor: str | None
    """Pass as `cursor` for earlier entries; null at the beginning."""


class RunsPage(_View):
    """Runs, in the order asked for."""

    runs: list[RunView]
    total: int
    """All that match, on every page."""
    next_cursor: str | None
    """Pass as `cursor` for the next page; null on the last page."""
    revision: int
    """Pass as `after` to /events, to stream what changes after this answer."""


class PrunedRunView(_View):
    """A run that was pruned, or would be."""

    run_id: str
    name: str
    state: RunState
    since: float
    """When it entered this state."""
    disk_bytes: int
    """What its folder takes on disk."""


class RefusalView(_View):
    """A run with which nothing was done, and why."""

    run_id: str
    detail: str


class PrunedView(_View):
    """What was pruned; with `dry_run`, what would be."""

    runs: list[PrunedRunView]
    """Oldest first."""
    bytes: int
    """What is free without them. A file that another run shares by a hard link frees nothing."""
    deleted: int
    """How many were deleted; 0 with `dry_run`."""
    left_out: list[RefusalView]
    """Those that could not be deleted, such as one that was resumed meanwhile."""


class AdoptedRunView(_View):
    """A run that now has a row."""

    run_id: str
    name: str
    state: RunState
    step: int


class AdoptedView(_View):
    """What was made of run folders."""

    adopted: list[AdoptedRunView]
    """Oldest first; without those that were known."""
    refused: list[RefusalView]
    """Folders that are damaged, or trained by another program; nothing in them was touched."""


class MetricsView(_View):
    """Metric records in the order of their steps; null means that a number was not finite."""

    run_id: str
    metrics: list[dict[str, Any]]
    cursor: str
    """Pass as `cursor`, or to a stream, to continue after the last record."""
    rewound: bool
    """The trainer went back to a checkpoint: drop earlier records; these begin at the start."""
    more: bool
    """More records can be read now."""


class BucketsView(_View):
    """A metric as buckets of consecutive lines, each list with one entry a bucket.

    mean, min and max are null if no value of the bucket was finite; tokens, seconds and time are
    null if the trainer did not write them.
    """

    step: list[int]
    """The last step."""
    first_step: list[int]
    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]
    count: list[int]
    """Finite values."""
    non_finite: list[int]
    """Values that were not finite."""
    tokens: list[int | None]
    """Trained on so far, at the last step."""
    seconds: list[float | None]
    """Of training so far, over all attempts, at the last step."""
    time: list[float | None]
    """Unix seconds, at the last step."""


class MarkView(_View):
    """What happened at a step."""

    kind: Literal["checkpoint", "restart", "non_finite"]
    step: int
    time: float | None


class SeriesView(_View):
    """What a chart of a run shows."""

    run_id: str
    revision: str
    """Changes whenever the metrics do."""
    cursor: str
    """`/runs/ID/events?after=0-CURSOR` streams what comes after this answer."""
    last_step: int | None
    keys: list[str]
    """Every metric ever logged, whether asked for or not."""
    keys_left_out: int
    """Metrics beyond the first 512, or with names that are too long."""
    unknown_keys: list[str]
    """Asked for, but not logged so far: misspelt, or still to come. Their series are empty."""
    series: dict[str, BucketsView]
    marks: list[MarkView]
    """In step order, at most 200 of each kind."""


class SampleView(_View):
    """What the student generated for a prompt at one evaluation, and what its teacher did."""

    step: int
    prompt: str
    student: str
    teacher: str | None
    """The same at every step; null if the run has no teacher, and until it has answered."""


class SamplesView(_View):
    """Samples in the order of their steps, newest last."""

    run_id: str
    samples: list[SampleView]


class CheckpointView(_View):
    """One checkpoint on disk. It is verified when a run resumes from it."""

    step: int
    completed_at: float
    bytes: int
    validation_loss: float | None
    """Measured at its step; null if none was."""


class CheckpointsView(_View):
    """The complete checkpoints of a run, oldest first."""

    run_id: str
    checkpoints: list[CheckpointView]


class RepresentationView(_View):
    """One representation, whether a teacher offers it, and if not, why."""

    name: str
    offered: bool
    reason: str


class CacheView(_View):
    """How well a teacher's cache has worked since the teacher started."""

    hits: int
    """Sequences answered without a forward of their own."""
    misses: int
    hit_share: float | None
    evictions: int
    used_bytes: int
    capacity_bytes: int
    """0 means no cache; equal sequences requested at the same time are still computed once."""
    disk_hits: int
    """Included in `hits`."""
    disk_used_bytes: int
    disk_capacity_bytes: int
    """0 means no cache on disk."""


class AccountView(_View):
    """What a teacher has done for one run since the teacher started."""

    run_id: str
    name: str | None = None
    """The run's name; null if it is not a run of this control plane."""
    requests: int
    tokens: int
    """Tokens computed for it; those shared with other runs count in equal parts."""
    sent_bytes: int
    compute_seconds: float
    compute_share: float | None
    """Its share of the teacher's total compute time."""
    mean_queue_seconds: float | None
    cache_hits: int
    hit_share: float | None
    weight: float | None
    """Its share of the teacher relative to the other runs'."""


class TeacherView(_View):
    """One teacher's last answer. Everything but the address may be unknown."""

    address: str
    reachable: bool
    problem: str | None
    """Why it is not reachable."""
    seen_at: float | None
    """When it last answered."""
    configured: bool
    """Named by --teacher, not only by a run."""
    runs: list[str]
    """Active runs that use it."""
    warning: str | None
    """What is wrong with it, although it answers."""
    model: str | None = None
    revision: str | None = None
    engine: str | None = None
    num_parameters: int | None = None
    fingerprint: str | None = None
    weights_sha256: str | None = None
    device: str | None = None
    device_utilization: float | None = None
    """0 .. 1; null if the device does not report it."""
    dtype: str | None = None
    quantization: str | None = None
    mode: str | None = None
    """`independent` or `throughput`."""
    representations: list[RepresentationView] = []
    uptime_seconds: float | None = None
    measured_tokens_per_second: float | None = None
    """Measured after loading, with full batches."""
    tokens_per_second: float | None = None
    """Per second of compute time in the last minute."""
    scored_tokens: int | None = None
    scored_sequences: int | None = None
    sent_bytes: int | None = None
    compute_seconds: float | None = None
    forwards: int | None = None
    padding_share: float | None = None
    """Padding as a share of the tokens computed."""
    queued_requests: int | None = None
    queued_tokens: int | None = None
    running_requests: int | None = None
    max_queued_requests: int | None = None
    refused_requests: int | None = None
    failed_requests: int | None = None
    cache: CacheView | None = None
    accounts: list[AccountView] = []
    """By compute time, largest first; at most 100."""
    num_accounts: int | None = None
    """How many runs the teacher has accounts for."""


class TeachersView(_View):
    teachers: list[TeacherView]


class DatasetView(_View):
    """One dataset folder under the data root."""

    path: str
    """Value for `data.path` of a spec."""
    problem: str | None
    total_tokens: int | None = None
    shard_count: int | None = None
    vocab_size: int | None = None
    seq_length_hint: int | None = None
    tokenizer_sha256: str | None = None


class DatasetsView(_View):
    datasets: list[DatasetView]


class RecordView(_View):
    """One record of a teacher under the data root. All but `path` is null if there is a problem."""

    path: str
    """Value for `teacher.record` of a spec."""
    problem: str | None
    model: str | None = None
    """Model id of the teacher."""
    fingerprint: str | None = None
    """Of the teacher."""
    holds: list[str] | None = None
    """What was recorded, such as "top_k 64 at temperature 2"."""
    data_path: str | None = None
    """Of which dataset."""
    seq_len: int | None = None
    """The only `data.seq_len` that it can teach."""
    vocab_size: int | None = None
    bytes: int | None = None


class RecordsView(_View):
    records: list[RecordView]


class CheckView(_View):
    """One check of a spec, in the order in which a run would meet them."""

    outcome: Literal["pass", "warn", "fail", "skip"]
    subject: str
    message: str
    field: str | None
    """The setting at fault, as a dotted path; null if the check did not fail because of one."""


class EstimateView(_View):
    """What a run will need. Null means that it is not known before the first step."""

    tokens_per_step: int
    tokens: int
    epochs: float | None
    bytes_per_step: int | None
    """From the teacher."""
    teacher_tokens: int
    teacher_hours: float | None
    """At the speed that the teacher has measured, without other clients."""
    training_rows: int | None
    validation_rows: int | None
    free_disk_bytes: int | None


class SpecCheckView(_View):
    """What `lectern train --dry-run` finds without torch: nothing was created."""

    ok: bool
    """Whether POST /runs would accept it now."""
    spec: RunSpec
    """With every default filled in."""
    checks: list[CheckView]
    estimate: EstimateView


class ModelView(_View):
    """One model folder under the models root."""

    path: str
    """Value for `student.init` (if it has weights) or `student.config` of a spec."""
    problem: str | None
    architecture: str | None = None
    vocab_size: int | None = None
    has_weights: bool = False
    has_tokenizer: bool = False
    weights_bytes: int | None = None


class ModelsView(_View):
    models: list[ModelView]


class DiskView(_View):
    """The disk of the run folders."""

    total_bytes: int
    free_bytes: int
    needed_bytes: int
    """For the next checkpoint of each active run, with a margin."""
    low: bool
    """Less is free than needed: runs may soon end as interrupted, `disk_full`."""
    warning: str | None
    """A sentence if it is low, too small for what the active runs still write, or full within a day
    at its present pace; else null."""


class AlertView(_View):
    """Something that somebody should hear of. Times are Unix seconds."""

    seq: int
    """Rises with each alert; the webhook's `Lectern-Delivery`."""
    at: float
    kind: str
    """failed, diverged, finished, stalled, waiting or disk."""
    run_id: str | None
    """null for `disk`, as the next four fields."""
    name: str | None
    state: str | None
    """State, reason and step are those that the run had then."""
    reason: str | None
    step: int | None
    message: str
    """One sentence."""
    attempts: int
    """Times that the webhook's receiver was tried."""
    next_try_at: float | None
    """null if there is nothing more to deliver."""
    delivered_at: float | None
    last_error: str | None
    """What was wrong with the last attempt."""


class AlertsView(_View):
    """The last alerts, newest first."""

    receiver: str | None
    """Scheme and host of the webhook; null if none is set."""
    alerts: list[AlertView]


class AlertTestView(_View):
    """What became of a test alert."""

    receiver: str
    delivered: bool
    status: int | None
    """HTTP status of the answer; null if there was none."""
    said: str | None
    """The beginning of the answer's body."""
    error: str | None
    """What went wrong; null if it was delivered."""
    seconds: float


class VersionView(_View):
    """Which control plane this is."""

    version: str
    """Of Lectern."""
    python: str
    schema_revision: str
    """The newest migration of its database."""
    started_at: float
    """Unix seconds."""


class HealthView(_View):
    status: Literal["ok"]


class ReadyView(_View):
    status: Literal["ready"]
    max_running_runs: int
    cuda_devices: int
    slowed: dict[str, str] | None = None
    """What works more slowly than it could, and why, by part: `fork_server`; absent if nothing."""


class FieldProblem(_View):
    field: str
    """Dotted path; empty for the whole request."""
    message: str


class Problem(_View):
    """RFC 9457 problem details, the body of every error."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    """Stable, machine-readable word."""
    retryable: bool
    errors: list[FieldProblem] = []


def pruned_view(pruned: Pruned) -> PrunedView:
    """Returns the view of what was pruned."""
    runs = [
        PrunedRunView(
            run_id=run.id, name=run.name, state=run.state, since=run.since, disk_bytes=num_bytes
        )
        for run, num_bytes in pruned.runs
    ]
    left_out = [RefusalView(run_id=run_id, detail=why) for run_id, why in pruned.left_out]
    return PrunedView(runs=runs, bytes=pruned.freed, deleted=pruned.deleted, left_out=left_out)


def adopted_view(adopted: Adopted) -> AdoptedView:
    """Returns the view of what was adopted."""
    return AdoptedView(
        adopted=[
            AdoptedRunView(
                run_id=run.id,
                name=run.name,
                state=run.state,
                step=run.last_status.step if run.last_status else 0,
            )
            for run in adopted.runs
        ],
        refused=[RefusalView(run_id=run_id, detail=why) for run_id, why in adopted.refused],
    )


def run_view(run: Run, now: float) -> RunView:
    """Returns the view of a run."""
    return RunView(**_run_fields(run, now))


def run_detail(run: Run, now: float, history: list[HistoryView], folder: str) -> RunDetail:
    """Returns the view of a run with its spec and history."""
    try:
        spec = run.run_spec
    except InvalidSpec:
        spec = None
    return RunDetail(**_run_fields(run, now), spec=spec, history=history, folder=folder)


def _run_fields(run: Run, now: float) -> dict[str, Any]:
    status = run.last_status
    of_spec = _spec_fields(run)
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "wanted": run.wanted,
        "stop_at": None if run.stop_at is None else str(run.stop_at),
        "forked_from": None if run.forked_from is None else asdict(run.forked_from),
        "reason": run.reason,
        "message": (run.waits_for if run.state is RunState.QUEUED else None) or run.message,
        "since": run.since,
        "created_at": run.created_at,
        "seq": run.seq,
        "revision": run.revision,
        "attempt": run.attempt,
        "restarts": run.restarts,
        "resumable": run.resumable,
        "resumes_at": run.resume_at if run.resumes_itself else None,
        "resumes_when": run.resumes_when,
        "heals": run.heals,
        "disk_bytes": run.disk_bytes,
        "queue_position": run.queue_position,
        **of_spec,
        "step": status.step if status else run.checkpoint_step or 0,
        "steps": of_spec["steps"] or (status.steps if status else 0),
        "checkpoint_step": run.checkpoint_step,
        "checkpoint_at": status.checkpoint_at if status else None,
        "device": (status.device if status else None) or ", ".join(run.slots or ()) or None,
        "slots": run.slots or [],
        "threads": run.threads,
        "tokens_per_second": status.tokens_per_second if status and run.trains else None,
        "eta_seconds": _eta_seconds(run, of_spec["steps"]),
        "teacher_wait_share": status.teacher_wait_share if status else None,
        "latest": status.latest if status else {},
        "elapsed_seconds": run.elapsed_seconds(now),
        "heartbeat": status.heartbeat if status else None,
        "stale_since": run.stale_since,
        "stalled_since": run.stalled_since,
        "activity": status.activity if status and run.pid is not None else None,
    }


class _SpecFields(BaseModel):
    """What a list shows of a spec, and its types."""

    alpha: float | None = None
    temperature: float | None = None
    representation: str | None = None
    top_k: int | None = None
    num_draws: int | None = None
    teacher: str | None = None
    student: str | None = None
    keep_every_nth_layer: int | None = None
    lora_rank: int | None = None
    dataset: str | None = None
    steps: int | None = None
    settings: dict[str, Any] = {}
    priority: int = 0
    group: str | None = None
    tags: list[str] = []
    notes: str = ""


def _spec_fields(run: Run) -> dict[str, Any]:
    """Returns what a list shows of the stored spec; all None if it cannot be read.

    It is read as it stands, which is much faster than as a RunSpec, unless a section is missing: an
    older release's spec lacks those that were added since.
    """
    try:
        try:
            found = _SpecFields.model_validate(_of_spec(run.spec))
        except (KeyError, TypeError, AttributeError):
            found = _SpecFields.model_validate(_of_spec(run.run_spec.model_dump(mode="json")))
    except (InvalidSpec, ValidationError):
        found = _SpecFields()
    return found.model_dump()


def _of_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    teacher, student = spec["teacher"] or {}, spec["student"]
    return {
        "alpha": spec["objective"]["alpha"],
        "temperature": spec["objective"]["temperature"] if teacher else None,
        "representation": teacher.get("representation"),
        "top_k": teacher.get("top_k"),
        "num_draws": teacher.get("num_draws"),
        "teacher": teacher.get("address") or teacher.get("record"),
        "student": student["init"] or student["config"],
        "keep_every_nth_layer": student.get("keep_every_nth_layer"),
        "lora_rank": (student.get("lora") or {}).get("rank"),
        "dataset": spec["data"]["path"],
        "steps": spec["schedule"]["steps"],
        "settings": changed_settings(spec),
        **{name: spec[name] for name in LABELS if name in spec},
    }


def _eta_seconds(run: Run, steps: int | None) -> float | None:
    status = run.last_status
    if run.state is not RunState.RUNNING or status is None or status.seconds_per_step is None:
        return None
    if steps is None:
        return None
    return max(0, steps - status.step) * status.seconds_per_step


def alert_view(alert: Alert) -> AlertView:
    """Returns the view of an alert."""
    return AlertView(**{name: getattr(alert, name) for name in AlertView.model_fields})
