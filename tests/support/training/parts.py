"""The training loop's parts on tiny models, in memory except for the model folders."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.data.rows import ShuffledBatches, StreamRows, in_order
from student_trainer.data.stream import TokenStream
from student_trainer.objective.loss import Objective
from student_trainer.run.loop import train
from student_trainer.run.optim import build_adamw
from student_trainer.run.parts import Parts, Progress, Settings, Teaching
from student_trainer.student.student import CausalStudent, Student
from student_trainer.teacher.local import InProcessTeacher
from tests.support.models import write_tiny_model

CPU = torch.device("cpu")
KD = Objective(alpha=0.3, temperature=2.0)
VOCAB_SIZE = 40


class Records:
    """A recorder that keeps everything in lists."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.saved: list[int] = []

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        self.lines.append({"step": step, **metrics})

    def before_checkpoint(self) -> None: ...

    def after_checkpoint(self, step: int) -> None:
        self.saved.append(step)

    def doing(self, activity: str) -> None: ...

    def event(self, kind: str, **details: Any) -> None:
        self.events.append((kind, details))

    def curve(self, key: str) -> list[float]:
        return [line[key] for line in self.lines if key in line]


class Fixed:
    """The same batches over and over."""

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches

    def batch_at(self, step: int) -> Batch:
        return self._batches[step % len(self._batches)]


def tiny_student(folder: Path, seed: int = 1, **settings: Any) -> CausalStudent:
    tiny = {"vocab_size": VOCAB_SIZE, "hidden": 16, "layers": 1, "spread": 0.1}
    write_tiny_model(folder, seed=seed, **{**tiny, **settings})
    return CausalStudent.from_pretrained(folder, CPU)


def tiny_teacher(folder: Path, **settings: Any) -> InProcessTeacher:
    """Twice as wide as the student, with a less uniform distribution."""
    return InProcessTeacher(
        tiny_student(folder, **{"seed": 7, "hidden": 32, "spread": 0.3, **settings}).model
    )


def cyclic_rows(count: int = 60, seq_len: int = 8) -> StreamRows:
    """Rows of a noisy cycle through the vocabulary: there is something to learn."""
    steps = np.random.default_rng(0).choice([1, 2, 3], count * seq_len + 1, p=[0.7, 0.2, 0.1])
    return StreamRows(TokenStream([(np.cumsum(steps) % VOCAB_SIZE).astype(np.uint32)]), seq_len)


def parts_of(
    student: Student,
    *,
    teacher: Any = None,
    kind: str = "dense",
    top_k: int | None = None,
    num_draws: int | None = None,
    sequences: int = 4,
    batches: Any = None,
    weight_decay: float = 0.1,
    prefetch_steps: int = 0,
    **changes: Any,
) -> Parts:
    """Returns a loop's parts around a student; without a teacher, use an objective of alpha 1."""
    rows = cyclic_rows()
    representation = Representation(kind, top_k, num_draws)
    teaching = Teaching(teacher, representation, prefetch_steps) if teacher else None
    settings: dict[str, Any] = {
        "student": student,
        "optimizer": build_adamw(student, (0.9, 0.95), weight_decay),
        "device": CPU,
        "batches": batches or ShuffledBatches(rows, sequences, seed=0),
        "validation": lambda: in_order(cyclic_rows(6), 3),
        "teaching": teaching,
        "recorder": Records(),
    }
    return Parts(**{**settings, **changes})


def settings_of(steps: int, **changes: Any) -> Settings:
    rate = changes.pop("rate", 1e-2)
    objective = changes.pop("objective", Objective(alpha=1.0, temperature=1.0))
    defaults: dict[str, Any] = {
        "steps": steps,
        "learning_rate": lambda step: rate,
        "objective": objective,
        "micro_batch_sequences": 4,
        "evaluate_every": 10**6,
        "checkpoint_every": 10**6,
    }
    return Settings(**{**defaults, **changes})


def trained(parts: Parts, settings: Settings, progress: Progress | None = None) -> Records:
    """Trains to the end; returns what was recorded."""
    assert train(parts, settings, progress or Progress())
    recorder = parts.recorder
    assert isinstance(recorder, Records)
    return recorder


def twin(student: CausalStudent) -> CausalStudent:
    """An independent copy."""
    return copy.deepcopy(student)


def same(one: Student, other: Student) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)
