"""A run spec turned into the parts of a run: every field of the spec is read here, or refused.

student     student.*, device.kind, device.compile, seed
data        data.*, evaluation.max_sequences (run_data.py), batch.sequences_per_step, seed
teacher     teacher.*, objective.temperature
optimizer   optimizer.*, schedule.*
checkpoints checkpoint.*
(device.threads and report_to are applied by __main__)
"""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from lectern_common.errors import CorruptData, Incompatible
from lectern_common.roots import Roots
from lectern_common.run_folder import EARLY_STOPPED, RunFolder
from lectern_common.run_spec import RunSpec, require_resumable
from lectern_common.spec_file import dump_spec, parse_spec
from lectern_models.loading import num_parameters
from protos import teacher_pb2
from student_trainer.before_training import check_before_training
from student_trainer.checkpoint import CheckpointStore
from student_trainer.datasets import ShuffledBatches, in_order
from student_trainer.devices import choose_device, device_name
from student_trainer.export import export_student
from student_trainer.objective import Objective
from student_trainer.optimizer import build_adamw
from student_trainer.origins import LoadedStudent, load_student
from student_trainer.ranks import Ranks
from student_trainer.recorder import RunRecorder
from student_trainer.resumption import (
    best_saved,
    newest_of_all,
    taught_by,
)
from student_trainer.run_data import Data, open_data
from student_trainer.run_parts import Parts, Progress, Settings, Teaching
from student_trainer.run_samples import checked_prompts, open_samples
from student_trainer.run_teacher import connect_teacher, teacher_facts
from student_trainer.schedule import Schedule
from student_trainer.sharding import shard
from student_trainer.stopping import Stop
from student_trainer.students import CausalStudent
from student_trainer.training_state import load_model_tensors, load_optimizer_tensors


@dataclass(frozen=True)
class Assembly:
    """A run that is ready to be trained from `progress` on, and then exported."""

    spec: RunSpec
    parts: Parts
    settings: Settings
    progress: Progress
    loaded: LoadedStudent
    data: Data
    roots: Roots

    @property
    def student(self) -> CausalStudent:
        return self.loaded.student

    def export(self, folder: RunFolder) -> None:
        """Writes export/: with patience of the lowest validation loss, else of the last step.

        Raises:
            CorruptData: the checkpoint with these weights is gone, or broken.
            DiskFull and others: as export.py says.
        """
        student, progress = self._to_export(folder)
        facts, record = self.parts.checkpoint_facts, progress.record
        rows_seen = progress.step * self.spec.batch.sequences_per_step
        manifest = self.data.manifest
        export_student(
            student.model,
            folder.export_path,
            adapters=student.adapters,
            student_folder=self.loaded.folder,
            dataset=self.data.folder,
            eos_token_id=None if manifest is None else manifest.eos_token_id,
            metadata={
                "run_id": folder.run_id,
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
                "epoch": round(rows_seen / len(self.data.training), 4),
                "step": progress.step,
                "steps_made": self.progress.step,
                "tokens_seen": progress.tokens_seen,
                "seed": self.spec.seed,
                "data_sha256": None if manifest is None else manifest.corpus_sha256,
                "spec_sha256": hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
            },
        )
        self.parts.recorder.event(
            "exported", step=progress.step, validation_loss=record.get("loss/val")
        )

    def ending(self) -> tuple[str | None, str | None]:
        """Returns why a finished run ended before its last step: a word and a sentence, or None."""
        early = self.progress.best.is_over(self.spec.evaluation.patience)
        if not early or self.progress.step >= self.spec.schedule.steps:
            return None, None
        return EARLY_STOPPED, self.progress.best.sentence()

    def _to_export(self, folder: RunFolder) -> tuple[CausalStudent, Progress]:
        """Returns the trained student in one piece, and where it was in the run.

        Of several ranks each holds but a part; the weights of an earlier step are nowhere but in
        its checkpoint.
        """
        step, best = self.progress.step, self.progress.best.step
        if self.spec.evaluation.patience is not None and best is not None:
            step = best
        is_whole = self.parts.ranks.size == 1
        if is_whole and step == self.progress.step:
            return self.student, self.progress
        store, begun = self.parts.checkpoints, self.parts.checkpoint_facts
        if store is None:
            raise CorruptData(f"run {folder.run_id} has no checkpoint to export")
        checkpoint = store.at(step)
        student = self.student
        if not is_whole:
            student = load_student(self.spec, self.roots, torch.device("cpu"), begun).student
        load_model_tensors(student, checkpoint.model_tensors())
        return student, Progress.of_state(checkpoint.state)


