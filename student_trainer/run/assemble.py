"""Assembles a run's parts from its spec: every field is applied here, or refused.

student     student.*, device.kind, device.compile, seed
data        data.*, evaluation.max_sequences (select.py), batch.sequences_per_step, seed
teacher     teacher.*, objective.temperature
optimizer   optimizer.*, schedule.*
checkpoints checkpoint.*
(device.threads and report_to are applied by life.py)
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lectern_common.checks.documents import with_documents
from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT
from lectern_common.errors import Incompatible
from lectern_common.run.checkpoint_files import FORKED_FROM
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec, require_resumable
from lectern_common.spec.suites import VALIDATION_LOSS
from lectern_models.loading import num_parameters
from student_trainer.batch import Batch
from student_trainer.data.mixed import MixedBatches, keeps_documents_apart
from student_trainer.data.rows import ShuffledBatches, batch_from, in_order
from student_trainer.data.select import Data, open_data, require_datasets
from student_trainer.evaluating.during import suites_of
from student_trainer.evaluation.best import Followed
from student_trainer.evaluation.samples import Prompts, Samples, TeacherTexts, checked_prompts
from student_trainer.generating.rollouts.advice import WritingAdvice
from student_trainer.generating.rollouts.kept import KeptRollouts
from student_trainer.generating.rollouts.opening import decoder_of, writer_of
from student_trainer.generating.rollouts.rows import DataRows, NoBatches
from student_trainer.generating.rollouts.saved import rollouts_of
from student_trainer.generating.rollouts.writing import Writer
from student_trainer.journal.checkpoint import Checkpoint, CheckpointStore
from student_trainer.ranks.device import device_name
from student_trainer.ranks.sharding import shard
from student_trainer.record.keep import Keeping, begin_keeping
from student_trainer.run.assembled import Assembly
from student_trainer.run.checks import (
    check_before_training,
    check_sources_before_training,
    require_covered,
)
from student_trainer.run.optim import Schedule, build_adamw, objective_of
from student_trainer.run.parts import Parts, Progress, RunContext, Settings, Teaching
from student_trainer.run.resume import best_saved, newest_of_all, require_not_forked, taught_by
from student_trainer.run.teaching.connect import open_teaching, teacher_facts
from student_trainer.run.teaching.several import (
    described_teachers,
    first_rows,
    mixed_batches,
    mixed_of,
    open_teachings,
    require_sources_covered,
    teachers_facts,
)
from student_trainer.student.load import LoadedStudent, load_student
from student_trainer.student.student import CausalStudent
from student_trainer.student.tensors import load_model_tensors, load_optimizer_tensors
from student_trainer.targets import TargetsProvider
from student_trainer.teacher.prefetch import TrainingBatches
from student_trainer.teacher.recorded import RecordedTeacher
from student_trainer.teacher.remote import RemoteTeacher


def assemble(run: RunContext, *, resume: bool) -> Assembly:
    """Returns a run's parts, after every check that is possible before the first step.

    Whatever may end one rank happens within `together()`, without any exchange (world.py).

    Args:
        run: the run to assemble.
        resume: continue from the newest intact checkpoint, if there is one.

    Raises:
        StopRequested: a stop was requested meanwhile.
        InvalidSpec: the spec changes something that a resume must not change.
        LecternError: student, data or teacher is missing, broken, or incompatible with the others.
    """
    ranks, recorder = run.ranks, run.recorder
    recorder.set_progress(device=device_name(run.device))
    store, checkpoint = _checkpoints(run, resume=resume)
    begun = None if checkpoint is None else checkpoint.state
    is_new = begun is None or FORKED_FROM in begun

    with ranks.together():
        before = None if checkpoint is None else parse_spec(checkpoint.state["spec"])
        if before is not None and checkpoint is not None:
            resumed = with_documents(run.spec, run.roots, before)
            require_resumable(before, resumed, checkpoint.step)
        require_datasets(run.spec, run.roots)
        spec = with_documents(run.spec, run.roots, before)
        run = replace(run, spec=spec)
        loaded = _student(run, begun)
        data = _data(run, loaded, begun)
        teaching = _teacher(run, loaded, data, begun)
        prompts = checked_prompts(spec, loaded, data, None if teaching is None else teaching.model)
        suites = suites_of(spec, run.roots, loaded, data, run.ranks)
        if checkpoint is not None:
            load_model_tensors(loaded.student, checkpoint.model_tensors())
        writer = _writer(run, loaded, data, teaching, None if is_new else begun)
        teachings = open_teachings(run, loaded, data, begun) if data.sources else {}
        batches, steps_per_epoch = _batches(run, data, writer)
        if ranks.is_first and data.sources:
            require_sources_covered(run, data, teachings)
        provider = None if teaching is None else teaching.provider
        if ranks.is_first and isinstance(provider, RecordedTeacher):
            require_covered(spec, provider, data, run.stop)
        asks_teacher = ranks.is_first and is_new
        if data.sources:
            found = check_sources_before_training(
                spec,
                loaded.student,
                teachings,
                first_rows(spec, data),
                run.device,
                asks_teacher=asks_teacher,
            )
        else:
            found = check_before_training(
                spec,
                loaded.student,
                teaching,
                _first_rows(spec, data, batches),
                run.device,
                asks_teacher=asks_teacher,
                longest_prompt=0 if writer is None else writer.prompts.longest,
            )
        keeping = _keeping(run, data, provider, None if is_new else before)
        in_flight = None
        if writer is not None and checkpoint is not None:
            tensors = checkpoint.rollout_tensors()
            in_flight = rollouts_of(tensors, writer, checkpoint.step, ranks.rank)
    facts = _facts(run, loaded, data, teaching, writer)
    if data.sources:
        facts["teachers"] = teachers_facts(teachings)
    ranks.require_same(
        student=loaded.initial_sha256,
        data=" ".join(data.sha256s),
        prompts=facts["prompts_sha256"],
        teacher=facts["teacher_fingerprint"],
        **{
            f"teacher {name}": one["teacher_fingerprint"]
            for name, one in facts.get("teachers", {}).items()
        },
    )

    optimizer = _optimizer(run, loaded.student, checkpoint)
    progress = _progress(run, store, checkpoint)
    if spec.device.compile:
        loaded.student.compile_body()
    kept = None if keeping is None else keeping.kept
    with ranks.together():
        if kept is not None:
            kept.open()
        recorder.event(
            "assembled",
            step=progress.step,
            **_described(run, loaded, data, teaching, writer),
            **found,
            **({"teachers": described_teachers(teachings)} if data.sources else {}),
        )
        if writer is not None and writer.never_ends is not None:
            recorder.event("never_ends", message=writer.never_ends)
    asked = teaching
    if kept is not None and teaching is not None:
        around = kept.around(teaching.provider)
        asked = replace(teaching, provider=around, before_checkpoint=kept.save)
    parts = Parts(
        student=loaded.student,
        optimizer=optimizer,
        device=run.device,
        batches=batches,
        steps_per_epoch=steps_per_epoch,
        validation=lambda: in_order(data.validation, spec.micro_batch, ranks.rank, ranks.size),
        teaching=asked,
        recorder=recorder,
        checkpoints=store,
        checkpoint_facts=facts,
        stop=run.stop,
        ranks=ranks,
        samples=_samples(run, prompts, teaching, progress),
        suites=suites,
        writer=writer,
        in_flight=in_flight,
        writing_advice=None if writer is None else _writing_advice(run),
        kept_rollouts=_kept_rollouts(run, loaded, data, progress),
        mixed=None
        if not isinstance(batches, MixedBatches)
        else mixed_of(run, data, teachings, batches, suites),
    )
    return Assembly(run, parts, _settings(spec, teaching), progress, loaded, data, keeping)


def _checkpoints(run: RunContext, *, resume: bool) -> tuple[CheckpointStore, Checkpoint | None]:
    """Returns the run's checkpoints, and the one to resume from, if any."""
    store = CheckpointStore(
        run.folder.checkpoints_path,
        keep_last=run.spec.checkpoint.keep_last,
        keep_best=run.spec.checkpoint.keep_best,
        on_event=lambda kind, details: run.recorder.event(kind, **details),
        metric=run.spec.evaluation.metric,
        highest_is_best=run.spec.evaluation.is_highest,
    )
    checkpoint = newest_of_all(store, run.ranks) if resume else None
    with run.ranks.together():
        if checkpoint is None:
            require_not_forked(run.folder)
    return store, checkpoint


