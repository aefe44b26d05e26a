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

from lectern_common.compatibility import StudentFacts, require_teacher_fits
from lectern_common.errors import Incompatible, InvalidSpec, Misconfigured
from lectern_common.replicas import TeacherReplicas
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder
from lectern_common.run_spec import RunSpec, TeacherSpec, dump_spec, parse_spec, resume_differences
from lectern_common.secret_files import SecretFiles, read_secrets
from lectern_models.loading import num_parameters
from protos import teacher_pb2
from student_trainer.checkpoint import Checkpoint, CheckpointStore
from student_trainer.datasets import ShuffledBatches, in_order
from student_trainer.export import export_student
from student_trainer.loop import Parts, Progress, Settings, Teaching
from student_trainer.objective import Objective
from student_trainer.optimizer import build_adamw
from student_trainer.origins import LoadedStudent, load_student
from student_trainer.recorder import Recorder
from student_trainer.remote_teacher import RemoteTeacher
from student_trainer.run_data import Data, open_data
from student_trainer.schedule import Schedule
from student_trainer.stopping import Stop
from student_trainer.students import CausalStudent
from student_trainer.targets import Representation
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

    @property
    def student(self) -> CausalStudent:
        return self.loaded.student

    def export(self, folder: RunFolder) -> None:
        """Writes export/; see export.py for what it raises."""
        facts, record = self.parts.checkpoint_facts, self.progress.record
        rows_seen = self.progress.step * self.spec.batch.sequences_per_step
        manifest = self.data.manifest
        export_student(
            self.student.model,
            folder.export_path,
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
                "epoch": round(rows_seen / len(self.data.training), 4),
                "step": self.progress.step,
                "tokens_seen": self.progress.tokens_seen,
                "seed": self.spec.seed,
                "data_sha256": None if manifest is None else manifest.corpus_sha256,
                "spec_sha256": hashlib.sha256(dump_spec(self.spec).encode()).hexdigest(),
            },
        )


