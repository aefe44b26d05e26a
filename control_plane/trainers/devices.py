"""Decides which devices each run gets, and how many runs train at the same time. No torch.

A run gets all of its slots or none: `device.count` different GPUs ("cuda:<device>"), or as many
processes on the CPU ("cpu"). A GPU takes `runs_per_gpu` runs; CPU runs share the machine;
`max_running` bounds the number of runs. Every run gets an equal share of the cores.

Waiting runs stand in line by priority, then by age. None is starved by runs behind it that need
less: they are looked at from the first on, and one that finds too few GPUs free keeps a place on
each of those. Runs behind it get only what is left. As nobody knows how long a run trains, this is
the only order that never delays the first; its price is GPUs that stand idle while it waits for the
others. A run of a low priority may wait for as long as runs of a higher one keep coming.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lectern_common.errors import InvalidSpec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import DeviceSpec
from lectern_common.threads import THREADS_VARIABLE, usable_cores

CPU = "cpu"
DEFAULT_MAX_RUNNING = 4
_CUDA = "cuda:"
_MAX_NAMED = 4


@dataclass(frozen=True)
class Waiting:
    """A queued run, and the devices that its spec asks for."""

    run_id: str
    kind: str  # auto, cpu or cuda
    count: int = 1
    threads: int | None = None

    @classmethod
    def of(cls, run_id: str, device: DeviceSpec) -> "Waiting":
        """Returns what the run with this part of its spec waits for."""
        return cls(run_id, device.kind, device.count, device.threads)


@dataclass(frozen=True)
class Place:
    """What a waiting run gets: its slots, or why it has to go on waiting."""

    slots: tuple[str, ...] = ()
    threads: int = 1  # of the CPU, in each of its processes
    waits_for: str | None = None


@dataclass(frozen=True)
class Devices:
    """The devices of this machine, and how many runs may share them.

    Attributes:
        cuda: each CUDA device's name for CUDA_VISIBLE_DEVICES.
        max_running: runs that train at the same time.
        runs_per_gpu: runs that share a GPU.
        cores: of the CPU.
        threads_each: CPU threads of every process of a run without device.threads; None shares the
            cores out equally, as if `max_running` runs trained.
    """

    cuda: tuple[str, ...]
    max_running: int
    runs_per_gpu: int = 1
    cores: int = field(default_factory=usable_cores)
    threads_each: int | None = None

    def require_has(self, spec: RunSpec) -> None:
        """Raises InvalidSpec unless this machine has the devices that the run asks for."""
        lack = self._lack(spec.device.kind, spec.device.count)
        if lack is not None:
            raise InvalidSpec([lack])

    def places(
        self, waiting: Iterable[Waiting], taken: Mapping[str, Sequence[str]]
    ) -> dict[str, Place]:
        """Returns what each waiting run gets now, by its id; see the module docstring.

        Args:
            waiting: the queued runs, the first in line first.
            taken: slots of each run that has some, by the run's id.
        """
        plan = _Plan(self, taken)
        return {run.run_id: self._place(run, plan) for run in waiting}

    def _place(self, run: Waiting, plan: "_Plan") -> Place:
        lack = self._lack(run.kind, run.count)
        if lack is not None:
            # It must not keep from others what it will never use.
            return Place(waits_for=f"cannot start: {lack[0]}: {lack[1]}")
        if self._on_cpu(run.kind):
            if plan.is_full:
                return Place(waits_for=plan.why_full())
            return Place(plan.give(run, (CPU,) * run.count), self.threads(run))
        free = plan.free_gpus()
        if len(free) < run.count:
            why = plan.why_no_gpu(run, free)
            plan.keep(run, free)
            return Place(waits_for=why)
        if plan.is_full:
            return Place(waits_for=plan.why_full())
        chosen = sorted(free, key=lambda device: plan.load[device])[: run.count]
        slots = tuple(_CUDA + device for device in self.cuda if device in chosen)
        return Place(plan.give(run, slots), self.threads(run))

    def threads(self, run: Waiting) -> int:
        """Returns the CPU threads of each of the run's processes."""
        share = max(1, self.cores // (self.max_running * run.count))
        return run.threads or self.threads_each or share

    def _on_cpu(self, kind: str) -> bool:
        return kind == "cpu" or not self.cuda

    def _lack(self, kind: str, count: int) -> tuple[str, str] | None:
        """Returns the spec's field that this machine cannot meet, and why; None if it can."""
        if kind == "cuda" and not self.cuda:
            return "device.kind", "there is no CUDA device on this machine; set auto or cpu"
        if self._on_cpu(kind):
            if count <= self.cores:
                return None
            has, remedy = _number(self.cores, "CPU core"), f"set at most {self.cores}"
        else:
            if count <= len(self.cuda):
                return None
            has = _number(len(self.cuda), "CUDA device")
            remedy = f"set at most {len(self.cuda)}, or device.kind cpu"
        return "device.count", f"{count} is more than this machine has ({has}); {remedy}"


class _Plan:
    """What is taken and kept so far while the waiting runs are looked at."""

    def __init__(self, devices: Devices, taken: Mapping[str, Sequence[str]]) -> None:
        self._devices = devices
        self._taken = {run: tuple(slots) for run, slots in taken.items()}
        self._keepers: list[str] = []  # waiting runs that come before those behind them
        self._kept = 0  # places that they keep
        self.load: Counter[str] = Counter()  # runs on each GPU, keepers included
        for slots in self._taken.values():
            self.load.update(slot.removeprefix(_CUDA) for slot in slots if slot != CPU)

    @property
    def is_full(self) -> bool:
        return len(self._taken) >= self._devices.max_running

    def free_gpus(self) -> list[str]:
        limit = self._devices.runs_per_gpu
        return [device for device in self._devices.cuda if self.load[device] < limit]

    def give(self, run: Waiting, slots: tuple[str, ...]) -> tuple[str, ...]:
        self._taken[run.run_id] = slots
        self.load.update(slot.removeprefix(_CUDA) for slot in slots if slot != CPU)
        return slots

    def keep(self, run: Waiting, free: Sequence[str]) -> None:
        self._keepers.append(run.run_id)
        self._kept += len(free)
        self.load.update(free)

    def why_full(self) -> str:
        limit = self._devices.max_running
        number = "1 run trains" if limit == 1 else f"{limit} runs train"
        return f"at most {number} at once; {_until([*self._taken])}"

    def why_no_gpu(self, run: Waiting, free: Sequence[str]) -> str:
        """Returns why there are too few GPUs for the run, and which runs have to end."""
        holders = [
            holder
            for holder, slots in self._taken.items()
            if any(slot.removeprefix(_CUDA) in self._devices.cuda for slot in slots)
        ]
        if run.count > 1:
            have = {0: "none is free", 1: "1 is free and kept for it"}
            free_now = have.get(len(free), f"{len(free)} are free and kept for it")
            what = f"needs {run.count} GPUs at once, of which {free_now}"
        elif self._kept:
            what = "every free GPU is kept for a run before it that needs several"
        else:
            what = "every GPU is in use"
        one_is_enough = len(free) + 1 == run.count and not self._keepers
        behind = f"; before it in line: {_named(self._keepers)}" if self._keepers else ""
        return f"{what}; {_until(holders, enough=not one_is_enough)}{behind}"


def slots_environment(slots: Sequence[str], threads: int | None) -> dict[str, str]:
    """Returns the environment variables that keep a trainer on its devices and its cores."""
    devices = [slot.removeprefix(_CUDA) for slot in slots if slot.startswith(_CUDA)]
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
    return variables if threads is None else {**variables, THREADS_VARIABLE: str(threads)}


def cuda_devices(env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Returns the CUDA devices of this machine that this process may use."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            timeout=10,
            text=True,
            check=True,
        )
        return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit())
    except (OSError, subprocess.SubprocessError):
        nodes = Path("/dev").glob("nvidia[0-9]*")
        return tuple(sorted(path.name.removeprefix("nvidia") for path in nodes))


def _until(holders: Sequence[str], *, enough: bool = False) -> str:
    many = "enough of these end" if enough else "one of these ends"
    return f"waits until {many}: {_named(holders)}"


def _named(runs: Sequence[str]) -> str:
    more = len(runs) - _MAX_NAMED
    return ", ".join(runs[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
