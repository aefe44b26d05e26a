"""What became of runs that were pruned, and of folders that were adopted."""

from control_plane.runs.keeping.adoption import Adopted
from control_plane.runs.keeping.pruning import Pruned
from control_plane.views.view import View
from lectern_common.run.status import RunState


class PrunedRunView(View):
    """A run that was pruned, or would be."""

    run_id: str
    name: str
    state: RunState
    since: float
    """When it entered this state."""
    disk_bytes: int
    """What its folder takes on disk."""


class RefusalView(View):
    """A run with which nothing was done, and why."""

    run_id: str
    detail: str


class PrunedView(View):
    """What was pruned; with `dry_run`, what would be."""

    runs: list[PrunedRunView]
    """Oldest first."""
    bytes: int
    """What is free without them. A file that another run shares by a hard link frees nothing."""
    deleted: int
    """How many were deleted; 0 with `dry_run`."""
    left_out: list[RefusalView]
    """Those that could not be deleted, such as one that was resumed meanwhile."""


class AdoptedRunView(View):
    """A run that now has a row."""

    run_id: str
    name: str
    state: RunState
    step: int


class AdoptedView(View):
    """What was made of run folders."""

    adopted: list[AdoptedRunView]
    """Oldest first; without those that were known."""
    refused: list[RefusalView]
    """Folders that are damaged, or trained by another program; nothing in them was touched."""


def pruned_view(pruned: Pruned) -> PrunedView:
    """Returns the view of what was pruned."""
    runs = [
        PrunedRunView(
            run_id=run.id, name=run.name, state=run.state, since=run.since, disk_bytes=num_bytes
        )
        for run, num_bytes in pruned.runs
    ]
    left_out = [RefusalView(run_id=run_id, detail=why) for run_id, why in pruned.left_out]
    return PrunedView(runs=runs, bytes=pruned.freed, deleted=pruned.deleted, left_out=left_out)


def adopted_view(adopted: Adopted) -> AdoptedView:
    """Returns the view of what was adopted."""
    return AdoptedView(
        adopted=[
            AdoptedRunView(
                run_id=run.id,
                name=run.name,
                state=run.state,
                step=run.last_status.step if run.last_status else 0,
            )
            for run in adopted.runs
        ],
        refused=[RefusalView(run_id=run_id, detail=why) for run_id, why in adopted.refused],
    )
