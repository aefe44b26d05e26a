"""The checkpoints of a run that are on disk, without reading their tensors."""

import json
from pathlib import Path

from control_plane.views.readings import CheckpointView
from lectern_common.run.folder import RunFolder, checkpoint_steps

MAX_STATE_BYTES = 4 << 20


def checkpoints_of(folder: RunFolder) -> list[CheckpointView]:
    """Returns the complete checkpoints, oldest first; one that vanishes meanwhile is left out."""
    found = []
    for step in checkpoint_steps(folder.checkpoints_path):
        path = folder.checkpoints_path / f"step-{step:08d}"
        try:
            size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            completed_at = path.stat().st_mtime
        except OSError:
            continue
        found.append(
            CheckpointView(
                step=step,
                completed_at=completed_at,
                bytes=size,
                validation_loss=_validation_loss(path / "state.json"),
            )
        )
    return found


def _validation_loss(state: Path) -> float | None:
    try:
        with state.open("rb") as file:
            value = json.loads(file.read(MAX_STATE_BYTES)).get("val_loss")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and value == value and abs(value) < 1e300 else None
