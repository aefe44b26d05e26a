"""Distillation from Python, without a server: the same loop and objective as `lectern train`.

result = (
    Pipeline(epochs=3, batches_per_epoch=50, batch_size=8, seq_len=128, learning_rate=1e-3)
    .with_teacher(InProcessTeacher(AutoModelForCausalLM.from_pretrained("teacher")))
    .with_student(CausalStudent.from_pretrained(Path("student"), torch.device("cpu")))
    .with_batch_source(ShardBatchSource.open(Path("data/stdlib")))
    .execute()
)
print(result.metrics["loss"])
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from lectern_common.errors import Incompatible, InvalidRequest, RepresentationNotOffered
from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch, BatchSource
from student_trainer.data.sources import ShardBatchSource
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.run.loop import train
from student_trainer.run.optim import build_adamw
from student_trainer.run.parts import Parts, Progress, Settings, Teaching
from student_trainer.student.export import METADATA_NAME, export_student
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.student.student import CausalStudent, Student
from student_trainer.student.tensors import model_tensors
from student_trainer.targets import (
    DenseTargets,
    TargetsProvider,
    TeacherLogitsProvider,
    TeacherTargets,
)


@dataclass(frozen=True)
class PipelineResult:
    """The outcome of `Pipeline.execute`.

    Attributes:
        metrics: "loss", "loss/ce" and "loss/kd" (without terms of weight 0): means over all batches
            of an epoch, before the first epoch and after each, so that first and last are
            comparable. "steps": the metrics of each step, as loop.py records them.
        output_path: folder of the trained student; None if none was requested.
        duration_seconds: of `execute`.
    """

    metrics: dict[str, Any]
    output_path: Path | None
    duration_seconds: float


@dataclass
class Pipeline:
    """Trains a student, in place, from a teacher and a source of batches.

    Every epoch uses the same first `batches_per_epoch` batches of the source. The learning rate is
    constant.
    """

    epochs: int = 1
    batches_per_epoch: int = 10
    batch_size: int = 8
    seq_len: int = 32
    learning_rate: float = 1e-3
    alpha: float = 0.0
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    output_path: Path | None = None
    _teacher: TargetsProvider | None = field(default=None, init=False)
    _teacher_name: str = field(default="", init=False)
    _representation: Representation = field(default=Representation("dense"), init=False)
    _student: Student | None = field(default=None, init=False)
    _source: BatchSource | None = field(default=None, init=False)

    def with_teacher(
        self,
        teacher: TargetsProvider | TeacherLogitsProvider,
        representation: str = "dense",
        top_k: int | None = None,
        num_draws: int | None = None,
    ) -> Self:
        """Sets the teacher: one with `score`, or one that returns lists of logits (only "dense").

        `top_k` belongs to representation "top_k", `num_draws` to "sampled", which draws anew in
        every step.
        """
        if hasattr(teacher, "score"):
            self._teacher = cast(TargetsProvider, teacher)
        else:
            self._teacher = _ListTeacher(teacher)
        self._teacher_name = type(teacher).__name__
        self._representation = Representation(representation, top_k, num_draws)
        return self

    def with_student(self, student: Student) -> Self:
        """Sets the student."""
        self._student = student
        return self

    def with_batch_source(self, source: BatchSource) -> Self:
        """Sets the source of the batches; it is reset first."""
        self._source = source
        return self

    def execute(self) -> PipelineResult:
        """Trains the student, and writes it to `output_path` if that is set.

        Raises:
            InvalidRequest: a part is missing, or a number is out of range.
            SameWeights: the student already gives the teacher's distribution.
            Incompatible: the data is chats, which the student cannot keep apart.
            LecternError: what the teacher or the source raised.
        """
        began = time.monotonic()
        student, source = self._student, self._source
        if student is None or source is None or (self._teacher is None and self.alpha < 1):
            raise InvalidRequest(
                "a pipeline needs with_teacher, with_student and with_batch_source"
            )
        if self.epochs < 1 or self.batches_per_epoch < 1:
            raise InvalidRequest("epochs and batches_per_epoch must be >= 1")
        objective = Objective(self.alpha, self.temperature, self.divergence, self.beta)
        teaching = None
        if self._teacher is not None and self.alpha < 1:
            teaching = Teaching(self._teacher, self._representation)
        batches = _FirstBatches(source, self.batches_per_epoch, self.batch_size, self.seq_len)
        _require_documents_apart(student, batches)
        recorder, progress = _Records(), Progress()
        parts = Parts(
            student=student,
            optimizer=build_adamw(student, (0.9, 0.95), self.weight_decay),
            device=next(student.parameters()).device,
            batches=batches,
            validation=None,
            teaching=teaching,
            recorder=recorder,
        )
        losses = [_losses(parts, objective, batches)]
        for epoch in range(1, self.epochs + 1):
            settings = Settings(
                steps=epoch * self.batches_per_epoch,
                learning_rate=lambda step: self.learning_rate,
                objective=objective,
                micro_batch_sequences=self.batch_size,
                max_grad_norm=self.max_grad_norm,
            )
            train(parts, settings, progress)
            losses.append(_losses(parts, objective, batches))
        metrics = {
            **{name: [entry[name] for entry in losses] for name in losses[0]},
            "steps": recorder.records,
        }
        if self.output_path is not None:
            self._write(student, self.output_path, metrics)
        return PipelineResult(metrics, self.output_path, time.monotonic() - began)

    def _write(self, student: Student, folder: Path, metrics: dict[str, Any]) -> None:
        metadata = {
            "teacher_model": self._teacher_name,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "final_loss": metrics["loss"][-1],
            "epoch": self.epochs,
            "step": self.epochs * self.batches_per_epoch,
        }
        if isinstance(student, CausalStudent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            origin = student.model.config.name_or_path
            export_student(
                student.model,
                folder,
                student_folder=Path(origin) if origin else None,
                dataset=None,
                eos_token_id=None,
                metadata=metadata,
                adapters=student.adapters,
            )
            return
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in model_tensors(student).items()}
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        (folder / METADATA_NAME).write_text(json.dumps(metadata, indent=2))


class _FirstBatches:
    """The first `count` batches of a source, repeated in every epoch."""

    def __init__(self, source: BatchSource, count: int, batch_size: int, seq_len: int) -> None:
        source.reset()
        self.batches = [_next_batch(source, batch_size, seq_len) for _ in range(count)]

    def batch_at(self, step: int) -> Batch:
        return self.batches[step % len(self.batches)]


def _require_documents_apart(student: Student, batches: _FirstBatches) -> None:
    """Raises Incompatible if chats of a row would attend to each other."""
    if batches.batches[0].position_ids_BS is None or not isinstance(student, CausalStudent):
        return
    reason = student.why_not_apart()
    if reason is not None:
        raise Incompatible(f"this student cannot learn from chats: {reason}; choose another one")


def _next_batch(source: BatchSource, batch_size: int, seq_len: int) -> Batch:
    if isinstance(source, ShardBatchSource):
        return source.next_rows(batch_size, seq_len)
    inputs, labels = source.next_batch(batch_size, seq_len)
    return Batch(np.asarray(inputs, np.int64), np.asarray(labels, np.int64))


class _ListTeacher:
    """Adapts a teacher that returns lists of logits: asks it for the prefix of each position."""

    def __init__(self, teacher: TeacherLogitsProvider) -> None:
        self._teacher = teacher

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider."""
        if representation.kind != "dense":
            raise RepresentationNotOffered("a teacher that returns lists offers only dense")
        prefixes = [
            sequence[: last + 1].tolist()
            for sequence, asked in zip(sequences, positions, strict=True)
            for last in np.flatnonzero(asked)
        ]
        rows = np.asarray(self._teacher.logits_for_batch(prefixes), np.float32)
        return DenseTargets(torch.from_numpy(rows))


