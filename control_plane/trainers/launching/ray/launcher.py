"""A seam.Launcher over Ray Jobs: one job for each attempt of a run or task.

A job is known by its submission id, which holds the folder's path (hashed) and the attempt. Ray
takes an id only once, so neither a control plane that died between the submit and its database nor
a submit that was given up and still came through makes a second one. A job is ours only if its
command names the folder that its id was made of. Last, the folder's lock decides.

Ray keeps its jobs in the head's memory, unless the site gave it a Redis. A head that died takes
them along; the new one knows none of them, so they are gone, and their runs resume.
"""

import hashlib
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from control_plane.trainers.devices import CUDA_MASK, HIP_MASK
from control_plane.trainers.launching.environment import trainer_environment
from control_plane.trainers.launching.processes import TRAINER_ARGV
from control_plane.trainers.launching.ray.jobs import Jobs, RayJob
from control_plane.trainers.launching.seam import Folder, Handle, Needs, Seen, Sight
from lectern_common.errors import BackendDown, LaunchRefused
from lectern_common.run.folder import STOP_FILE_VARIABLE
from lectern_common.run.processes import Identity
from lectern_common.stages.folder import TaskFolder

RAY = "ray"
RAY_ADDRESS = "http://127.0.0.1:8265"
# Ray shows a job's variables to everyone who reaches its dashboard.
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_)")
_WITH_PASSWORD = re.compile(r"://[^/]*@")
# A job's own, so they hold whatever the cluster was started with.
_STOP_SIGNAL, _STOP_WAIT = "RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"


@dataclass(frozen=True)
class RayOptions:
    """How a cluster is reached.

    Attributes:
        address: the URL of its head's dashboard.
        token_file: holds the token of a cluster with RAY_AUTH_MODE=token.
        grace_seconds: from SIGTERM to SIGKILL, at least; Ray counts whole seconds.
    """

    address: str = RAY_ADDRESS
    token_file: Path | None = None
    grace_seconds: float = 60.0


