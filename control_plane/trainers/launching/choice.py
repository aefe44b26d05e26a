"""Which backend starts trainers: the options of the control plane, and the launcher they choose."""

import argparse
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from control_plane.trainers.launching.fork_server import ForkServer
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.processes import LocalProcesses
from control_plane.trainers.launching.ray.launcher import RAY, RAY_ADDRESS, RayLauncher, RayOptions
from control_plane.trainers.launching.seam import Launcher
from control_plane.trainers.launching.slurm.launcher import SLURM, SlurmLauncher
from control_plane.trainers.launching.slurm.script import SIGNAL_SECONDS, SlurmOptions
from lectern_common.callers import token_in
from lectern_common.errors import Misconfigured
from lectern_common.run.processes import LOCAL

_MAX_SIGNAL_SECONDS = 65535  # of sbatch --signal


def add_launcher_options(add: Callable[..., Any]) -> None:
    """Adds the options about where trainers run."""
    add(
        "--launcher",
        choices=[LOCAL, SLURM, RAY],
        default=LOCAL,
        help="local: trainers are processes of this machine; slurm, ray: they are jobs "
        "of a cluster, which places them (docs/slurm.md, docs/ray.md)",
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
    add("--ray-address", metavar="URL", help=f"of the head's dashboard ({RAY_ADDRESS})")
    add("--ray-token-file", type=Path, help="token of a cluster with RAY_AUTH_MODE=token")


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
    of_ray = {"address": options.ray_address, "token_file": options.ray_token_file}
    given = {
        backend: {name: value for name, value in values.items() if value is not None}
        for backend, values in ((SLURM, of_slurm), (RAY, of_ray))
    }
    for backend, values in given.items():
        if values and options.launcher != backend:
            first = next(iter(values)).replace("_", "-")
            raise Misconfigured(f"--{backend}-{first} needs --launcher {backend}")
    if options.launcher == LOCAL:
        return LocalLauncher(LocalProcesses(argv, environment, fork_server()))
    if options.launcher == RAY:
        of_cluster = RayOptions(**given[RAY], grace_seconds=options.stop_grace_seconds)
        _require_reachable(of_cluster)
        return RayLauncher(argv, environment, of_cluster)
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise Misconfigured(
                f"--launcher {SLURM}: there is no {command} on PATH; run the control plane on a "
                "machine that submits jobs"
            )
    return SlurmLauncher(argv, environment, SlurmOptions(**given[SLURM]), env=os.environ)


def _require_reachable(options: RayOptions) -> None:
    """Raises Misconfigured for an address that is none, and for a token that cannot be read."""
    try:
        address = urlsplit(options.address)
        valid = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        valid = False
    if not valid or address.username is not None or address.query or address.fragment:
        raise Misconfigured(f"--ray-address must be like {RAY_ADDRESS}; a token has its own file")
    if options.token_file is None:
        return
    try:
        if not token_in(options.token_file):
            raise ValueError("it holds no token, or is too large")
    except ValueError as error:
        raise Misconfigured(f"--ray-token-file {options.token_file}: {error}") from None


def _signal_seconds(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _MAX_SIGNAL_SECONDS:
        raise argparse.ArgumentTypeError(f"must be 1 to {_MAX_SIGNAL_SECONDS}")
    return number
