"""What Slurm runs of a run or task: the options of its job, and its batch script.

The script is made of fixed text and quoted paths; nothing of a spec is in it. It ends by `exec`, so
that the trainer takes the place of the shell and gets the signals that are meant for it.

Of several jobs of one attempt only the first to start goes on: its number is written into the run's
folder, which the others find. A job that Slurm has requeued finds its own number, and resumes: what
the trainer's status says is then of an earlier life, and is put aside.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from control_plane.trainers.launching.seam import Folder, Needs
from lectern_common.stages.folder import TaskFolder

SIGNAL_SECONDS = 120
REQUEUED_STATUS = ".status-before-requeue.json"


@dataclass(frozen=True)
class SlurmOptions:
    """What a site asks of a job.

    Attributes:
        gres: the name of its GPUs, such as "gpu" or "gpu:a100"; their number is appended.
        time_limit: as sbatch takes it; None means the partition's.
        signal_seconds: before the time limit, to write a checkpoint in.
    """

    partition: str | None = None
    account: str | None = None
    gres: str = "gpu"
    time_limit: str | None = None
    signal_seconds: int = SIGNAL_SECONDS


def options_of(options: SlurmOptions, needs: Needs, name: str, folder: Folder) -> list[str]:
    """Returns sbatch's options of a job."""
    each = math.ceil(needs.processes / needs.nodes)
    # A signal goes to the steps of a job, or only to its batch script.
    receiver = "" if needs.nodes > 1 else "B:"
    # Slurm replaces %j and the like in the name of a file.
    log = str(folder.log_path).replace("%", "%%")
    words = [
        *(f"--job-name={name}", "--dependency=singleton", "--requeue"),
        *(f"--output={log}", "--open-mode=append", "--input=/dev/null", "--chdir=/"),
        *(f"--nodes={needs.nodes}", f"--ntasks={needs.nodes}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={each * (needs.threads or 1)}", "--export=ALL"),
        f"--signal={receiver}TERM@{options.signal_seconds}",
    ]
    if needs.gpus:
        words.append(f"--gres={options.gres}:{needs.gpus}")
    if needs.memory_bytes is not None:
        words.append(f"--mem={math.ceil(needs.memory_bytes / 2**20)}M")
    given = {
        "partition": options.partition,
        "account": options.account,
        "time": options.time_limit,
    }
    return [*words, *(f"--{key}={value}" for key, value in given.items() if value is not None)]


def claim_path(folder: Folder, attempt: int) -> Path:
    """Returns the file that holds the number of the job that does this attempt."""
    return folder.path / f".slurm-attempt-{attempt}"


def script_of(
    argv: Sequence[str], folder: Folder, *, attempt: int, resume: bool, needs: Needs
) -> str:
    """Returns the batch script.

    Args:
        argv: the command that the folder is appended to; its first word is a Python.
        folder: of the run or task.
        attempt: of it.
        resume: from its newest checkpoint.
        needs: several nodes make one torchrun on each.
    """
    if isinstance(folder, TaskFolder):
        words, again = [*argv, folder.read_asked()[0], str(folder.path)], ""
    else:
        words, again = [*argv, str(folder.path)], "--resume"
    several = needs.nodes > 1
    command = shlex.join(words)
    if several:
        command = _torchrun(argv[0], command, needs)
    return _SCRIPT.format(
        folder=shlex.quote(str(folder.path)),
        claim=shlex.quote(str(claim_path(folder, attempt))),
        status=shlex.quote(str(folder.status_path)),
        aside=shlex.quote(str(folder.path / REQUEUED_STATUS)),
        resume=again if resume or several else "",
        again=again,
        rendezvous=_RENDEZVOUS.format(python=shlex.quote(argv[0])) if several else "",
        command=command,
    )


def _torchrun(python: str, command: str, needs: Needs) -> str:
    """Returns the command of one torchrun on each node, which starts the node's ranks.

    Slurm signals every process of a step. torchrun would pass a SIGTERM on, and a trainer that
    gets a second one ends without a checkpoint; so torchrun ignores it, and ends with its ranks.
    """
    each = math.ceil(needs.processes / needs.nodes)
    return (
        f"srun --kill-on-bad-exit=1 --cpus-per-task={each * (needs.threads or 1)} bash -c '{_NODE}'"
        f" {shlex.quote(python)} --nnodes={needs.nodes} --nproc-per-node={each}"
        f" --signals-to-handle=SIGQUIT --max-restarts=0 --no-python {command}"
    )


_NODE = (
    'trap "" TERM USR1; exec "$0" -m torch.distributed.run --node-rank="$SLURM_NODEID"'
    ' --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" "$@"'
)

_RENDEZVOUS = """\
# The ranks meet on this host, the first of the allocation.
export MASTER_ADDR=$(hostname)
export MASTER_PORT=$({python} -c \\
  'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
"""

_SCRIPT = """\
#!/bin/bash
if ! [ -d {folder} ]; then
  echo "no folder" {folder} "on $(hostname): the runs must lie where every node sees them" >&2
  exit 1
fi
# One job for each attempt, however many were submitted; a requeued one finds its own number.
set -o noclobber
if ! {{ echo "$SLURM_JOB_ID" > {claim}; }} 2> /dev/null; then
  [ "$(cat {claim})" = "$SLURM_JOB_ID" ] || exit 0
fi
set +o noclobber
resume={resume}
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ]; then
  echo "requeued by Slurm, for the ${{SLURM_RESTART_COUNT}}. time"
  mv -f {status} {aside} 2> /dev/null
  resume={again}
fi
{rendezvous}exec {command} $resume
"""
