"""Inspects a run's checkpoints without the code that writes them."""

import hashlib
import json
from pathlib import Path

from lectern_common.run.folder import RunFolder

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def visible(folder: RunFolder) -> list[Path]:
    """Returns the checkpoints that a reader sees, oldest first."""
    return sorted(folder.checkpoints_path.glob("step-*"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def newest_step(folder: RunFolder) -> int:
    """Returns the step of the newest visible checkpoint; 0 if there is none."""
    return max((step_of(path) for path in visible(folder)), default=0)


def leftovers(folder: RunFolder) -> list[str]:
    """Returns the names of entries that are neither checkpoints nor set aside."""
    known = ("step-", "broken-step-")
    names = [path.name for path in folder.checkpoints_path.glob("*")]
    return sorted(name for name in names if not name.startswith(known))


def problem_of(checkpoint: Path) -> str:
    """Returns "" if every file has the bytes that the manifest lists, else what is wrong."""
    try:
        listed = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
        missing = set(FILES) - {"manifest.json"} - set(listed)
        if missing:
            return f"{checkpoint.name}: its manifest does not list {min(missing)}"
        for name, facts in listed.items():
            data = (checkpoint / name).read_bytes()
            if len(data) != facts["bytes"]:
                return f"{checkpoint.name}/{name} has {len(data)} bytes; expected {facts['bytes']}"
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                return f"{checkpoint.name}/{name} does not match its hash"
        state = json.loads((checkpoint / "state.json").read_bytes())
    except (OSError, ValueError, KeyError) as error:
        return f"{checkpoint.name}: {error!r}"
    return "" if state["step"] == step_of(checkpoint) else f"{checkpoint.name} is of another step"


def first_problem(folder: RunFolder) -> str:
    """Returns what is wrong with the first incomplete visible checkpoint, or ""."""
    return next((problem for path in visible(folder) if (problem := problem_of(path))), "")
