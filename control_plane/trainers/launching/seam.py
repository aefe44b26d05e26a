"""What the reconcile loop knows of a backend that starts trainers; each backend is a Launcher."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from control_plane.trainers.kinds.kind import Folder
from lectern_common.run.processes import Handle, Identity

__all__ = [
    "Folder",
    "Handle",
    "Launcher",
    "Needs",
    "Seen",
    "Sight",
]


@dataclass(frozen=True)
class Needs:
    """What a run asks of a machine: of its spec, and of the estimate of its memory.

    Attributes:
        gpus: on each node; 0 means CPU only.
        nodes: machines that it runs on.
        processes: ranks in all.
        threads: CPU threads of each process; None means the backend's default.
        memory_bytes: of the host, on each node; None if it cannot be estimated.
    """

    gpus: int = 0
    nodes: int = 1
    processes: int = 1
    threads: int | None = None
    memory_bytes: int | None = None


class Sight(StrEnum):
    """What a look at a process, or job, finds.

    WAITING: accepted, not yet started; `why` is the backend's reason.
    GONE: `exit_status` is as subprocess has it (-N: by signal N); None if nobody knows it.
    UNKNOWN: the backend does not answer, and `why` is what it said. It changes nothing.
    """

    WAITING = "waiting"
    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Seen:
    """What was seen; see Sight."""

    sight: Sight
    why: str | None = None
    exit_status: int | None = None


class Launcher(Protocol):
    """Starts, finds, watches and ends the processes, or jobs, of runs and tasks.

    Attributes:
        backend: the first word of its handles: "local", "slurm" or "ray".
        has_own_queue: the site's scheduler places the runs; the control plane's devices do not
            limit them.
    """

    @property
    def backend(self) -> str: ...

    @property
    def has_own_queue(self) -> bool: ...

    def start(
        self,
        folder: Folder,
        *,
        attempt: int,
        resume: bool,
        needs: Needs,
        environment: Mapping[str, str],
    ) -> Handle:
        """Returns what was started. One run and attempt never start twice: a second call returns
        the handle of the first.

        Raises:
            BackendDown: nothing is known; try again.
            LaunchRefused: it will never be started.
            OSError: it cannot be started.
        """

    def find(self, folder: Folder, attempt: int, said: Identity | None = None) -> Handle | None:
        """Returns the living process, or accepted job, of this run or task; None if there is none.

        Args:
            folder: of the run or task.
            attempt: the one that is asked for.
            said: the process that its status names.

        Raises:
            BackendDown: nothing is known.
        """

    def look(self, handle: Handle) -> Seen:
        """Returns what there is of it now. A backend that does not answer is UNKNOWN."""

    def terminate(self, handle: Handle) -> None:
        """Sends SIGTERM to the trainer, which writes a checkpoint and ends; ignores a dead one.

        Raises:
            BackendDown: it was not sent; send it again.
            OSError: it cannot be signalled.
        """

    def stop_at_checkpoint(self, handle: Handle) -> None:
        """Tells the trainer to end after its next checkpoint. Raises as `terminate` does."""

    def kill(self, handle: Handle) -> None:
        """Kills it, and all that it started. Raises BackendDown."""

    def forget(self, handle: Handle) -> None:
        """Forgets what is kept of one that is gone."""

    def tend(self) -> None:
        """Does what has to be done now and then; never waits."""

    def slowed(self) -> str | None:
        """Returns why runs start more slowly than they could for good; None if they do not."""

    def close(self) -> None:
        """Lets go of what this process holds. Trainers go on."""
