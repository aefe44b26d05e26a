"""Runs, as the reconcile loop looks after them."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.runs.forking import put_fork_in_place
from control_plane.runs.record import Run, require_not_removed
from control_plane.trainers.sightings import Problem, is_of_attempt, last_said, look
from lectern_common.errors import FolderMissing, InvalidSpec
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState, Status
from lectern_common.spec.sections import DeviceSpec


@dataclass(frozen=True)
class RunKind:
    """See kind.Kind."""

    runs_root: Path
    noun: str = "run"
    process: str = "trainer"

    def folder(self, job: Run) -> RunFolder:
        return RunFolder(self.runs_root / job.id)

    def look(self, job: Run) -> tuple[Status | None, Problem | None]:
        return look(job, self.folder(job))

    def is_of_attempt(self, job: Run, status: Status) -> bool:
        return is_of_attempt(job, status)

    def last_said(self, job: Run) -> Status | None:
        return last_said(job)

    def require_not_removed(self, job: Run) -> None:
        require_not_removed(job, self.folder(job))

    def device(self, job: Run) -> DeviceSpec:
        return job.run_spec.device

    def prepare(self, job: Run) -> bool:
        folder = self.folder(job)
        if job.forked_from is not None and not folder.path.exists():
            put_fork_in_place(folder.path.parent, job.id)
            if not folder.path.exists():
                raise FolderMissing(
                    f"the folder of run {job.id} was removed, with the checkpoint of "
                    f"{job.forked_from} that it was to begin with; fork that run again"
                )
        if not folder.path.exists():
            RunFolder.create(folder.path.parent, folder.run_id, job.run_spec, job.taught_by)
            return False
        try:
            is_as_wanted = folder.read_spec() == job.run_spec
        except InvalidSpec:  # missing or damaged; the row has it
            is_as_wanted = False
        if not is_as_wanted:
            folder.write_spec(job.run_spec)
        if job.taught_by is not None and not folder.teacher_path.exists():
            folder.write_teacher(job.taught_by)
        return folder.status_path.exists() or folder.newest_step is not None

    def has_nothing(self, said: Status) -> bool:
        return said.state is RunState.STARTING and said.checkpoint_step is None

    def left(self, said: Status | None) -> str:
        step = said.checkpoint_step if said is not None else None
        return (
            "no checkpoint was written" if step is None else f"the newest checkpoint is step {step}"
        )

    def said_nothing(self, exit_status: int) -> str:
        return f"the trainer ended with exit status {exit_status} before its first step"
