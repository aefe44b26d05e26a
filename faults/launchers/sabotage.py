"""Switches off the protection of each row of launchers; see faults/teacher/sabotage.py."""

from collections.abc import Callable

from faults.replacing import put


def _jobs_are_not_looked_for(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.slurm.launcher import SlurmLauncher

        def none(*_: object) -> None:
            return None

        put(SlurmLauncher, "_known", none)


def _requeued_jobs_begin_anew(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.slurm import script

        put(script, "_SCRIPT", script._SCRIPT.replace("SLURM_RESTART_COUNT", "NO_SUCH_COUNT"))


ROWS: dict[str, Callable[[str], None]] = {
    "L1": _jobs_are_not_looked_for,
    "L2": _requeued_jobs_begin_anew,
}
