"""Connects the teacher of a run spec, and checks that it fits student and data."""

from collections.abc import Callable
from typing import Any

from lectern_common.checks.beginnings import beginnings_check
from lectern_common.checks.compatibility import StudentFacts, require_teacher_fits
from lectern_common.checks.documents import data_folders
from lectern_common.checks.needs.rollouts import prompts_folder
from lectern_common.checks.record import record_folder, require_record_fits
from lectern_common.checks.vocabularies import Untaught
from lectern_common.logs import get_logger
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.address import replica_addresses
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.tokens.shards import ShardManifest
from protos import teacher_pb2
from student_trainer.run.parts import RunContext, Teaching
from student_trainer.student.load import LoadedStudent
from student_trainer.teacher.advice import TeacherFacts, WaitAdvice
from student_trainer.teacher.recorded import RecordedTeacher
from student_trainer.teacher.remote import RemoteTeacher, teacher_of

_log = get_logger()


def open_teaching(
    run: RunContext,
    teacher: TeacherSpec,
    loaded: LoadedStudent,
    manifest: ShardManifest | None,
    taught_by: TeacherIdentity | None,
    on_outage: Callable[[str | None], None] | None = None,
) -> Teaching:
    """Connects the run's teacher, and returns it with how the run asks it.

    Args:
        run: its roots `secrets`, `cache` and `data` are used; its stack closes the connection.
        teacher: the spec's.
        loaded: the student.
        manifest: of the training shards; None for synthetic data.
        taught_by: the teacher that the run was accepted with, or began with; None means not known
            yet.
        on_outage: is told why the teacher is away, and None once it is back; None means the
            recorder is.

    Raises:
        LecternError: the teacher cannot be reached, is a different model, or does not fit.
    """
    source: RemoteTeacher | RecordedTeacher
    if teacher.record is None:
        away = run.recorder.teacher_away if on_outage is None else on_outage
        source = remote = _remote(run, teacher, loaded.student.vocab_size, away)
    else:
        source, remote = _recorded(run, loaded.student.vocab_size, manifest), None
    model = source.connect(taught_by)
    untaught = require_fits(run, source, loaded, manifest)
    if untaught.note is not None:
        _log.warning("vocabularies_differ", message=untaught.note)
    source.narrow()
    _warn_of_beginnings(run, model, manifest)
    if teacher.asks_for.format.needs_head:
        source.output_head()
    if remote is None:
        words = f"taught by the record {teacher.record} of {model.model_id}"
        run.recorder.event("taught_by_record", message=words)
    return Teaching(
        provider=source,
        representation=teacher.asks_for,
        prefetch_steps=teacher.prefetch_steps,
        allow_same_weights=teacher.allow_same_weights,
        take_received=None if remote is None else remote.take_received,
        cancel=(lambda: None) if remote is None else remote.cancel,
        advice=None if remote is None else _advice(run.spec, teacher, model, remote),
        model=model,
        untaught=untaught,
        is_recorded=remote is None,
    )


def teacher_facts(model: teacher_pb2.Model | None) -> dict[str, Any]:
    """Returns what checkpoints and exports store about the teacher; None without a teacher."""
    return {
        "teacher_model": None if model is None else model.model_id,
        "teacher_fingerprint": None if model is None else model.fingerprint,
        "teacher_weights_sha256": None if model is None else model.weights_sha256,
    }


def _remote(
    run: RunContext,
    teacher: TeacherSpec,
    vocab_size: int,
    on_outage: Callable[[str | None], None],
) -> RemoteTeacher:
    """Returns the teacher's client, not yet connected."""
    remote = teacher_of(
        teacher,
        run.roots,
        run_id=run.folder.run_id,
        vocab_size=vocab_size,
        device=run.device,
        stop=run.stop,
        on_outage=on_outage,
    )
    return run.stack.enter_context(remote)


def _recorded(run: RunContext, vocab_size: int, manifest: ShardManifest | None) -> RecordedTeacher:
    """Returns the run's record as a teacher. Raises LecternError unless it suits the data."""
    folder = record_folder(run.spec, run.roots)
    teacher = RecordedTeacher(folder, vocab_size=vocab_size, device=run.device, stop=run.stop)
    require_record_fits(run.spec, teacher.record, manifest)
    return teacher


def require_fits(
    run: RunContext,
    teacher: RemoteTeacher | RecordedTeacher,
    loaded: LoadedStudent,
    manifest: ShardManifest | None,
) -> Untaught:
    """Returns what it cannot teach. Raises Incompatible unless it fits this student and data."""
    student = StudentFacts(
        loaded.student.vocab_size,
        loaded.tokens,
        loaded.initial_sha256 if run.spec.student.init else None,
    )
    return require_teacher_fits(
        run.spec,
        teacher.model,
        teacher.tokenizer_map,
        student,
        manifest,
        *data_folders(run.spec, run.roots),
        prompts_folder(run.spec, run.roots),
    )


def _warn_of_beginnings(
    run: RunContext, model: teacher_pb2.Model, manifest: ShardManifest | None
) -> None:
    """Records it if the data does not begin a text as the teacher does."""
    dataset, _ = data_folders(run.spec, run.roots)
    if dataset is None or manifest is None:
        return
    for check in beginnings_check(model, manifest, dataset):
        run.recorder.event("beginnings_differ", message=f"{check.message}; {check.advice}")


def _advice(
    spec: RunSpec, teacher: TeacherSpec, model: teacher_pb2.Model, remote: RemoteTeacher
) -> WaitAdvice:
    facts = TeacherFacts(
        teacher.representation,
        teacher.prefetch_steps,
        stale_steps=None if spec.rollout is None else spec.rollout.stale_steps,
        asks_about_data=spec.trains_on_data,
        num_replicas=len(replica_addresses(teacher.address)),
        mode=model.mode,
        tokens_per_second=model.measured_tokens_per_second,
    )
    return WaitAdvice(facts, remote.away_seconds)
