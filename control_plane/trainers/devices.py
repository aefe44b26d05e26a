"""Decides which device a run gets, and how many runs train at the same time. No torch.

A slot is "cuda:<device>" or "cpu". A CUDA device takes `runs_per_gpu` runs; CPU runs share the
machine; `max_running` bounds their total number.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lectern_common.errors import InvalidSpec
from lectern_common.spec.run_spec import RunSpec

CPU = "cpu"
DEFAULT_MAX_RUNNING = 4
_MAX_NAMED = 4


@dataclass(frozen=True)
class Devices:
    """The slots of this machine. `cuda` holds each device's name for CUDA_VISIBLE_DEVICES."""

    cuda: tuple[str, ...]
    max_running: int
    runs_per_gpu: int = 1

    def require_has(self, spec: RunSpec) -> None:
        """Raises InvalidSpec if the run needs a kind of device that this machine lacks."""
        if spec.device.kind == "cuda" and not self.cuda:
            why = "there is no CUDA device on this machine; set auto or cpu"
            raise InvalidSpec([("device.kind", why)])

    def choose(self, kind: str, taken: Sequence[str]) -> str | None:
        """Returns a free slot for a run, or None if it must wait.

        Args:
            kind: `device.kind` of its spec.
            taken: slots of the runs that have one.
        """
        if len(taken) >= self.max_running:
            return None
        if kind == "cpu" or not self.cuda:
            return CPU
        load = Counter(taken)
        least = min(self.cuda, key=lambda device: load[f"cuda:{device}"])
        return f"cuda:{least}" if load[f"cuda:{least}"] < self.runs_per_gpu else None

    def why_none(self, kind: str, taken: Mapping[str, str]) -> str | None:
        """Returns what a run waits for if `choose` has no slot for it, else None.

        Args:
            kind: `device.kind` of its spec.
            taken: slot of each run that has one, by the run's id.
        """
        if self.choose(kind, [*taken.values()]) is not None:
            return None
        if len(taken) >= self.max_running:
            holders, limit = [*taken], f"at most {self.max_running} runs train at once"
        else:
            holders = [run for run, slot in taken.items() if slot != CPU]
            limit = "every GPU is in use"
        named = ", ".join(holders[:_MAX_NAMED])
        more = len(holders) - _MAX_NAMED
        return f"{limit}; waits until one of these ends: {named}" + (
            f" and {more} more" if more > 0 else ""
        )


def slot_environment(slot: str) -> dict[str, str]:
    """Returns the environment variables that keep a trainer on its slot."""
    kind, _, device = slot.partition(":")
    return {"CUDA_VISIBLE_DEVICES": device} if kind == "cuda" else {}


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
