"""The files of a checkpoint: their names, their hashes, and whether they are what was written.

Without tensors: the trainer writes checkpoints (student_trainer/journal/checkpoint.py), and the
control plane makes a new run of one (control_plane/runs/forking.py).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from lectern_common.errors import CorruptData

MODEL_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
MANIFEST_NAME = "manifest.json"
_BLOCK_BYTES = 1 << 20


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Returns the folder of the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def verified_state(path: Path) -> dict[str, Any]:
    """Returns the state in a checkpoint whose files all match their sizes and hashes.

    Reads every byte.

    Raises:
        CorruptData: a file does not match, or is missing.
    """
    try:
        files = json.loads((path / MANIFEST_NAME).read_bytes())["files"]
        missing = {MODEL_NAME, OPTIMIZER_NAME, STATE_NAME} - set(files)
        if missing:
            raise CorruptData(f"the manifest of {path} does not list {min(missing)}")
        for name, facts in files.items():
            if (path / name).stat().st_size != facts["bytes"]:
                raise CorruptData(f"{path / name} does not have {facts['bytes']} bytes")
            if sha256_of(path / name) != facts["sha256"]:
                raise CorruptData(f"{path / name} is damaged: its SHA-256 differs")
        state = json.loads((path / STATE_NAME).read_bytes())
        return {**state, "step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptData(f"{path} is not a complete checkpoint: {error}") from None


def manifest_of(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder that has none yet."""
    return {
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(folder.iterdir())
        }
    }


def write_json(path: Path, data: Any) -> None:
    """Writes JSON as checkpoints hold it."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False))


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