def assemble(
    spec: RunSpec,
    roots: Roots,
    folder: RunFolder,
    recorder: RunRecorder,
    stop: Stop,
    stack: ExitStack,
    ranks: Ranks,
    *,
    resume: bool,
) -> Assembly:
    """Returns a run's parts, everything checked that can be checked before the first step.

    Args:
        spec: the run's, as it is now.
        roots: what its paths are relative to.
        folder: its folder; this process, or who started it, holds the lock.
        recorder: told of checkpoints, outages and what was loaded.
        stop: ends every wait.
        stack: closes the connection to the teacher.
        ranks: the processes that train it together; each assembles its own parts.
        resume: go on from the newest intact checkpoint, if there is one.

    Raises:
        StopRequested: a stop was requested meanwhile.
        InvalidSpec: a resume changes what it may not.
        LecternError: student, data and teacher do not exist, are broken, or do not fit together.
    """
    device = choose_device(spec.device.kind)
    recorder.set_progress(device=device_name(device))
    store = CheckpointStore(
        folder.checkpoints_path,
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        on_event=lambda kind, details: recorder.event(kind, **details),
    )
    checkpoint = newest_of_all(store, ranks) if resume else None
    begun = None if checkpoint is None else checkpoint.state

    with ranks.together():
        if checkpoint is not None:
            require_resumable(parse_spec(checkpoint.state["spec"]), spec, checkpoint.step)
        loaded = load_student(spec, roots, device, begun)
        stop.check()
        data = open_data(spec, roots, loaded.student.vocab_size, loaded.tokens)
        if not spec.data.attention_across_documents:
            loaded.student.require_documents_apart()
        if begun is not None and begun["data_sha256s"] != data.sha256s:
            raise Incompatible(
                f"the data of run {folder.run_id} is not what it was when the run began "
                "(corpus_sha256 differs); put it back, or start another run"
            )
        stop.check()
        teaching: Teaching | None = None
        teacher_model: teacher_pb2.Model | None = None
        if spec.teacher is not None:
            teaching, teacher_model = connect_teacher(
                spec,
                spec.teacher,
                roots,
                folder.run_id,
                loaded,
                data.manifest,
                device,
                taught_by(folder, begun),
                stop,
                recorder.teacher_away,
                stack,
            )
        prompts = checked_prompts(spec, loaded, data, teacher_model)
        if checkpoint is not None:
            load_model_tensors(loaded.student, checkpoint.model_tensors())
        batches = ShuffledBatches(
            data.training, spec.batch.sequences_per_step, spec.seed, ranks.rank, ranks.size
        )
        found = check_before_training(
            spec,
            loaded.student,
            teaching,
            teacher_model,
            batches.batch_at,
            device,
            asks_teacher=ranks.is_first and begun is None,
        )
    facts = {
        "spec": spec.model_dump(mode="json"),
        "initial_weights_sha256": loaded.initial_sha256,
        **loaded.facts,
        "data_sha256s": data.sha256s,
        **teacher_facts(teacher_model),
    }
    ranks.require_same(
        student=loaded.initial_sha256,
        data=" ".join(data.sha256s),
        teacher=facts["teacher_fingerprint"],
    )

    if ranks.mesh is not None:
        shard(loaded.student, ranks.mesh)
    optimizer = build_adamw(loaded.student, spec.optimizer.betas, spec.optimizer.weight_decay)
    progress = Progress()
    if checkpoint is not None:
        load_optimizer_tensors(optimizer, loaded.student, checkpoint.optimizer_tensors())
        progress = Progress.of_state(checkpoint.state)
        progress.best = best_saved(spec, progress.best, store)
    if spec.device.compile:
        loaded.student.compile_body()
    if checkpoint is None:
        recorder.no_checkpoint()
    recorder.set_progress(
        step=progress.step,
        steps=spec.schedule.steps,
        checkpoint_step=None if checkpoint is None else checkpoint.step,
    )
    with ranks.together():
        recorder.event(
            "assembled",
            step=progress.step,
            device=device_name(device),
            ranks=ranks.size,
            parameters=num_parameters(loaded.student.model),
            initial_weights_sha256=loaded.initial_sha256,
            **loaded.facts,
            training_rows=len(data.training),
            validation_rows=len(data.validation),
            validation_duplicates=data.validation_duplicates,
            teacher=None if teacher_model is None else teacher_model.model_id,
            teacher_device=None if teacher_model is None else teacher_model.device,
            # Of loss/kd, and of val/kl.
            kd_is=None if teaching is None else teaching.representation.kd_is,
            **found,
        )
    parts = Parts(
        student=loaded.student,
        optimizer=optimizer,
        device=device,
        batches=batches,
        steps_per_epoch=batches.steps_per_epoch,
        validation=lambda: in_order(data.validation, spec.micro_batch, ranks.rank, ranks.size),
        teaching=teaching,
        recorder=recorder,
        checkpoints=store,
        checkpoint_facts=facts,
        stop=stop,
        ranks=ranks,
        samples=open_samples(
            prompts,
            folder,
            # Those of a step that is evaluated already are there.
            progress.step + ("loss/val" in progress.record),
            device,
            None if teaching is None else teaching.provider,
            stop,
            recorder.event,
            ranks,
        ),
    )
    return Assembly(spec, parts, _settings(spec), progress, loaded, data, roots)


def _settings(spec: RunSpec) -> Settings:
    objective, chunk_tokens = spec.objective, spec.objective.chunk_tokens
    schedule = Schedule(
        peak=spec.optimizer.learning_rate,
        steps=spec.schedule.steps,
        warmup_steps=spec.schedule.warmup_steps,
        decay=spec.schedule.decay,
        final_fraction=spec.schedule.final_fraction,
    )
    return Settings(
        steps=spec.schedule.steps,
        learning_rate=schedule.learning_rate,
        objective=Objective(
            alpha=objective.alpha,
            temperature=objective.temperature,
            divergence=objective.divergence,
            beta=objective.beta,
            chunk_tokens=None if chunk_tokens == "auto" else chunk_tokens,
            compiled=spec.device.compile,
        ),
        micro_batch_sequences=spec.micro_batch,
        max_grad_norm=spec.optimizer.max_grad_norm,
        evaluate_every=spec.evaluation.every_steps,
        patience=spec.evaluation.patience,
        checkpoint_every=spec.checkpoint.every_steps,
        seed=spec.seed,
    )
