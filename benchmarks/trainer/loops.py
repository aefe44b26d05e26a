"""Runs the trainer's loop on random rows, and notes when each step ends.

Legend: B sequences of a step, S tokens of each.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from student_trainer.batch import Batch, batch_of
from student_trainer.data.stream import synthetic_row
from student_trainer.generating.rollouts.writing import Writer
from student_trainer.objective.loss import Objective
from student_trainer.run.loop import train
from student_trainer.run.optim import build_adamw
from student_trainer.run.parts import Parts, Progress, Settings, StepRecorder, Teaching
from student_trainer.student.student import Student

DISTILLATION = Objective(alpha=0.0, temperature=1.0)
LEARNING_RATE, BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, (0.9, 0.95), 0.1, 1.0


class StepBatches(Protocol):
    """The rows of each step; `sequences` are computed at a time."""

    @property
    def sequences(self) -> int: ...

    def batch_at(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class RandomBatches:
    """Random tokens; a step has the same rows in every process."""

    vocab_size: int
    sequences: int
    seq_len: int

    def batch_at(self, step: int) -> Batch:
        """Returns the rows of step `step`."""
        first = step * self.sequences
        indices = range(first, first + self.sequences)
        return batch_of([synthetic_row(0, i, self.seq_len, self.vocab_size) for i in indices])


@dataclass
class StepNotes:
    """A recorder that notes each step's end, loss and metrics; passes records to `passed_on`."""

    passed_on: StepRecorder | None = None
    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        if self.passed_on is not None:
            self.passed_on.record(step, metrics)
        self.losses.append(metrics["loss/total"])
        self.metrics.append(metrics)
        self.ends.append(time.perf_counter())

    def before_checkpoint(self) -> None: ...

    def after_checkpoint(self, step: int) -> None: ...

    def doing(self, activity: str) -> None: ...

    def event(self, kind: str, **details: Any) -> None: ...

    def seconds_after(self, warm_up: int) -> float:
        """Returns the time from the end of step number `warm_up` to the end of the last."""
        return self.ends[-1] - self.ends[warm_up - 1]


def train_noted(
    student: Student,
    batches: StepBatches,
    teaching: Teaching | None,
    steps: int,
    *,
    objective: Objective = DISTILLATION,
    recorder: StepRecorder | None = None,
    device: str = "cpu",
    writer: Writer | None = None,
) -> StepNotes:
    """Trains the student, already on the device, for `steps` steps of the trainer's loop."""
    notes = StepNotes(recorder)
    parts = Parts(
        student=student,
        optimizer=build_adamw(student, BETAS, WEIGHT_DECAY),
        device=torch.device(device),
        batches=batches,
        validation=None,
        teaching=teaching,
        recorder=notes,
        writer=writer,
    )
    settings = Settings(
        steps=steps,
        learning_rate=lambda step: LEARNING_RATE,
        objective=objective,
        micro_batch_sequences=batches.sequences,
        max_grad_norm=MAX_GRAD_NORM,
    )
    if not train(parts, settings, Progress()):
        raise RuntimeError("the loop ended early")
    return notes
