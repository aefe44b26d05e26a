"""Prunes runs: deletes those at rest that meet criteria, and says what that frees."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.deletion import delete_run
from control_plane.runs.keeping.sizes import entries_of, freed_bytes, size_of_entries
from control_plane.runs.queries import Runs
from control_plane.runs.record import Run
from lectern_common.errors import Conflict, InvalidRequest, NotFound
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RESTING

_DAY_SECONDS = 86400.0


class Criteria(BaseModel):
    """Which runs to prune. A run goes only if it meets all that are given, of which one must be."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    states: Annotated[
        list[Literal["stopped", "succeeded", "failed", "interrupted"]], Field(max_length=4)
    ] = []
    """Only runs in these states; none means all that are at rest."""
    older_than_days: Annotated[float, Field(gt=0, le=36500, allow_inf_nan=False)] | None = None
    """Only runs that have been in their state for longer."""
    keep_newest: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """The newest ones in these states and this group stay, whatever their age."""
    group: Annotated[str, Field(max_length=200)] | None = None
    """Only runs of this group."""
    dry_run: bool = True
    """Deletes nothing; the answer says what would be."""

    def require_any(self) -> None:
        """Raises InvalidRequest unless there is a criterion: without one every run would go."""
        if not self.states and (self.older_than_days, self.keep_newest, self.group) == (None,) * 3:
            raise InvalidRequest(
                "name the runs to prune by at least one of states, older_than_days, keep_newest "
                "and group; without any, all that are at rest would be deleted"
            )

    def chosen(self, runs: list[Run], now: float) -> list[Run]:
        """Returns the runs that meet the criteria, in their order.

        Never one that is active, queued, or resumes by itself.

        Args:
            runs: oldest first.
            now: Unix seconds.
        """
        found = [
            run
            for run in runs
            if run.state in RESTING
            and not run.resumes_itself
            and (not self.states or str(run.state) in self.states)
            and (self.group is None or run.spec.get("group") == self.group)
        ]
        if self.keep_newest is not None:
            found = found[: -self.keep_newest]
        if self.older_than_days is not None:
            latest = now - self.older_than_days * _DAY_SECONDS
            found = [run for run in found if run.since < latest]
        return found


@dataclass
class Pruned:
    """What was pruned, or would be.

    Attributes:
        runs: each with the bytes that it takes on disk.
        freed: bytes that are free without them: a file that another run shares frees nothing.
        deleted: how many were deleted; 0 in a dry run.
        left_out: ids of runs that could not be deleted, each with the reason.
    """

    runs: list[tuple[Run, int]] = field(default_factory=list)
    freed: int = 0
    deleted: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def prune(
    runs: Runs, commands: RunCommands, runs_root: Path, criteria: Criteria, now: float
) -> Pruned:
    """Deletes the runs that meet the criteria, each as `delete_run` does, unless `dry_run` is set.

    A run that is resumed meanwhile, even if it rests again, or is trained by a process of another
    program, is left out.

    Raises:
        InvalidRequest: there is no criterion.
    """
    criteria.require_any()
    pruned, gone = Pruned(), []
    for run in criteria.chosen(runs.in_states(list(RESTING)), now):
        folder = RunFolder(runs_root / run.id)
        entries = entries_of(folder.path)
        if not criteria.dry_run:
            try:
                if not delete_run(commands, folder, run.since):
                    why = "deleted, but not all of its files; the next start tries again"
                    pruned.left_out.append((run.id, why))
                    entries = []
                pruned.deleted += 1
            except NotFound:
                continue  # somebody else deleted it
            except (Conflict, OSError) as error:
                pruned.left_out.append((run.id, str(error)))
                continue
        pruned.runs.append((run, size_of_entries(entries)))
        gone.append(entries)
    pruned.freed = freed_bytes(gone)
    return pruned
