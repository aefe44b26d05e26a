"""What still keeps a run from its disk and its data. Each function blocks as long as they do."""

import os
import tempfile
from pathlib import Path

from control_plane.disk_space import MARGIN_BYTES, disk_view, next_checkpoint_bytes
from control_plane.runs.record import Run
from lectern_common.checks.preflight import require_data
from lectern_common.errors import LecternError
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.words import size

_PROBE_BYTES = 256 << 10


def disk_obstacle(run: Run, roots: Roots) -> str | None:
    """Returns what the run waits for: room, or writes that finish; None if it has both."""
    needed = next_checkpoint_bytes(RunFolder(roots.runs / run.id)) + MARGIN_BYTES
    try:
        free = disk_view(roots.runs, ()).free_bytes
        if free < needed:
            return f"its disk has {size(needed)} free; now {size(free)}"
        _write_probe(roots.runs)
    except OSError as error:
        return f"its disk takes writes again; now: {error.strerror}"
    return None


def data_obstacle(run: Run, roots: Roots) -> str | None:
    """Returns what is wrong with the run's datasets, every byte of them; None if nothing is."""
    try:
        require_data(run.run_spec, roots, packs_chats=RunFolder(roots.runs / run.id).packs_chats)
    except LecternError as error:
        return f"its data can be read again; now: {error}"
    return None


def _write_probe(folder: Path) -> None:
    """Writes a small file durably and removes it: a quota, too, may be full."""
    with tempfile.TemporaryFile(dir=folder, prefix=".ready-") as file:
        file.write(bytes(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
