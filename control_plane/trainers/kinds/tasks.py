"""Tasks, as the reconcile loop looks after them."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.runs.record import FOLDER_MISSING, STATUS_UNREADABLE
from control_plane.tasks.record import Task
from control_plane.trainers.sightings import Problem
from lectern_common.errors import CorruptData, FolderMissing
from lectern_common.spec.sections import DeviceSpec
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.status import TaskStatus


@dataclass(frozen=True)
class TaskKind:
    """See kind.Kind."""

    runs_root: Path
    noun: str = "task"
    process: str = "task's process"

    def folder(self, job: Task) -> TaskFolder:
        return job.folder(self.runs_root)

    def look(self, job: Task) -> tuple[TaskStatus | None, Problem | None]:
        folder = self.folder(job)
        try:
            status = folder.read_status()
        except CorruptData as error:
            return None, Problem(STATUS_UNREADABLE, str(error))
        if status is None and job.handle is not None and not folder.path.is_dir():
            why = f"its folder {folder.path} was removed; create the task anew"
            return None, Problem(FOLDER_MISSING, why)
        return status, None

    def is_of_attempt(self, job: Task, status: TaskStatus) -> bool:
        if status.process is not None and job.process is not None:
            return status.process == job.process
        return status.attempt is not None and status.attempt == job.attempt

    def last_said(self, job: Task) -> TaskStatus | None:
        before = job.last_status
        if before is None or job.handle is None or not self.is_of_attempt(job, before):
            return None
        return before

    def require_not_removed(self, job: Task) -> None:
        if job.run_id is not None and not (self.runs_root / job.run_id).is_dir():
            path = self.runs_root / job.run_id
            raise FolderMissing(f"the folder {path} of its run was removed; put it back")

    def device(self, job: Task) -> DeviceSpec:
        return job.device

    def prepare(self, job: Task) -> bool:
        folder = self.folder(job)
        if not folder.task_path.exists():
            TaskFolder.create(folder.path, job.stage, job.asked)
        return folder.status_path.exists()

    def has_nothing(self, said: TaskStatus) -> bool:
        return False

    def left(self, said: TaskStatus | None) -> str:
        return "what it has done so far is kept"

    def said_nothing(self, exit_status: int) -> str:
        return f"the process ended with exit status {exit_status} before it wrote a status"
