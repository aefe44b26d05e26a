"""What the next checkpoints need of the disk of the run folders, and what is free there."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from control_plane.views import DiskView
from lectern_common.run.folder import RunFolder
from lectern_common.words import size

# Of a run that has no checkpoint yet.
FIRST_CHECKPOINT_BYTES = 64 << 20
MARGIN_BYTES = 32 << 20  # for metrics, logs and the database


def disk_view(runs_root: Path, active: Iterable[RunFolder]) -> DiskView:
    """Returns how much is free for the run folders, and whether that is too little.

    Args:
        runs_root: lies on the disk.
        active: the folders of the runs that train.

    Raises:
        OSError: the disk cannot be asked.
    """
    usage = shutil.disk_usage(runs_root)
    needed = MARGIN_BYTES + sum(map(next_checkpoint_bytes, active))
    low = usage.free < needed
    return DiskView(
        total_bytes=usage.total,
        free_bytes=usage.free,
        needed_bytes=needed,
        low=low,
        warning=f"{size(usage.free)} free, {size(needed)} needed" if low else None,
    )


def next_checkpoint_bytes(folder: RunFolder) -> int:
    """Returns what a run's next checkpoint takes: a little more than its newest one."""
    try:
        newest = folder.newest_step
        if newest is None:
            return FIRST_CHECKPOINT_BYTES
        path = folder.checkpoints_path / f"step-{newest:08d}"
        return int(1.1 * sum(file.stat().st_size for file in path.iterdir() if file.is_file()))
    except OSError:  # an older one is being removed
        return FIRST_CHECKPOINT_BYTES