def _student(run: RunContext, begun: Mapping[str, Any] | None) -> LoadedStudent:
    """Returns the student with its initial weights; a checkpoint's are loaded later."""
    loaded = load_student(run.spec, run.roots, run.device, begun)
    run.stop.check()
    return loaded


def _data(run: RunContext, loaded: LoadedStudent, begun: Mapping[str, Any] | None) -> Data:
    """Returns the run's rows. Raises Incompatible if they have changed since the run began."""
    student, spec = loaded.student, run.spec
    packs_chats = begun is None or bool(begun.get("packs_chats"))
    data = open_data(spec, run.roots, student.vocab_size, loaded.tokens, packs_chats=packs_chats)
    if not packs_chats and data.manifest is not None and data.manifest.is_chats:
        message = "this run began before chats were kept whole, and goes on with chats cut at the "
        message += "ends of rows; a new run keeps them whole"
        run.recorder.event("rows_as_before", message=message)
    apart = any(keeps_documents_apart(one.training) for one in data.sources)
    if spec.data.attention_across_documents is False or apart:
        student.require_documents_apart()
    # A fork takes its data as it finds it, as a new run does, until its own first checkpoint.
    before = None if begun is None else begun["data_sha256s"]
    if before is not None and before != data.sha256s:
        raise Incompatible(
            f"the data of run {run.folder.run_id} has changed since the run began (corpus_sha256 "
            "differs); restore it, or start another run"
        )
    run.stop.check()
    return data


