"""Slurm's own commands, as argument lists: what is asked, what they answer, what a refusal means.

`squeue` is asked for all jobs of this user at once, in a fixed format: `squeue --json` lists the
whole site's jobs, whatever is filtered (Slurm 22.05), and its fields differ between releases.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from control_plane.trainers.launching.seam import Sight
from lectern_common.errors import BackendDown, LaunchRefused

ANSWER_SECONDS = 30.0  # Slurm's commands try for 9 s to reach a controller that is away
LISTING_SECONDS = 1.0  # how old a listing of jobs may be
AGAIN_SECONDS = 5.0  # until a controller that did not answer is asked again
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 15.0, 600.0  # between submits after a limit

# The reason has the words of administrators in it, so it comes last.
_FIELDS = ("JobID:20", "Name:200", "State:20", "exit_code:12", "NumTasks:10", "ReasonList:300")
_FORMAT = ",".join(f"{field}|" for field in _FIELDS)

_WAITING = frozenset(
    ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
)
_GONE = frozenset(
    (
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED", "LAUNCH_FAILED"),
    )
)
# What ends well if it is asked again later, in the words of Slurm's commands (slurm_errno.c).
_AWAY = (
    *("unable to contact slurm controller", "socket timed out", "connection refused"),
    *("zero bytes were transmitted", "communication", "connection reset", "standby mode"),
    *("protocol authentication error", "munge", "authentication", "temporarily unavailable"),
    *("configuration source", "transport endpoint", "timed out"),
)
_LIMITED = (
    *("submitjob", "submit limit", "queue full", "temporarily unable to accept"),
    *("job creation temporarily disabled", "partition not available"),
)
# Named on a line of its own before the general sentence, which mentions the submit limit too.
_LIMIT_OF_ONE_JOB = ("perjoblimit", "maxwall", "maxnodes", "maxcpus", "maxtres", "timelimit")
_NO_SUCH_JOB = ("invalid job id", "already completing or completed", "already finished")


@dataclass(frozen=True)
class SlurmJob:
    """One line of squeue.

    Attributes:
        name: the whole name.
        state: such as "PENDING".
        exit_status: as subprocess has it; None while it lives, and if nobody knows.
        has_steps: several tasks: signals go to its steps, not to its batch script.
        reason: why it waits, in Slurm's words.
    """

    id: str
    name: str
    state: str
    exit_status: int | None
    has_steps: bool
    reason: str

    @property
    def sight(self) -> Sight:
        if self.state in _GONE:
            return Sight.GONE
        return Sight.WAITING if self.state in _WAITING else Sight.ALIVE


class Slurm:
    """Asks Slurm. Every call raises BackendDown while it does not answer.

    Args:
        environment: of the commands; it decides where they are found, and which cluster is asked.
        clock: monotonic seconds.
    """

    def __init__(
        self, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._environment = dict(environment)
        self._clock = clock
        self._jobs: list[SlurmJob] = []
        self._listed_at = float("-inf")
        self._away: tuple[float, str] | None = None  # until when nothing is asked, and why
        self._limit: tuple[float, str] | None = None  # until when nothing is submitted, and why
        self._wait_seconds = FIRST_WAIT_SECONDS

    @property
    def limit(self) -> str | None:
        """Why no job is submitted at present; None if nothing keeps them."""
        return None if self._limit is None else self._limit[1]

    def jobs(self) -> Sequence[SlurmJob]:
        """Returns this user's jobs, also those that ended lately (MinJobAge of the site)."""
        now = self._clock()
        if now - self._listed_at < LISTING_SECONDS:
            return self._jobs
        if self._away is not None and now < self._away[0]:
            raise BackendDown(self._away[1])
        words = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all"]
        status, out, said = self._run([*words, f"--Format={_FORMAT}"])
        if status:
            self._away = self._clock() + AGAIN_SECONDS, f"Slurm does not answer: {said}"
            raise BackendDown(self._away[1])
        self._jobs = [job for line in out.splitlines() if (job := _parsed(line)) is not None]
        self._listed_at, self._away = self._clock(), None
        return self._jobs

    def submit(self, words: Sequence[str], script: str, environment: Mapping[str, str]) -> str:
        """Returns the id of the new job.

        Raises:
            BackendDown: it may have been accepted; look for it before this is called again. After
                a limit on submits nothing is submitted for a while, which grows from one to the
                next.
            LaunchRefused: in Slurm's words.
            OSError: there is no sbatch.
        """
        if self._limit is not None and self._clock() < self._limit[0]:
            raise BackendDown(self._limit[1])
        self._listed_at = float("-inf")
        argv = ["sbatch", "--parsable", *words]
        status, out, said = self._run(argv, script, {**self._environment, **environment})
        lower = said.lower()
        if status == 0:
            self._limit, self._wait_seconds = None, FIRST_WAIT_SECONDS
            return out.strip().partition(";")[0]
        if _is_limit(lower):
            wait, self._wait_seconds = (
                self._wait_seconds,
                min(2 * self._wait_seconds, LONGEST_WAIT_SECONDS),
            )
            text = f"Slurm takes no further job at present, and is asked every {wait:g} s: {said}"
            self._limit = self._clock() + wait, text
            raise BackendDown(text)
        if any(words in lower for words in _AWAY):
            raise BackendDown(f"Slurm does not answer: {said}")
        raise LaunchRefused(f"Slurm refuses it: {said}")

    def cancel(self, ids: Sequence[str], *options: str) -> None:
        """Runs scancel on jobs; those that are over are ignored."""
        self._listed_at = float("-inf")
        status, _, said = self._run(["scancel", *options, *ids])
        lines = [line for line in said.lower().splitlines() if line.strip()]
        if status and not all(any(words in line for words in _NO_SUCH_JOB) for line in lines):
            raise BackendDown(f"Slurm did not take the signal: {said}")

    def _run(
        self, argv: list[str], stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Returns exit status, output and what was said of an error."""
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                env=dict(self._environment if environment is None else environment),
                timeout=ANSWER_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stderr.decode(errors="replace") if error.stderr else ""
            return 1, "", f"{said.strip()} ({argv[0]} timed out)".strip()
        return done.returncode, done.stdout, _words(done.stderr)


def _is_limit(said: str) -> bool:
    if any(words in said for words in _LIMITED[:1]):
        return True
    if any(words in said for words in _LIMIT_OF_ONE_JOB):
        return False
    return any(words in said for words in _LIMITED)


def _words(stderr: str) -> str:
    """Returns what a command said, without its own name before each line."""
    lines = [line.split(" error: ", 1)[-1].strip() for line in stderr.splitlines()]
    return "\n".join(line for line in lines if line) or "it says nothing"


def _parsed(line: str) -> SlurmJob | None:
    fields = [field.strip() for field in line.split("|", len(_FIELDS) - 1)]
    if len(fields) < len(_FIELDS):
        return None
    key, name, state, raw, tasks, reason = fields
    exit_status = None
    # One that was cancelled before it ran has 0, which is no exit of its program.
    if state in ("COMPLETED", "FAILED", "OUT_OF_MEMORY") and raw.isdecimal():
        exit_status = os.waitstatus_to_exitcode(int(raw))
    reason = reason.rstrip("|").strip().strip("()")
    has_steps = tasks.isdecimal() and int(tasks) > 1
    return SlurmJob(key, name, state, exit_status, has_steps, reason)
