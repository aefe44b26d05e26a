"""A teacher: its model, cache and figures, and what it has done for each run."""

from pydantic import Field

from control_plane.views.view import View


class RepresentationView(View):
    """One representation, whether a teacher offers it, and if not, why."""

    name: str
    offered: bool
    reason: str


class CacheView(View):
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


class AccountView(View):
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


class TeacherView(View):
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
    tensor_parallel: int | None = None
    """Ranks that share the model; 1 if one process has all of it."""
    device_utilization: float | None = None
    """0 .. 1; null if the device does not report it."""
    dtype: str | None = None
    quantization: str | None = None
    mode: str | None = None
    """`independent` or `throughput`."""
    representations: list[RepresentationView] = Field([])
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
    accounts: list[AccountView] = Field([])
    """By compute time, largest first; at most 100."""
    num_accounts: int | None = None
    """How many runs the teacher has accounts for."""


class TeachersView(View):
    teachers: list[TeacherView]