def _teacher(
    run: RunContext, loaded: LoadedStudent, data: Data, begun: Mapping[str, Any] | None
) -> Teaching | None:
    """Returns the connection to the teacher that the run began with; None without a teacher."""
    if run.spec.teacher is None:
        return None
    return open_teaching(run, run.spec.teacher, loaded, data.manifest, taught_by(run.folder, begun))


def _keeping(
    run: RunContext, data: Data, teacher: TargetsProvider | None, before: RunSpec | None
) -> Keeping | None:
    """Returns what keeps the teacher's answers, and says so; None if the run keeps none.

    Args:
        before: the spec of the checkpoint that the run goes on from; None if it begins.
    """
    spec = run.spec
    if spec.teacher is None or spec.teacher.record_to is None:
        return None
    if not isinstance(teacher, RemoteTeacher):
        raise ValueError("only a server's answers are kept")
    named = None if before is None or before.teacher is None else before.teacher.record_to
    keeping = begin_keeping(
        spec,
        run.roots,
        data,
        teacher,
        run_id=run.folder.run_id,
        rank=run.ranks.rank,
        is_resumed=named == spec.teacher.record_to,
        held=run.held,
    )
    if keeping is None:
        words = f"the record {spec.teacher.record_to} is made; nothing is added to it"
        run.recorder.event("record_is_made", message=words)
    elif keeping.said is not None:
        words = f"keeps what the teacher sends in the record {spec.teacher.record_to}"
        run.recorder.event("record_begun", message=f"{words}; {keeping.said}")
    return keeping


