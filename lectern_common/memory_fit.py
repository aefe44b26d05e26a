"""Does what a run needs fit into what is free?

What is certain and does not fit is refused; where activations alone may be too much, it is said.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

from lectern_common.memory_estimate import MemoryEstimate
from lectern_common.words import gib

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that a run may take, what it already holds included.

    Attributes:
        device: its name, "cpu" or "cuda:0".
        device_bytes: of each device.
        host_bytes: of the machine; on the CPU the same memory.
    """

    device: str
    device_bytes: int
    host_bytes: int

    @property
    def is_host(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True)
class Fit:
    """`problem` is why the run cannot work, `warning` why it may not; both say what to set."""

    needed_bytes: int
    free_bytes: int
    problem: str | None = None
    warning: str | None = None


def memory_fit(estimate: MemoryEstimate, free: FreeMemory, processes: int = 1) -> Fit:
    """Returns whether an estimate fits.

    Args:
        estimate: of one device.
        free: what there is.
        processes: ranks that share the host's memory, and the device's where that is the host.
    """
    sharing = processes if free.is_host else 1
    certain, whole = sharing * estimate.certain, sharing * estimate.on_device
    if free.is_host:
        whole = sharing * estimate.total
    limit = free.device_bytes
    if certain > limit:
        parts = [
            f"{name.replace('_', ' ')} {gib(sharing * size)}"
            for name, size in estimate.parts().items()
            if size and name in ("parameters", "gradients", "optimizer", "teacher_head")
        ]
        problem = (
            f"the student takes {gib(certain)} of memory to train ({', '.join(parts)}), and "
            f"{gib(limit)} are free on {free.device}; take a smaller student, set student.lora"
            + ("" if free.is_host else ", raise device.count")
            + (", or take another teacher.representation" if estimate.teacher_head else "")
        )
        return Fit(whole, limit, problem=problem)
    if whole > limit:
        warning = (
            f"the run may need {gib(whole)} of memory ({gib(sharing * estimate.activations)} of "
            f"it activations), and {gib(limit)} are free on {free.device}; lower "
            "batch.micro_batch_sequences, or set device.activation_checkpointing"
        )
        return Fit(whole, limit, warning=warning)
    answers = processes * estimate.answers
    if not free.is_host and answers > free.host_bytes:
        warning = (
            f"the teacher's answers for coming steps may take {gib(answers)}, and "
            f"{gib(free.host_bytes)} of the host's memory are free; lower teacher.prefetch_steps"
        )
        return Fit(whole, limit, warning=warning)
    return Fit(whole, limit)


def free_host_bytes(cgroup: Path = _CGROUP) -> int:
    """Returns what the machine has free, or what this process's container may still take."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), or no container
        return free
    # Pages of files that were read once are given back when they are needed.
    return min(free, max(0, limit - used + int(stat.get("inactive_file", 0))))