class RayLauncher:
    """Trainers as Ray jobs.

    Args:
        argv: the command that the run folder is appended to; the nodes must have it too.
        environment: added to what a trainer inherits (environment.py), without secrets.
        options: of the cluster.
        clock: monotonic seconds.
        env: what a trainer inherits from.
    """

    backend = RAY
    has_own_queue = True

    def __init__(
        self,
        argv: Sequence[str] = TRAINER_ARGV,
        environment: Mapping[str, str] | None = None,
        options: RayOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        options = options or RayOptions()
        self._argv = list(argv)
        inherited = trainer_environment(env)
        for mask in (CUDA_MASK, HIP_MASK):  # of this machine; Ray sets that of each job
            inherited.pop(mask, None)
        self._environment = {
            **{name: value for name, value in inherited.items() if not _is_secret(name, value)},
            **(environment or {}),
            _STOP_SIGNAL: "SIGTERM",
            _STOP_WAIT: str(math.ceil(options.grace_seconds) + 1),
        }
        self._jobs = Jobs(options.address, options.token_file, clock)

    def start(
        self,
        folder: Folder,
        *,
        attempt: int,
        resume: bool,
        needs: Needs,
        environment: Mapping[str, str],
    ) -> Handle:
        if needs.nodes > 1:
            raise LaunchRefused(
                f"a Ray job runs on one node, and device.nodes is {needs.nodes}: set it to 1, or "
                "run the control plane with --launcher slurm"
            )
        job_id = submission_id(folder.path, attempt)
        if self._jobs.get(job_id) is None:
            stop_file = {STOP_FILE_VARIABLE: str(_stop_file(folder.path, attempt))}
            self._jobs.submit(
                {
                    "submission_id": job_id,
                    "entrypoint": entrypoint_of(self._argv, folder, resume=resume),
                    "runtime_env": {"env_vars": {**self._environment, **environment, **stop_file}},
                    "metadata": {"job_name": folder.path.name},
                    "entrypoint_num_gpus": needs.gpus,
                    "entrypoint_num_cpus": needs.processes * (needs.threads or 1),
                    "entrypoint_memory": needs.memory_bytes,
                }
            )
        job = self._jobs.get(job_id)
        if job is not None and _folder_of(job) is None:
            raise LaunchRefused(
                f"Ray has a job {job_id} that is not of this folder; it runs: {job.entrypoint}"
            )
        return Handle(RAY, job_id)

    def find(self, folder: Folder, attempt: int, said: Identity | None = None) -> Handle | None:
        handle = Handle(RAY, submission_id(folder.path, attempt))
        return None if self._living(handle) is None else handle

    def look(self, handle: Handle) -> Seen:
        try:
            job = self._ours(handle)
        except BackendDown as error:
            return Seen(Sight.UNKNOWN, str(error))
        if job is None:  # of a head that died; the run folder says how it ended
            return Seen(Sight.GONE)
        if job.sight is Sight.ALIVE:
            return Seen(Sight.ALIVE)
        return Seen(job.sight, job.message, job.exit_status)

    def terminate(self, handle: Handle) -> None:
        """Ray sends SIGTERM to what the trainer has started as well; its ranks ignore that."""
        self.kill(handle)

    def stop_at_checkpoint(self, handle: Handle) -> None:
        """Puts a file where the trainer looks for it: Ray sends no signal but that of a stop."""
        job = self._living(handle)
        folder = None if job is None else _folder_of(job)
        if folder is not None:
            _stop_file(folder, _attempt_of(handle.id)).touch()

    def kill(self, handle: Handle) -> None:
        """Ray kills what is left of the job, but only after the wait that began with its stop."""
        if self._living(handle) is not None:
            self._jobs.stop(handle.id)

    def forget(self, handle: Handle) -> None:
        """Keeps nothing of a job."""

    def tend(self) -> None:
        """Has nothing to do between looks."""

    def slowed(self) -> str | None:
        return None

    def close(self) -> None:
        self._jobs.close()

    def _ours(self, handle: Handle) -> RayJob | None:
        job = self._jobs.get(handle.id)
        return None if job is None or _folder_of(job) is None else job

    def _living(self, handle: Handle) -> RayJob | None:
        job = self._ours(handle)
        return None if job is None or job.sight is Sight.GONE else job


def submission_id(folder: Path, attempt: int) -> str:
    """Returns the id of an attempt's job: "lectern-RUN-HASH.ATTEMPT"."""
    path = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return f"lectern-{folder.name}-{path}.{attempt}"


def entrypoint_of(argv: Sequence[str], folder: Folder, *, resume: bool) -> str:
    """Returns the command that Ray runs through a shell; nothing of a spec is in it.

    `exec`, so that the trainer takes the place of the shell. Its output goes to the folder's log;
    Ray would keep it on the node.
    """
    if isinstance(folder, TaskFolder):
        words = [*argv, folder.read_asked()[0], str(folder.path)]
    else:
        words = [*argv, str(folder.path), *(["--resume"] if resume else [])]
    return f"exec {shlex.join(words)} >>{shlex.quote(str(folder.log_path))} 2>&1 </dev/null"


def _folder_of(job: RayJob) -> Path | None:
    """Returns the folder that the job's command names; None if its id is not made of that."""
    try:
        words = shlex.split(job.entrypoint)
    except ValueError:
        return None
    if words[:1] != ["exec"]:
        return None
    attempt = _attempt_of(job.id)
    return next(
        (Path(word) for word in words if submission_id(Path(word), attempt) == job.id), None
    )


def _attempt_of(job_id: str) -> int:
    digits = job_id.rpartition(".")[2]
    return int(digits) if digits.isdecimal() else 0


def _stop_file(folder: Path, attempt: int) -> Path:
    return folder / f".stop-at-checkpoint-{attempt}"


def _is_secret(name: str, value: str) -> bool:
    return _SECRET_NAME.search(name) is not None or _WITH_PASSWORD.search(value) is not None