def _writer(
    run: RunContext,
    loaded: LoadedStudent,
    data: Data,
    teaching: Teaching | None,
    begun: Mapping[str, Any] | None,
) -> Writer | None:
    """Returns how the student writes rows; None if all rows are of data.

    Raises:
        Incompatible: the prompts have changed since the run began.
    """
    if teaching is None or teaching.model is None:
        return None
    writer = writer_of(run.spec, run.roots, loaded, data, teaching.model, teaching.untaught)
    if begun is not None and begun.get("prompts_sha256") != _prompts_sha256(run, writer):
        raise Incompatible(
            f"the prompts of run {run.folder.run_id} (rollout.prompts) have changed since the run "
            "began; restore them, or start another run"
        )
    return writer


def _prompts_sha256(run: RunContext, writer: Writer | None) -> str | None:
    """Returns the hash of a prompt set; None without one: rows of data have their own hashes."""
    rollout = run.spec.rollout
    return (
        None if writer is None or rollout is None or not rollout.prompts else writer.prompts.sha256
    )


def _batches(
    run: RunContext, data: Data, writer: Writer | None
) -> tuple[TrainingBatches, float | None]:
    """Returns this rank's rows of data of each step, and the steps of an epoch.

    Several sources have epochs of their own, and the run has none.
    """
    spec, ranks = run.spec, run.ranks
    if data.sources:
        return mixed_batches(run, data), None
    if writer is not None and not spec.trains_on_data:
        return NoBatches(), writer.plan.steps_per_epoch
    batches = ShuffledBatches(
        data.training, spec.batch.sequences_per_step, spec.seed, ranks.rank, ranks.size
    )
    if writer is None:
        return batches, batches.steps_per_epoch
    left = DataRows(batches, writer.plan, ranks.rank, spec.micro_batch)
    return left, batches.steps_per_epoch


def _kept_rollouts(
    run: RunContext, loaded: LoadedStudent, data: Data, progress: Progress
) -> KeptRollouts | None:
    """Returns the file of rollouts to read; None if the run keeps none, or another rank does."""
    spec = run.spec
    kept = None
    with run.ranks.together():
        if spec.rollout is not None and spec.rollout.keep and run.ranks.is_first:
            decode = decoder_of(spec, run.roots, loaded, data)
            kept = KeptRollouts(run.folder.rollouts_path, spec.schedule.steps, decode)
            kept.keep_before(progress.step)
    return kept


def _writing_advice(run: RunContext) -> WritingAdvice:
    return WritingAdvice(run.spec, on_cpu=run.device.type == "cpu")


def _first_rows(spec: RunSpec, data: Data, batches: TrainingBatches) -> Batch:
    """Returns rows to probe the teacher with: the run's first, or of its data if it has none."""
    if spec.rollout is None:
        return batches.batch_at(0)
    rows = min(len(data.training), spec.batch.sequences_per_step)
    return batch_from(data.training, range(rows))


def _optimizer(
    run: RunContext, student: CausalStudent, checkpoint: Checkpoint | None
) -> torch.optim.Optimizer:
    """Shards the student among the ranks, and returns AdamW over it, as saved if resumed."""
    if run.ranks.mesh is not None:
        shard(student, run.ranks.mesh)
    optimizer = build_adamw(student, run.spec.optimizer.betas, run.spec.optimizer.weight_decay)
    if checkpoint is not None:
        load_optimizer_tensors(optimizer, student, checkpoint.optimizer_tensors())
    return optimizer


def _progress(run: RunContext, store: CheckpointStore, checkpoint: Checkpoint | None) -> Progress:
    """Returns the progress to continue from, and passes it to the recorder."""
    progress = Progress()
    if checkpoint is None:
        run.recorder.no_checkpoint()
    else:
        progress = Progress.of_state(checkpoint.state)
        progress.best = best_saved(run.spec, progress.best, store)
        if run.spec.evaluation.metric == VALIDATION_LOSS:
            run.recorder.go_on_with_best(progress.best.loss, progress.best.step)
    run.recorder.set_progress(
        step=progress.step,
        steps=run.spec.schedule.steps,
        checkpoint_step=None if checkpoint is None else checkpoint.step,
    )
    return progress