def choose_device(kind: str) -> torch.device:
    """Returns the device of `device.kind`.

    Raises:
        Misconfigured: cuda is asked for, and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if kind == "cuda" and not has_cuda:
        raise Misconfigured(
            "device.kind is cuda, but torch sees no CUDA device; set cpu or auto, or see "
            "`lectern doctor`"
        )
    return torch.device("cuda", 0) if has_cuda and kind != "cpu" else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Returns "cpu", or "cuda:0 (name of the card)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def assemble(
    spec: RunSpec,
    roots: Roots,
    folder: RunFolder,
    recorder: Recorder,
    stop: Stop,
    stack: ExitStack,
    *,
    resume: bool,
) -> Assembly:
    """Returns a run's parts, everything checked that can be checked before the first step.

    Args:
        spec: the run's, as it is now.
        roots: what its paths are relative to.
        folder: its folder; this process holds the lock.
        recorder: told of checkpoints, outages and what was loaded.
        stop: ends every wait.
        stack: closes the connection to the teacher.
        resume: go on from the newest intact checkpoint, if there is one.

    Raises:
        StopRequested: a stop was requested meanwhile.
        InvalidSpec: a resume changes what it may not.
        LecternError: student, data and teacher do not exist, are broken, or do not fit together.
    """
    store = CheckpointStore(
        folder.checkpoints_path,
        keep_last=spec.checkpoint.keep_last,
        keep_best=spec.checkpoint.keep_best,
        on_event=lambda kind, details: recorder.event(kind, **details),
    )
    store.sweep()
    checkpoint = store.newest() if resume else None
    if checkpoint is not None:
        require_resumable(parse_spec(checkpoint.state["spec"]), spec, checkpoint.step)

    device = choose_device(spec.device.kind)
    recorder.set_progress(device=device_name(device))
    loaded = load_student(spec, roots, device, None if checkpoint is None else checkpoint.state)
    student, tokens, initial_sha256 = loaded.student, loaded.tokens, loaded.initial_sha256
    stop.check()
    data = open_data(spec, roots, student.vocab_size, tokens)
    if checkpoint is not None and checkpoint.state["data_sha256s"] != data.sha256s:
        raise Incompatible(
            f"the data of run {folder.run_id} is not what it was when the run began (corpus_sha256 "
            "differs); put it back, or start another run"
        )
    stop.check()

    teacher_model: teacher_pb2.Model | None = None
    teaching: Teaching | None = None
    if spec.teacher is not None:
        remote = _remote_teacher(spec.teacher, roots, folder, recorder, stop, student, device)
        stack.enter_context(remote)
        teacher_model = remote.connect(
            None if checkpoint is None else checkpoint.state["teacher_fingerprint"]
        )
        facts = StudentFacts(
            student.vocab_size, tokens, initial_sha256 if spec.student.init else None
        )
        require_teacher_fits(spec, teacher_model, remote.tokenizer_map, facts, data.manifest)
        if spec.teacher.representation == "hidden":
            remote.output_head()
        teaching = Teaching(
            provider=remote,
            representation=Representation(
                spec.teacher.representation, spec.teacher.top_k, spec.teacher.num_draws
            ),
            prefetch_steps=spec.teacher.prefetch_steps,
            allow_same_weights=spec.teacher.allow_same_weights,
            take_received=remote.take_received,
            cancel=remote.cancel,
        )

    optimizer = build_adamw(student, spec.optimizer.betas, spec.optimizer.weight_decay)
    progress = Progress()
    if checkpoint is not None:
        progress = _restore(checkpoint, student, optimizer)
    if spec.device.compile:
        student.compile_body()
    recorder.set_progress(
        step=progress.step,
        steps=spec.schedule.steps,
        checkpoint_step=None if checkpoint is None else checkpoint.step,
    )
    recorder.event(
        "assembled",
        step=progress.step,
        device=device_name(device),
        parameters=num_parameters(student.model),
        initial_weights_sha256=initial_sha256,
        **loaded.facts,
        training_rows=len(data.training),
        validation_rows=len(data.validation),
        teacher=None if teacher_model is None else teacher_model.model_id,
        teacher_device=None if teacher_model is None else teacher_model.device,
        kd_is=None if teaching is None else teaching.representation.kd_is,
    )
    parts = Parts(
        student=student,
        optimizer=optimizer,
        device=device,
        batches=ShuffledBatches(data.training, spec.batch.sequences_per_step, spec.seed),
        validation=lambda: in_order(data.validation, spec.micro_batch),
        teaching=teaching,
        recorder=recorder,
        checkpoints=store,
        checkpoint_facts={
            "spec": spec.model_dump(mode="json"),
            "initial_weights_sha256": initial_sha256,
            **loaded.facts,
            "data_sha256s": data.sha256s,
            "teacher_model": None if teacher_model is None else teacher_model.model_id,
            "teacher_fingerprint": None if teacher_model is None else teacher_model.fingerprint,
            "teacher_weights_sha256": (
                None if teacher_model is None else teacher_model.weights_sha256
            ),
        },
        stop=stop,
    )
    return Assembly(spec, parts, _settings(spec), progress, loaded, data)


def require_resumable(old: RunSpec, new: RunSpec, step: int) -> None:
    """Raises InvalidSpec, field by field, where a resume at `step` may not make the change."""
    if new.schedule.steps < step:
        why = f"is {new.schedule.steps}, but {step} steps are made"
        raise InvalidSpec([("schedule.steps", why)])
    differences = resume_differences(old, new)
    if differences:
        raise InvalidSpec(
            [
                (field, f"was {before!r}, is {after!r}; a resume may not change it")
                for field, before, after in differences
            ]
        )


def _remote_teacher(
    teacher: TeacherSpec,
    roots: Roots,
    folder: RunFolder,
    recorder: Recorder,
    stop: Stop,
    student: CausalStudent,
    device: torch.device,
) -> RemoteTeacher:
    secrets = read_secrets(roots, SecretFiles.of(teacher))
    return RemoteTeacher(
        TeacherReplicas(teacher.address, secrets.token, secrets.tls),
        run_id=folder.run_id,
        vocab_size=student.vocab_size,
        device=device,
        deadline_seconds=teacher.deadline_seconds,
        outage_budget_seconds=teacher.outage_budget_seconds,
        cache_root=roots.cache,
        stop=stop,
        on_outage=recorder.teacher_away,
    )


def _restore(
    checkpoint: Checkpoint, student: CausalStudent, optimizer: torch.optim.Optimizer
) -> Progress:
    load_model_tensors(student, checkpoint.model_tensors())
    load_optimizer_tensors(optimizer, student, checkpoint.optimizer_tensors())
    return Progress.of_state(checkpoint.state)


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
        ),
        micro_batch_sequences=spec.micro_batch,
        max_grad_norm=spec.optimizer.max_grad_norm,
        evaluate_every=spec.evaluation.every_steps,
        checkpoint_every=spec.checkpoint.every_steps,
        seed=spec.seed,
    )
