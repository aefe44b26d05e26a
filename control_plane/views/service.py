"""The control plane itself: its disk, its release, and whether it is ready."""

from typing import Literal

from control_plane.views.view import View


class DiskView(View):
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


class VersionView(View):
    """Which control plane this is."""

    version: str
    """Of Lectern."""
    python: str
    schema_revision: str
    """The newest migration of its database."""
    started_at: float
    """Unix seconds."""


class HealthView(View):
    status: Literal["ok"]


class ReadyView(View):
    status: Literal["ready"]
    max_running_runs: int
    cuda_devices: int
    slowed: dict[str, str] | None = None
    """What works more slowly than it could, and why, by part: `fork_server`; absent if nothing."""