def _samples(
    run: RunContext, prompts: Prompts | None, teaching: Teaching | None, progress: Progress
) -> Samples | None:
    """Returns the run's samples, and starts asking the teacher; None without prompts.

    The first rank writes the student's texts and asks the teacher.
    """
    if prompts is None:
        return None
    path = run.folder.samples_path if run.ranks.is_first else None
    teacher = None
    if run.spec.teachers is not None:
        words = "the run has several teachers, and a prompt belongs to none of them"
        run.recorder.event("left_out", metric="the teachers' samples", message=words)
    if teaching is not None and teaching.is_recorded:
        words = "a record answers only about the rows of its data"
        run.recorder.event("left_out", metric="the teacher's samples", message=words)
    elif teaching is not None and run.ranks.is_first:
        teacher = TeacherTexts(teaching.provider, prompts)
    samples = Samples(prompts, path, teacher, run.stop, run.recorder.event, run.ranks)
    with run.ranks.together():
        # The samples of a step that is already evaluated are kept.
        samples.keep_before(progress.step + ("loss/val" in progress.record))
    return samples


def _facts(
    run: RunContext,
    loaded: LoadedStudent,
    data: Data,
    teaching: Teaching | None,
    writer: Writer | None,
) -> dict[str, Any]:
    """Returns what every checkpoint stores about the run, besides its progress."""
    return {
        "spec": run.spec.model_dump(mode="json"),
        "initial_weights_sha256": loaded.initial_sha256,
        **loaded.facts,
        "data_sha256s": data.sha256s,
        "prompts_sha256": _prompts_sha256(run, writer),
        # Missing in older checkpoints, of runs that cut chats at the ends of rows.
        "packs_chats": data.packs_chats,
        **teacher_facts(None if teaching is None else teaching.model),
    }


def _described(
    run: RunContext,
    loaded: LoadedStudent,
    data: Data,
    teaching: Teaching | None,
    writer: Writer | None,
) -> dict[str, Any]:
    """Returns the description of the run's parts for its event `assembled`."""
    model = None if teaching is None else teaching.model
    return {
        "device": device_name(run.device),
        "ranks": run.ranks.size,
        "threads": torch.get_num_threads(),
        "parameters": num_parameters(loaded.student.model),
        "initial_weights_sha256": loaded.initial_sha256,
        **loaded.facts,
        "training_rows": len(data.training),
        "prompts": None if writer is None else len(writer.prompts),
        "validation_rows": len(data.validation),
        "validation_duplicates": data.validation_duplicates,
        **_edges(data),
        **data.described,
        "teacher": None if model is None else model.model_id,
        "teacher_device": None if model is None else model.device,
        "vocabulary": None if teaching is None else teaching.untaught.note,
        # What loss/kd and val/kl measure.
        "kd_is": None if teaching is None else teaching.representation.kd_is,
    }


def _edges(data: Data) -> dict[str, Any]:
    """Returns which tokens begin and end the documents of the run's data."""
    names = ("bos_policy", "bos_token_id", "eos_policy", "eos_token_id")
    return {} if data.manifest is None else {name: getattr(data.manifest, name) for name in names}


def _settings(spec: RunSpec, teaching: Teaching | None) -> Settings:
    untaught = NOTHING_UNTAUGHT if teaching is None else teaching.untaught
    schedule = Schedule(
        peak=spec.optimizer.learning_rate,
        steps=spec.schedule.steps,
        warmup_steps=spec.schedule.warmup_steps or 0,
        decay=spec.schedule.decay,
        final_fraction=spec.schedule.final_fraction,
    )
    return Settings(
        steps=spec.schedule.steps,
        learning_rate=schedule.learning_rate,
        objective=objective_of(spec).leaving_out(untaught),
        micro_batch_sequences=spec.micro_batch,
        max_grad_norm=spec.optimizer.max_grad_norm,
        evaluate_every=spec.evaluation.every_steps,
        patience=spec.evaluation.patience,
        followed=Followed(spec.evaluation.metric, spec.evaluation.is_highest),
        checkpoint_every=spec.checkpoint.every_steps,
        seed=spec.seed,
    )
