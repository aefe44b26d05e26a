"""A run's checkpoints, looked at without the code that writes them."""

import hashlib
import json
from pathlib import Path

from lectern_common.run_folder import RunFolder

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def visible(folder: RunFolder) -> list[Path]:
    """Returns the checkpoints that a reader sees, oldest first."""
    return sorted(folder.checkpoints_path.glob("step-*"))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def newest_step(folder: RunFolder) -> int:
    """Returns the step of the newest one that is visible, 0 where there is none."""
    return max((step_of(path) for path in visible(folder)), default=0)


def leftovers(folder: RunFolder) -> list[str]:
    """Returns the names of what is neither a checkpoint nor one that was set aside."""
    known = ("step-", "broken-step-")
    names = [path.name for path in folder.checkpoints_path.glob("*")]
    return sorted(name for name in names if not name.startswith(known))


def problem_of(checkpoint: Path) -> str:
    """Returns "" where every file is there with the bytes that the manifest lists."""
    try:
        listed = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
        missing = set(FILES) - {"manifest.json"} - set(listed)
        if missing:
            return f"{checkpoint.name}: its manifest does not list {min(missing)}"
        for name, facts in listed.items():
            data = (checkpoint / name).read_bytes()
            if len(data) != facts["bytes"]:
                return f"{checkpoint.name}/{name} is {len(data)} bytes, not {facts['bytes']}"
            if hashlib.sha256(data).hexdigest() != facts["sha256"]:
                return f"{checkpoint.name}/{name} has other bytes than were written"
        state = json.loads((checkpoint / "state.json").read_bytes())
    except (OSError, ValueError, KeyError) as error:
        return f"{checkpoint.name}: {error!r}"
    return "" if state["step"] == step_of(checkpoint) else f"{checkpoint.name} is of another step"


def first_problem(folder: RunFolder) -> str:
    """Returns what is wrong with the first visible checkpoint that is not whole, or ""."""
    return next((problem for path in visible(folder) if (problem := problem_of(path))), "")
