"""Identifies processes without the wall clock: pid, boot, and clock ticks from boot to start.

A pid is reused; a start time in Unix seconds is computed from the boot time, which moves whenever
the clock is set. The kernel counts start ticks from the boot, so no clock changes them, and no two
processes with one pid share them within one boot.

Where the kernel does not name its boot (some containers hide /proc/sys), the boot id is empty. An
empty one equals any other: pid and ticks then tell processes apart, which after a reboot fails only
for a process with the same pid that started in the same hundredth of a second of its boot.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from lectern_common.errors import Misconfigured
from lectern_common.files import lock_file

PROC = Path("/proc")
LOCAL = "local"  # the backend of processes of this machine
_ENDED = ("Z", "X", "x")  # states of processes that no longer run: zombie, dead
_STATE, _START_TICKS = 0, 19  # fields 3 and 22 of /proc/PID/stat, counted after the name


@dataclass(frozen=True)
class Identity:
    """One process, even if its pid is reused later.

    Attributes:
        boot_id: of the machine's boot in which it was started.
        start_ticks: clock ticks from that boot to its start.
    """

    pid: int
    boot_id: str
    start_ticks: int


@dataclass(frozen=True)
class Handle:
    """What a backend knows a started process, or job, by; `id` is opaque to everyone else.

    In the database it is one text, "backend:id".

    Attributes:
        backend: "local", or the scheduler of a site: "slurm", "ray".
        id: never empty.
    """

    backend: str
    id: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.id}"

    @classmethod
    def of(cls, text: str | None) -> "Handle | None":
        """Returns the handle of a text; None for None, and for a text that is no handle's."""
        backend, _, key = (text or "").partition(":")
        return cls(backend, key) if backend and key else None

    @classmethod
    def of_process(cls, process: Identity) -> "Handle":
        """Returns the handle of a process of this machine."""
        return cls(LOCAL, f"{process.pid}/{process.start_ticks}/{process.boot_id}")

    @property
    def process(self) -> Identity | None:
        """The process of this machine that it names; None if another backend's, or damaged."""
        pid, _, rest = self.id.partition("/")
        ticks, _, boot = rest.partition("/")
        if self.backend != LOCAL or not pid.isdecimal() or not ticks.isdecimal():
            return None
        return Identity(int(pid), boot, int(ticks))

    @property
    def pid(self) -> int | None:
        """The pid of a process of this machine, also of an earlier release's handle."""
        pid = self.id.partition("/")[0]
        return int(pid) if self.backend == LOCAL and pid.isdecimal() else None


def identity_of(pid: int, proc: Path = PROC, *, ended_too: bool = False) -> Identity | None:
    """Returns the identity of the process with that pid; None if there is none.

    Args:
        proc: where the kernel shows its processes. On systems without it, psutil is asked.
        ended_too: also that of a zombie, which has ended but was not yet waited for.

    Raises:
        OSError: it cannot be looked at now, which does not mean that it is gone.
    """
    if not proc.is_dir():
        return _without_proc(pid, ended_too=ended_too)
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
        # The name is in parentheses and may hold spaces and parentheses itself.
        fields = stat[stat.rindex(b")") + 1 :].decode().split()
        if fields[_STATE] in _ENDED and not ended_too:
            return None
        return Identity(pid, boot_id(proc), int(fields[_START_TICKS]))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or another user's, which is none that we started
    except (ValueError, IndexError):
        return None


def is_alive(process: Identity, proc: Path = PROC) -> bool:
    """Returns True while that very process runs. Raises OSError as `identity_of` does."""
    return is_same(identity_of(process.pid, proc), process)


def is_same(found: Identity | None, process: Identity) -> bool:
    """Returns whether both are one process, as far as their boots are known."""
    if found is None:
        return False
    of_one_boot = not found.boot_id or not process.boot_id or found.boot_id == process.boot_id
    return of_one_boot and (found.pid, found.start_ticks) == (process.pid, process.start_ticks)


def boot_id(proc: Path = PROC) -> str:
    """Returns the kernel's name for this boot of the machine; empty if it does not say it."""
    try:
        return (proc / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:
        return ""


def lock_holder(path: Path, proc: Path = PROC) -> int | None:
    """Returns the pid of the process that took a file's lock (`files.take_lock`).

    None means that no process holds it, or that the kernel does not say which one does: network
    file systems and systems without /proc.
    """
    try:
        found = lock_file(path).stat()
        lines = (proc / "locks").read_text().splitlines()
    except (OSError, Misconfigured):
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF"; a waiting one has "->" after its number
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == place:
            return int(words[4]) if words[4].isdigit() and words[4] != "0" else None
    return None


def _without_proc(pid: int, *, ended_too: bool) -> Identity | None:
    """Returns the identity from psutil: there the kernel keeps the start time as it was."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE and not ended_too:
            return None
        return Identity(pid, "", round(process.create_time() * 100))
    except (psutil.Error, ValueError):
        return None
