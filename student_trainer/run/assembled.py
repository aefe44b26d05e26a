"""An assembled run, ready to train, and the export of its student."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from lectern_common.errors import CorruptData
from lectern_common.run.status import EARLY_STOPPED
from lectern_common.spec.load import dump_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.words import counted
from student_trainer.data.select import Data
from student_trainer.journal.activity import EXPORT
from student_trainer.record.keep import Keeping
from student_trainer.run.parts import Parts, Progress, RunContext, Settings
from student_trainer.student.export import export_student
from student_trainer.student.load import LoadedStudent, load_student
from student_trainer.student.student import CausalStudent
from student_trainer.student.tensors import load_model_tensors


@dataclass(frozen=True)
class Assembly:
    """A run that is ready to train from `progress` on, and to export its student afterwards."""

    context: RunContext
    parts: Parts
    settings: Settings
    progress: Progress
    loaded: LoadedStudent
    data: Data
    keeping: Keeping | None = None

    @property
    def spec(self) -> RunSpec:
        return self.context.spec

    @property
    def student(self) -> CausalStudent:
        return self.loaded.student

    def export(self) -> None:
        """Writes export/: the weights of the last step, or with patience of the best validation.

        Raises:
            CorruptData: the checkpoint with these weights is missing or broken.
            DiskFull and others: as export.py says.
        """
        student, progress = self._to_export()
        manifest = self.data.manifest
        export_student(
            student.model,
            self.context.folder.export_path,
            adapters=student.adapters,
            student_folder=self.loaded.folder,
            dataset=self.data.folder,
            eos_token_id=None if manifest is None else manifest.eos_token_id,
            metadata=self._metadata(progress),
        )
        validation_loss = progress.record.get("loss/val")
        self.parts.recorder.event("exported", step=progress.step, validation_loss=validation_loss)

    def make_record(self) -> None:
        """Makes the record of what the run has received from its teacher, if it keeps that.

        Raises:
            StopRequested, DiskFull and others: as Kept.finish says.
        """
        if self.keeping is None or self.spec.teacher is None:
            return
        recorder = self.parts.recorder
        manifest = self.keeping.finish(self.context.stop, lambda: recorder.doing(EXPORT))
        if manifest is None:
            words = f"there is no record {self.spec.teacher.record_to}: the run received nothing"
            recorder.event("record_not_made", message=words)
            return
        rows = len(self.data.training)
        seen = self.progress.step * self.spec.batch.sequences_per_step
        parts = ", ".join(
            f"{counted(part.sequences, 'sequence')} of {part.name}" for part in manifest.parts
        )
        words = f"made the record {self.spec.teacher.record_to} of what the run received: {parts}"
        if seen < rows:
            words += f"; it has seen {seen:,} of its {rows:,} training rows"
        recorder.event("record_made", message=words)

    def ending(self) -> tuple[str | None, str | None]:
        """Returns why a run ended before its last step, as (reason, message); else (None, None)."""
        early = self.progress.best.is_over(self.spec.evaluation.patience)
        if not early or self.progress.step >= self.spec.schedule.steps:
            return None, None
        return EARLY_STOPPED, self.progress.best.sentence(self.settings.followed)

    def _to_export(self) -> tuple[CausalStudent, Progress]:
        """Returns the whole student to export, and the progress of its weights.

        With several ranks, each holds only a part; the weights of an earlier step are only in its
        checkpoint. Both are loaded from there.
        """
        step, best = self.progress.step, self.progress.best.step
        if self.spec.evaluation.patience is not None and best is not None:
            step = best
        is_whole = self.parts.ranks.size == 1
        if is_whole and step == self.progress.step:
            return self.student, self.progress
        store, begun = self.parts.checkpoints, self.parts.checkpoint_facts
        if store is None:
            raise CorruptData(f"run {self.context.folder.run_id} has no checkpoint to export")
        checkpoint = store.at(step)
        student = self.student
        if not is_whole:
            student = load_student(
                self.spec, self.context.roots, torch.device("cpu"), begun
            ).student
        load_model_tensors(student, checkpoint.model_tensors())
        progress = Progress.of_state(checkpoint.state)
        if step == best:  # the checkpoint may have been saved before it was evaluated
            progress.record.setdefault(self.settings.followed.name, self.progress.best.loss)
        return student, progress

    def _metadata(self, progress: Progress) -> dict[str, Any]:
        """Returns the export's metadata; `progress` is that of the exported weights."""
        facts, record = self.parts.checkpoint_facts, progress.record
        steps_per_epoch = self.parts.steps_per_epoch
        manifest = self.data.manifest
        return {
            "run_id": self.context.folder.run_id,
            "teacher_model": facts["teacher_model"],
            "teacher_fingerprint": facts["teacher_fingerprint"],
            "teacher_weights_sha256": facts["teacher_weights_sha256"],
            "student_model": self.spec.student.init or self.spec.student.config,
            "initial_weights_sha256": facts["initial_weights_sha256"],
            **self.loaded.facts,
            "alpha": self.spec.objective.alpha,
            "temperature": self.spec.objective.temperature,
            "divergence": self.spec.objective.divergence,
            "representation": self.spec.teacher.representation if self.spec.teacher else None,
            "final_loss": record.get("loss/total"),
            "validation_loss": record.get("loss/val"),
            "validation_kl": record.get("val/kl"),
            "validation_top1_agreement": record.get("val/top1_agreement"),
            "epoch": None if steps_per_epoch is None else round(progress.step / steps_per_epoch, 4),
            "rollout_fraction": None if self.spec.rollout is None else self.spec.rollout.fraction,
            "step": progress.step,
            "steps_made": self.progress.step,
            "tokens_seen": progress.tokens_seen,
            "seed": self.spec.seed,
            "data_sha256": None if manifest is None else manifest.corpus_sha256,
            **({"teachers": facts["teachers"]} if "teachers" in facts else {}),
            "spec_sha256": hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
        }