class _Records:
    """Keeps the metrics of each step."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        if not self.records or self.records[-1]["step"] != step:
            self.records.append({"step": step, **metrics})

    def before_checkpoint(self) -> None: ...

    def after_checkpoint(self, step: int) -> None: ...

    def doing(self, activity: str) -> None: ...

    def event(self, kind: str, **details: Any) -> None: ...


@torch.no_grad()
def _losses(parts: Parts, objective: Objective, batches: _FirstBatches) -> dict[str, float]:
    """Returns the objective and its terms over all batches, with dropout off."""
    ce, kd, teaching = 0.0, 0.0, parts.teaching
    num_positions = sum(batch.num_valid for batch in batches.batches)
    parts.student.eval()
    for batch in batches.batches:
        targets = None
        if teaching is not None:
            # Draws use the representation's own seed, so they are the same every time.
            targets = ask(teaching.provider, batch, teaching.representation, objective.temperature)
            targets = targets.to(parts.device)
        compute = partial(
            distillation_loss, targets=targets, objective=objective, normalizer=num_positions
        )
        loss = at_valid_positions(parts.student, batch, parts.device, compute)
        ce += loss.ce_sum.item() / num_positions
        kd += loss.kd_sum.item() / num_positions
    return (
        {"loss": objective.total(ce, kd)}
        | ({"loss/ce": ce} if objective.alpha > 0 else {})
        | ({"loss/kd": kd} if teaching is not None else {})
    )
