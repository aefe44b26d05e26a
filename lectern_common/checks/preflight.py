"""Runs every check that can be made before a run starts, without torch and without a download.

The control plane runs them before it accepts a run, and `lectern train` before it creates a folder.
A run that cannot work is refused with one sentence and leaves nothing behind.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lectern_common.checks.beginnings import beginnings_check
from lectern_common.checks.check import Check, Outcome, checked
from lectern_common.checks.compatibility import (
    StudentFacts,
    require_data_fits,
    require_teacher_fits,
)
from lectern_common.checks.documents import data_folders, require_chats, with_documents
from lectern_common.checks.needs.estimate import DataCounts, RowCounts
from lectern_common.checks.needs.rollouts import (
    examined_prompts,
    longest_prompt,
    prompts_folder,
    require_teacher_takes_rollouts,
)
from lectern_common.checks.record import open_record, require_no_record, require_record_fits
from lectern_common.checks.row_counts import DatasetRows
from lectern_common.checks.rules import (
    require_its_tokenizer,
    require_one_tokenizer,
    require_step,
    why_no_dataset,
)
from lectern_common.checks.student import UNKNOWN_STUDENT, student_facts, unread_vocabulary
from lectern_common.errors import InvalidSpec, LecternError, NotFound, WrongModel
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.data import of_its_source
from lectern_common.spec.run_spec import LABELS, RunSpec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.identity import TeacherIdentity, require_same_teacher
from lectern_common.teacher.record.reader import described
from lectern_common.teacher.replicas import TeacherReplicas
from lectern_common.teacher.secrets import SecretFiles, read_secrets
from lectern_common.tokens.prompt_sets import PromptFacts
from lectern_common.tokens.shards import (
    TOKENIZER_NAME,
    ShardManifest,
    open_shards,
    read_manifest,
    require_intact,
)
from lectern_common.words import counted
from protos import teacher_pb2

# What no check reads of a spec: runs that differ only in these pass or fail alike.
UNREAD: dict[str, Any] = {
    **dict.fromkeys(("name", "seed", "optimizer", "schedule", "checkpoint", *LABELS), True),
    "objective": {"alpha", "temperature", "beta", "chunk_tokens"},
}


@dataclass
class Found:
    """What the checks found. None means missing or unusable.

    Attributes:
        manifest: of the training data.
        rows: of training and validation set; also None for synthetic data.
        counts: what is trained on, held out and left out; None with `rows`.
        student: what its folder says about it.
        prompts: of the run's prompt set; None without one.
        teacher: its own description, even if it does not fit; of one of several servers.
        taught_by: set by the caller: which model the teacher must be.
        packs_chats: set by the caller: False if chats are read as text.
        sources: what was found of each of several sources, by name; of the rest only `student`,
            `manifest` (of the first) and `prompts` are then known.
        teachers: set by the caller: which models several teachers must be, by name.
        needs_a_step: set for a source: whether it alone must have enough rows for a step.
        accepted: the teachers that a run of several sources is accepted with, by name.
    """

    manifest: ShardManifest | None = None
    rows: RowCounts | None = None
    counts: DataCounts | None = None
    student: StudentFacts = UNKNOWN_STUDENT
    prompts: PromptFacts | None = None
    teacher: teacher_pb2.Model | None = None
    taught_by: TeacherIdentity | None = None
    packs_chats: bool = True
    sources: "dict[str, Found]" = field(default_factory=dict)
    teachers: Mapping[str, TeacherIdentity] = field(default_factory=dict)
    needs_a_step: bool = True
    accepted: dict[str, TeacherIdentity] = field(default_factory=dict)

    @property
    def identity(self) -> TeacherIdentity | None:
        """The teacher that the run is accepted with."""
        return None if self.teacher is None else TeacherIdentity.of(self.teacher)


def examine(
    spec: RunSpec,
    roots: Roots,
    timeout_seconds: float = 10.0,
    taught_by: TeacherIdentity | None = None,
    *,
    packs_chats: bool = True,
    teachers: Mapping[str, TeacherIdentity] | None = None,
) -> tuple[list[Check], Found]:
    """Returns every check, in the order in which the run would meet them, and what they found.

    Args:
        timeout_seconds: longest wait for an answer of the teacher at `spec.teacher.address`.
        taught_by: the teacher that an earlier accepted run must still have.
        packs_chats: of the run to resume, see RunFolder; a new run does.
        teachers: the same as taught_by of a run of several teachers, by name.
    """
    found = Found(taught_by=taught_by, packs_chats=packs_chats, teachers=teachers or {})
    return list(_checks(spec, roots, timeout_seconds, found)), found


def require_startable(
    spec: RunSpec,
    roots: Roots,
    timeout_seconds: float = 10.0,
    taught_by: TeacherIdentity | None = None,
    *,
    packs_chats: bool = True,
) -> TeacherIdentity | None:
    """Returns the teacher that the run is accepted with; None if it needs none.

    Args:
        taught_by: see `examine`.
        packs_chats: see `examine`.

    Raises:
        LecternError: the error of the first failed check.
    """
    found = startable(spec, roots, timeout_seconds, taught_by, packs_chats=packs_chats)
    return found.identity


def startable(
    spec: RunSpec,
    roots: Roots,
    timeout_seconds: float = 10.0,
    taught_by: TeacherIdentity | None = None,
    *,
    packs_chats: bool = True,
    teachers: Mapping[str, TeacherIdentity] | None = None,
) -> Found:
    """Returns what the checks found. Arguments and errors are those of `examine`.

    Raises:
        LecternError: the error of the first failed check.
    """
    found = Found(taught_by=taught_by, packs_chats=packs_chats, teachers=teachers or {})
    for check in _checks(spec, roots, timeout_seconds, found):
        if check.error is not None:
            raise check.error
    return found


def require_data(spec: RunSpec, roots: Roots, *, packs_chats: bool = True) -> None:
    """Raises unless the run's datasets are there and every byte is as their manifests say.

    Reads them whole.

    Args:
        packs_chats: see `examine`.

    Raises:
        LecternError: the error of the first failed check.
    """
    if spec.data.sources is not None:
        for index, one in enumerate(spec.by_source()):
            with of_its_source(spec, index):
                require_data(one, roots, packs_chats=packs_chats)
        return
    spec, found = with_documents(spec, roots), Found(packs_chats=packs_chats)
    found.student, _ = _student(spec, roots)
    for check in () if spec.data.path is None else _data(spec, roots, spec.data.path, found):
        if check.error is not None:
            raise check.error
    for folder in data_folders(spec, roots):
        if folder is not None:
            require_intact(folder)


# Checks that are the same whatever the source, reported once.
_OF_THE_RUN = ("student", "prompts", "packages")


def _checks_of_sources(
    spec: RunSpec, roots: Roots, timeout_seconds: float, found: Found
) -> Iterator[Check]:
    """Yields the checks of the run that each source alone would be; names the source."""
    for index, (source, one) in enumerate(
        zip(spec.data.sources or (), spec.by_source(), strict=True)
    ):
        own = Found(packs_chats=found.packs_chats, needs_a_step=False)
        own.taught_by = found.teachers.get(source.teacher or "")
        for check in _checks(one, roots, timeout_seconds, own):
            if index and check.subject in _OF_THE_RUN:
                continue
            yield check if check.subject in _OF_THE_RUN else _of_source(check, spec, index)
        found.sources[source.label] = own
        if not index:
            found.student, found.manifest = own.student, own.manifest
        if own.manifest is not None and found.manifest is not None:
            yield from _one_tokenizer(spec, index, found.manifest, own.manifest)
        if own.identity is not None and source.teacher is not None:
            before = found.accepted.setdefault(source.teacher, own.identity)
            if before.fingerprint != own.identity.fingerprint:
                why = f"the teacher {source.teacher} became another model meanwhile; try again"
                yield Check.failed("teacher", WrongModel(why))


def _one_tokenizer(
    spec: RunSpec, index: int, first: ShardManifest, own: ShardManifest
) -> Iterator[Check]:
    try:
        with of_its_source(spec, index):
            require_its_tokenizer(first, own)
    except LecternError as error:
        yield Check.failed("tokenizer", error)


def _of_source(check: Check, spec: RunSpec, index: int) -> Check:
    """Returns a check of one source with the source named."""
    if check.error is None:
        label = (spec.data.sources or [])[index].label
        return replace(check, message=f"source {label}: {check.message}")
    try:
        with of_its_source(spec, index):
            raise check.error
    except LecternError as error:
        return replace(check, message=str(error), error=error)


def _checks(spec: RunSpec, roots: Roots, timeout_seconds: float, found: Found) -> Iterator[Check]:
    if spec.data.sources is not None:
        yield from _checks_of_sources(spec, roots, timeout_seconds, found)
        return
    spec = with_documents(spec, roots)
    # First, because the data is searched for ids that the student lacks.
    found.student, of_student = _student(spec, roots)
    if spec.data.path is None:
        yield Check("data", Outcome.PASS, "synthetic tokens; no files are read")
    else:
        yield from _data(spec, roots, spec.data.path, found)
    yield of_student
    if found.manifest is not None and found.student.tokens is not None:
        yield _tokenizer(spec, roots, found)
    elif found.student is not UNKNOWN_STUDENT and (names := unread_vocabulary(spec, roots)):
        message = f"the trainer converts the student's {', '.join(names)} and compares its tokens"
        yield Check("tokenizer", Outcome.SKIP, message)
    if spec.evaluation.prompts and found.student is not UNKNOWN_STUDENT:
        yield _prompts(spec, roots, found)
    if spec.rollout is not None:
        yield _rollouts(spec, roots, found)
    if spec.report_to:
        yield _packages(spec)
    if spec.teacher is not None:
        if spec.teacher.record is not None:
            yield _record(spec, spec.teacher, roots, found)
        else:
            yield _teacher(spec, spec.teacher, roots, found, timeout_seconds)
            if found.taught_by is None and spec.teacher.record_to is not None:
                yield _record_to(spec, spec.teacher, roots)
        dataset, _ = data_folders(spec, roots)
        if found.teacher is not None and found.manifest is not None and dataset is not None:
            yield from beginnings_check(found.teacher, found.manifest, dataset)


def _data(spec: RunSpec, roots: Roots, path: str, found: Found) -> Iterator[Check]:
    """Checks that the datasets hold rows, and enough of them for a step."""
    training, check = _dataset(spec, roots, "data", path, found)
    yield check
    if training is not None:
        found.manifest = training.manifest
        if check.error is not None:
            return
    held_out: DatasetRows | None = None
    if spec.data.validation_path is not None:
        path = spec.data.validation_path
        held_out, check = _dataset(spec, roots, "validation", path, found)
        yield check
        if check.error is not None:
            return
    if training is not None:
        found.counts, check = _rows(spec, training, held_out, found)
        if check.error is not None:
            yield check
        if found.counts is not None:
            evaluated = min(found.counts.held_out_rows, spec.evaluation.max_sequences)
            filled = 1 - found.counts.padding
            found.rows = RowCounts(found.counts.training_rows, evaluated, filled)


def _dataset(
    spec: RunSpec, roots: Roots, subject: str, path: str, known: Found
) -> tuple[DatasetRows | None, Check]:
    """Returns what is in a dataset, and the check that the student can use enough of it.

    A dataset that the student cannot use is returned too.
    """
    field = "data.validation_path" if subject == "validation" else "data.path"

    def look() -> tuple[DatasetRows, str]:
        data, folder = spec.data, resolve_under(roots.data, path, field)
        try:
            manifest = read_manifest(folder)
        except NotFound:
            why = why_no_dataset(roots.data, path, folder)
            make = "(make one with `lectern data prepare`)"
            raise InvalidSpec([(field, f"{why} {make}")]) from None
        open_shards(folder, manifest)
        width = known.student.vocab_size
        rows = DatasetRows(folder, manifest, data, width, packs_chats=known.packs_chats)
        tokens, shards = counted(manifest.total_tokens, "token"), manifest.shard_count
        counts = f"{tokens} in {counted(shards, 'shard')}, {counted(rows.total, rows.of)}"
        if rows.of == "row":
            counts += f" of {data.seq_len}"
        if rows.usable < rows.total:
            counts += f", {rows.total - rows.usable:,} of them left out"
        if len(rows.unknown):
            counts += f" ({len(rows.unknown):,} with ids beyond the student's {width})"
        return rows, f"{path}: {counts}"

    rows, check = checked(subject, look, nothing=None, field=field)
    if rows is not None:
        try:
            rows.require_usable()
        except LecternError as error:
            check = Check.failed(subject, error)
    return rows, check


def _rows(
    spec: RunSpec, dataset: DatasetRows, held_out: DatasetRows | None, known: Found
) -> tuple[DataCounts | None, Check]:
    """Returns the counts of both sets, and the check that a step has enough training rows."""

    def look() -> tuple[DataCounts, str]:
        datasets = [dataset] if held_out is None else [dataset, held_out]
        # Of several sources, data.long_chats is about those that are chats.
        if known.packs_chats and known.needs_a_step:
            require_chats(spec, [one.manifest for one in datasets])
        if held_out is not None:
            require_one_tokenizer(
                str(spec.data.path),
                dataset.manifest.tokenizer_sha256,
                str(spec.data.validation_path),
                held_out.manifest.tokenizer_sha256,
            )
        counts = dataset.counts(held_out or spec.data.validation_fraction or 0.0)
        if spec.trains_on_data and known.needs_a_step:
            require_step(counts.training_rows, spec.batch.sequences_per_step)
        return counts, ""

    return checked("rows", look, nothing=None, field="data.path")


def _student(spec: RunSpec, roots: Roots) -> tuple[StudentFacts, Check]:
    def look() -> tuple[StudentFacts, str]:
        facts = student_facts(spec, roots)
        n, origin = spec.student.keep_every_nth_layer, f"weights of {spec.student.init}"
        if spec.student.init is None:
            origin = f"new weights, shaped by {spec.student.config}"
        elif n is not None:
            origin += f", layers 0, {n}, {2 * n}, ..."
        if spec.student.lora is not None:
            origin += f", adapters of rank {spec.student.lora.rank}"
        size = facts.vocab_size
        vocabulary = "vocabulary not in its config" if size is None else f"vocabulary of {size}"
        return facts, f"{origin}, {vocabulary}"

    field = "student.init" if spec.student.init is not None else "student.config"
    facts, check = checked("student", look, nothing=UNKNOWN_STUDENT, field=field)
    if check.outcome is Outcome.PASS and facts is UNKNOWN_STUDENT:
        message = (
            f"{spec.student.init} is not a folder under the models root ({roots.models}), so it is "
            "taken as a hub id; the trainer downloads and checks it"
        )
        check = Check("student", Outcome.SKIP, message)
    return facts, check


def _tokenizer(spec: RunSpec, roots: Roots, found: Found) -> Check:
    def look() -> tuple[None, str]:
        note = None
        dataset, validation = data_folders(spec, roots)
        if dataset is not None and found.manifest is not None and found.student.tokens is not None:
            note = require_data_fits(dataset, found.manifest, found.student.tokens, validation)
        return None, note or "data and student have the same tokens"

    return checked("tokenizer", look, nothing=None, field="data.path")[1]


def _prompts(spec: RunSpec, roots: Roots, found: Found) -> Check:
    def look() -> tuple[None, str]:
        of_data = spec.data.path is not None and (
            resolve_under(roots.data, spec.data.path, "data.path") / TOKENIZER_NAME
        )
        if found.student.tokens is None and not (of_data and of_data.exists()):
            why = (
                f"neither the student nor the data has a {TOKENIZER_NAME} to encode prompts with; "
                "remove the prompts, or put one beside the student"
            )
            raise InvalidSpec([("evaluation.prompts", why)])
        return None, counted(len(spec.evaluation.prompts), "prompt")

    return checked("prompts", look, nothing=None)[1]


def _rollouts(spec: RunSpec, roots: Roots, found: Found) -> Check:
    def look() -> tuple[PromptFacts | None, str]:
        return examined_prompts(spec, roots, found.student, found.manifest)

    field = "rollout.prompts" if spec.rollout is not None and spec.rollout.prompts else None
    found.prompts, check = checked("rollouts", look, nothing=None, field=field)
    return check


def _packages(spec: RunSpec) -> Check:
    def look() -> tuple[None, str]:
        for name in spec.report_to:
            if importlib.util.find_spec(name) is None:
                why = f"{name} is not installed: pip install 'lectern[{name}]', or remove it"
                raise InvalidSpec([("report_to", why)])
        return None, f"{', '.join(spec.report_to)} installed"

    return checked("packages", look, nothing=None)[1]


def _teacher(
    spec: RunSpec, teacher: TeacherSpec, roots: Roots, found: Found, timeout_seconds: float
) -> Check:
    def look() -> tuple[None, str]:
        secrets = read_secrets(roots, SecretFiles.of(teacher))
        with TeacherReplicas(teacher.address, secrets.token, secrets.tls) as replicas:
            models, away = replicas.get_models(timeout_seconds)
            found.teacher = next(iter(models.values()))
            if found.taught_by is not None:
                identity = TeacherIdentity.of(found.teacher)
                require_same_teacher(
                    identity, found.taught_by, f"teacher.address {teacher.address} serves"
                )
            dataset, validation = data_folders(spec, roots)
            for model in models.values():
                untaught = require_teacher_fits(
                    spec,
                    model,
                    replicas.get_tokenizer_map,
                    found.student,
                    found.manifest,
                    dataset,
                    validation,
                    prompts_folder(spec, roots),
                )
                if (longest := longest_prompt(spec, found.prompts)) is not None:
                    vocab_size = found.student.vocab_size
                    require_teacher_takes_rollouts(spec, longest, model, vocab_size)
        return None, (
            f"{model.model_id} at {', '.join(models)}: {model.num_parameters:,} parameters, "
            f"{model.dtype} on {model.device}; offers {teacher.representation}"
            + (f"; {untaught.note}" if untaught.note else "")
            + "".join(f"; skipped for now: {error}" for error in away)
        )

    return checked("teacher", look, nothing=None)[1]


def _record(spec: RunSpec, teacher: TeacherSpec, roots: Roots, found: Found) -> Check:
    def look() -> tuple[None, str]:
        record = open_record(spec, roots)
        found.teacher = record.model
        if found.taught_by is not None:
            identity = TeacherIdentity.of(record.model)
            require_same_teacher(
                identity, found.taught_by, f"teacher.record {teacher.record} is of"
            )
        require_record_fits(spec, record, found.manifest)
        untaught = require_teacher_fits(
            spec,
            record.model,
            record.tokenizer_map,
            found.student,
            found.manifest,
            *data_folders(spec, roots),
        )
        what = "; ".join(described(part) for part in record.manifest.parts)
        return None, (
            f"the record {teacher.record} of {record.model.model_id}: {what}"
            + (f"; {untaught.note}" if untaught.note else "")
        )

    return checked("teacher", look, nothing=None, field="teacher.record")[1]


def _record_to(spec: RunSpec, teacher: TeacherSpec, roots: Roots) -> Check:
    def look() -> tuple[None, str]:
        require_no_record(spec, roots)
        return None, f"what the teacher sends will be the record {teacher.record_to}"

    return checked("record", look, nothing=None, field="teacher.record_to")[1]
