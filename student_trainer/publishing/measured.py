"""What was measured of a student: by its run, and by evaluations of its export."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from student_trainer.exporting.finished import FinishedRun

# Key in the export's metadata -> what it is. The run measured them on its validation rows.
_BY_THE_RUN = {
    "validation_loss": "Cross entropy, nats a token",
    "validation_kl": "KL divergence from the teacher, nats a token",
    "validation_top1_agreement": "Share of tokens for which student and teacher agree on the best",
}
HELD_OUT = "held-out rows of its data"


@dataclass(frozen=True)
class Measurement:
    """One number, and how it came about."""

    what: str
    key: str
    value: float
    on: str


def measurements(run: FinishedRun) -> list[Measurement]:
    """Returns everything that was measured of the exported weights; nothing else."""
    return list(_by_the_run(run.metadata))


def _by_the_run(metadata: Mapping[str, Any]) -> list[Measurement]:
    return [
        Measurement(what, key, float(metadata[key]), HELD_OUT)
        for key, what in _BY_THE_RUN.items()
        if isinstance(metadata.get(key), (int, float))
    ]
