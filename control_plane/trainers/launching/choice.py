"""Which backend starts trainers: the options of the control plane, and the launcher they choose."""

import argparse
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from control_plane.trainers.launching.fork_server import ForkServer
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.processes import LocalProcesses
from control_plane.trainers.launching.seam import Launcher
from control_plane.trainers.launching.slurm.launcher import SLURM, SlurmLauncher
from control_plane.trainers.launching.slurm.script import SIGNAL_SECONDS, SlurmOptions
from lectern_common.errors import Misconfigured
from lectern_common.run.processes import LOCAL

_MAX_SIGNAL_SECONDS = 65535  # of sbatch --signal


def add_launcher_options(add: Callable[..., Any]) -> None:
    """Adds the options about where trainers run."""
    add(
        "--launcher",
        choices=[LOCAL, SLURM],
        default=LOCAL,
        help="local: trainers are processes of this machine; slurm: they are jobs, and Slurm "
        "places them (docs/slurm.md)",
    )
    add("--slurm-partition", metavar="NAME", help="of every job (the site's default)")
    add("--slurm-account", metavar="NAME", help="that every job is charged to (the user's default)")
    add("--slurm-gres", metavar="NAME", help="name of the GPUs that jobs ask for, gpu:a100 (gpu)")
    add("--slurm-time-limit", metavar="TIME", help="of every job, as sbatch takes it")
    add(
        "--slurm-signal-seconds",
        type=_signal_seconds,
        metavar="N",
        help=f"before its time limit a job is told to write a checkpoint ({SIGNAL_SECONDS})",
    )


def launcher_from(
    options: argparse.Namespace,
    argv: Sequence[str],
    environment: Mapping[str, str],
    fork_server: Callable[[], ForkServer | None],
) -> Launcher:
    """Returns the launcher that the options choose.

    Args:
        options: of `add_launcher_options`.
        argv: the command that the run folder is appended to.
        environment: added to what trainers inherit.
        fork_server: makes the one that forks trainers of this machine.

    Raises:
        Misconfigured: an option of another backend, or its commands are not installed.
    """
    of_slurm = {
        "partition": options.slurm_partition,
        "account": options.slurm_account,
        "gres": options.slurm_gres,
        "time_limit": options.slurm_time_limit,
        "signal_seconds": options.slurm_signal_seconds,
    }
    given = {name: value for name, value in of_slurm.items() if value is not None}
    if options.launcher == LOCAL:
        if given:
            first = next(iter(given)).replace("_", "-")
            raise Misconfigured(f"--slurm-{first} needs --launcher {SLURM}")
        return LocalLauncher(LocalProcesses(argv, environment, fork_server()))
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise Misconfigured(
                f"--launcher {SLURM}: there is no {command} on PATH; run the control plane on a "
                "machine that submits jobs"
            )
    return SlurmLauncher(argv, environment, SlurmOptions(**given), env=os.environ)


def _signal_seconds(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MAX_SIGNAL_SECONDS:
        raise argparse.ArgumentTypeError(f"must be 1 to {_MAX_SIGNAL_SECONDS}")
    return number
