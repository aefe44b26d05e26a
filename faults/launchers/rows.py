"""The rows of launchers, in order."""

from faults.launchers import slurm
from faults.launchers.cluster import why_no_slurm
from faults.row import Row

LAUNCHER_ROWS = [
    Row(
        "L1",
        "control planes killed while they submit Slurm jobs",
        "a job is looked for by run and attempt before one is submitted",
        slurm.one_job_each,
        why_no_slurm,
    ),
    Row(
        "L2",
        "Slurm jobs requeued, and a controller that is away",
        "a job that starts again resumes its run",
        slurm.requeued_and_away,
        why_no_slurm,
    ),
]
