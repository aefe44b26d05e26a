"""A seam.Launcher over Slurm: one job for each attempt of a run or task.

A job is known by its number and by its name, which holds the folder's path (hashed) and the
attempt: numbers begin anew when a controller has lost its state. Before a job is submitted, it is
looked for by name, so that a control plane that died between sbatch and its database, or an sbatch
that was given up and still came through, makes no second one. Jobs of one name run one after the
other (`singleton`), and only the first of them trains (script.py). Last, the folder's lock decides.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence

from control_plane.trainers.devices import CUDA_MASK, HIP_MASK
from control_plane.trainers.launching.environment import trainer_environment
from control_plane.trainers.launching.processes import TRAINER_ARGV
from control_plane.trainers.launching.seam import Folder, Handle, Needs, Seen, Sight
from control_plane.trainers.launching.slurm.commands import Slurm, SlurmJob
from control_plane.trainers.launching.slurm.script import (
    SlurmOptions,
    claim_path,
    options_of,
    script_of,
)
from lectern_common.errors import BackendDown
from lectern_common.run.processes import Identity

SLURM = "slurm"
_MAX_CLAIM_BYTES = 20  # digits of a job's number
# Which cluster the commands speak to. Other SLURM_ variables would be options of theirs.
_CLUSTER = ("SLURM_CONF",)
_STOP_AT_CHECKPOINT = "USR1"  # run.folder.STOP_AT_CHECKPOINT_SIGNAL


class SlurmLauncher:
    """Trainers as Slurm jobs.

    Args:
        argv: the command that the run folder is appended to; the nodes must have it too.
        environment: added to what a trainer inherits (environment.py).
        options: of each job.
        clock: monotonic seconds.
        env: what a trainer and Slurm's commands inherit from.
    """

    backend = SLURM
    has_own_queue = True

    def __init__(
        self,
        argv: Sequence[str] = TRAINER_ARGV,
        environment: Mapping[str, str] | None = None,
        options: SlurmOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._argv = list(argv)
        self._options = options or SlurmOptions()
        inherited = trainer_environment(env)
        for mask in (CUDA_MASK, HIP_MASK):  # of this machine; Slurm sets that of each job
            inherited.pop(mask, None)
        self._environment = {**inherited, **(environment or {})}
        cluster = {name: env[name] for name in _CLUSTER if name in env}
        self._slurm = Slurm({**inherited, **cluster}, clock)

    def start(
        self,
        folder: Folder,
        *,
        attempt: int,
        resume: bool,
        needs: Needs,
        environment: Mapping[str, str],
    ) -> Handle:
        key = _key(folder, attempt)
        known = self._known(folder, attempt)
        if known is not None:
            return Handle(SLURM, f"{known}/{key}")
        name = f"lectern-{folder.path.name}-{key}"
        script = script_of(self._argv, folder, attempt=attempt, resume=resume, needs=needs)
        number = self._slurm.submit(
            options_of(self._options, needs, name, folder),
            script,
            {**self._environment, **environment},
        )
        return Handle(SLURM, f"{number}/{key}")

    def find(self, folder: Folder, attempt: int, said: Identity | None = None) -> Handle | None:
        key = _key(folder, attempt)
        number = self._known(folder, attempt)
        alive = [job.id for job in self._named(key) if job.sight is not Sight.GONE]
        return Handle(SLURM, f"{number}/{key}") if number in alive else None

    def look(self, handle: Handle) -> Seen:
        try:
            job = self._job(handle)
        except BackendDown as error:
            return Seen(Sight.UNKNOWN, str(error))
        if job is None:  # forgotten; the run folder says how it ended
            return Seen(Sight.GONE)
        if job.sight is Sight.GONE:
            return Seen(Sight.GONE, _how(job), job.exit_status)
        return Seen(job.sight, _how(job) if job.sight is Sight.WAITING else None)

    def terminate(self, handle: Handle) -> None:
        self._signal(handle, "TERM")

    def stop_at_checkpoint(self, handle: Handle) -> None:
        self._signal(handle, _STOP_AT_CHECKPOINT)

    def kill(self, handle: Handle) -> None:
        """Also cancels the other jobs of the attempt, which would start once it is over."""
        alive = [
            job.id
            for job in self._named(handle.id.partition("/")[2])
            if job.sight is not Sight.GONE
        ]
        if not alive:
            return
        # The first ends a trainer without a checkpoint; the second takes back what waits.
        self._slurm.cancel(alive, "--batch", "--signal=KILL")
        self._slurm.cancel(alive)

    def forget(self, handle: Handle) -> None:
        """Keeps nothing of a job."""

    def tend(self) -> None:
        """Has nothing to do between looks."""

    def slowed(self) -> str | None:
        return self._slurm.limit

    def close(self) -> None:
        """Holds nothing. Jobs go on."""

    def _signal(self, handle: Handle, name: str) -> None:
        job = self._job(handle)
        if job is None or job.sight is not Sight.ALIVE:
            return
        options = [f"--signal={name}"]
        if not job.has_steps:
            options.append("--batch")
        self._slurm.cancel([job.id], *options)

    def _job(self, handle: Handle) -> SlurmJob | None:
        number, _, key = handle.id.partition("/")
        return next((job for job in self._named(key) if job.id == number), None)

    def _named(self, key: str) -> list[SlurmJob]:
        return [job for job in self._slurm.jobs() if job.name.endswith(f"-{key}")]

    def _known(self, folder: Folder, attempt: int) -> str | None:
        """Returns the number of the attempt's job, which may be over; None if there is none.

        It is the one that claimed the attempt; before any has, the first that was submitted.
        """
        listed = {job.id for job in self._named(_key(folder, attempt))}
        others = {job.id for job in self._slurm.jobs()} - listed
        try:
            with claim_path(folder, attempt).open("rb") as file:
                claimed = file.read(_MAX_CLAIM_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError):
            claimed = ""
        # The trainer could have written another's number.
        if claimed.isdecimal() and claimed not in others:
            return claimed
        return min(listed, key=int, default=None)


def _key(folder: Folder, attempt: int) -> str:
    path = hashlib.sha256(str(folder.path).encode()).hexdigest()[:12]
    return f"{path}.{attempt}"


def _how(job: SlurmJob) -> str:
    """Returns Slurm's words: "PENDING (Resources)"."""
    return f"{job.state} ({job.reason})" if job.reason not in ("", "None") else job.state
