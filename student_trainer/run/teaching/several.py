"""Opens the teachers of a run of several sources, and checks that each fits its sources."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT
from lectern_common.errors import Incompatible
from lectern_common.run.folder import RunFolder
from lectern_common.spec.data import SourceSpec, of_its_source
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity
from student_trainer.batch import Batch
from student_trainer.data.mixed import JoinedRows, MixedBatches, SourceMix, source_order
from student_trainer.data.rows import batch_from, in_order
from student_trainer.data.select import Data
from student_trainer.evaluating.during import Suites
from student_trainer.run.checks import require_rows_covered
from student_trainer.run.optim import objective_of
from student_trainer.run.parts import Mixed, RunContext, Source, Teaching
from student_trainer.run.teaching.connect import open_teaching, require_fits, teacher_facts
from student_trainer.run.teaching.mixed import validation_teachers
from student_trainer.student.load import LoadedStudent
from student_trainer.teacher.recorded import RecordedTeacher
from student_trainer.teacher.remote import RemoteTeacher


def open_teachings(
    run: RunContext, loaded: LoadedStudent, data: Data, begun: Mapping[str, Any] | None
) -> dict[str, Teaching]:
    """Connects every teacher of data.sources once, and returns them by name.

    Args:
        run: see open_teaching.
        loaded: the student.
        data: the run's, with its sources.
        begun: the checkpoint to go on from; None if the run begins.

    Raises:
        LecternError: as open_teaching says, of any of them; names the source.
    """
    known, away = taught_by_each(run.folder, begun), Away(run)
    opened: dict[str, Teaching] = {}
    for index, (spec, own) in enumerate(zip(run.spec.by_source(), data.sources, strict=True)):
        name = _sources(run.spec)[index].teacher
        if name is None or spec.teacher is None:
            continue
        of_source = replace(run, spec=spec)
        with of_its_source(run.spec, index):
            before = opened.get(name)
            if before is None:
                opened[name] = open_teaching(
                    of_source,
                    spec.teacher,
                    loaded,
                    own.manifest,
                    known.get(name),
                    on_outage=partial(away.said, name),
                )
                continue
            provider = before.provider
            if not isinstance(provider, RemoteTeacher):
                raise Incompatible(
                    f"teacher.record {spec.teacher.record} is of another source's rows; make a "
                    "record of each source, and name it as a teacher of its own"
                )
            if require_fits(of_source, provider, loaded, own.manifest) != before.untaught:
                raise Incompatible(
                    f"the teacher {name} lacks other ids for this source than for one before it; "
                    "prepare the sources with the same tokenizer"
                )
    return opened


class Away:
    """Reports which of several teachers cannot be reached."""

    def __init__(self, run: RunContext) -> None:
        self._recorder = run.recorder
        self._why: dict[str, str] = {}

    def said(self, name: str, why: str | None) -> None:
        """Reports why a teacher is away, and (None) that it is back; from any thread."""
        why_of = {key: said for key, said in self._why.items() if key != name}
        self._why = why_of if why is None else {**why_of, name: why}
        words = "; ".join(f"{key}: {said}" for key, said in self._why.items())
        self._recorder.teacher_away(words or None)


def taught_by_each(
    folder: RunFolder, begun: Mapping[str, Any] | None
) -> Mapping[str, TeacherIdentity]:
    """Returns the teachers that the run must keep, by name; without one that is not known."""
    if begun is None:
        return folder.read_teachers()
    return {
        name: TeacherIdentity(facts["teacher_model"], facts["teacher_fingerprint"])
        for name, facts in begun["teachers"].items()
    }


def teachers_facts(teachings: Mapping[str, Teaching]) -> dict[str, dict[str, Any]]:
    """Returns what checkpoints and exports store about each teacher, by name."""
    return {name: teacher_facts(teaching.model) for name, teaching in teachings.items()}


def mixed_batches(run: RunContext, data: Data) -> MixedBatches:
    """Returns this rank's rows of each step."""
    spec, ranks = run.spec, run.ranks
    rows = JoinedRows([part.training for part in data.sources])
    return MixedBatches(rows, _mix(spec), spec.seed, ranks.rank, ranks.size)


def _mix(spec: RunSpec) -> SourceMix:
    weights = [source.weight for source in _sources(spec)]
    return SourceMix(weights, spec.batch.sequences_per_step, spec.seed)


def require_sources_covered(run: RunContext, data: Data, teachings: Mapping[str, Teaching]) -> None:
    """Raises unless each record holds the answers about every row of its source that is asked.

    Raises:
        StopRequested: a stop was requested meanwhile.
        Incompatible: a row is not in the record; the message names it.
    """
    seen_K = _mix(run.spec).rows_before(run.spec.schedule.steps)
    for index, (spec, own) in enumerate(zip(run.spec.by_source(), data.sources, strict=True)):
        name = _sources(run.spec)[index].teacher
        provider = None if name is None else teachings[name].provider
        if not isinstance(provider, RecordedTeacher):
            continue
        count, seen = len(own.training), int(seen_K[index])
        indices: Sequence[int] = range(count)
        if seen < count:
            indices = sorted(source_order(run.spec.seed, index, 0, count)[:seen].tolist())
        with of_its_source(run.spec, index):
            require_rows_covered(spec, provider, own, indices, run.stop)


def first_rows(spec: RunSpec, data: Data) -> dict[str, tuple[RunSpec, Batch]]:
    """Returns, by teacher, the spec of its first source, and rows of it to probe the teacher with.

    The same on every rank.
    """
    found: dict[str, tuple[RunSpec, Batch]] = {}
    for source, own, data_of in zip(_sources(spec), spec.by_source(), data.sources, strict=True):
        if source.teacher is not None and source.teacher not in found:
            rows = min(len(data_of.training), spec.micro_batch)
            found[source.teacher] = own, batch_from(data_of.training, range(rows))
    return found


def mixed_of(
    run: RunContext,
    data: Data,
    teachings: Mapping[str, Teaching],
    batches: MixedBatches,
    suites: Suites | None,
) -> Mixed:
    """Returns the sources of a run with their teachers."""
    spec, ranks = run.spec, run.ranks
    sources = []
    for source, own, data_of in zip(_sources(spec), spec.by_source(), data.sources, strict=True):
        untaught = NOTHING_UNTAUGHT
        if source.teacher is not None:
            untaught = teachings[source.teacher].untaught
        sources.append(
            Source(
                name=source.label,
                teacher=source.teacher,
                objective=objective_of(own).leaving_out(untaught),
                validation=partial(
                    in_order, data_of.validation, spec.micro_batch, ranks.rank, ranks.size
                ),
            )
        )

    def left_out(metric: str, why: str) -> None:
        run.recorder.event("left_out", metric=metric, message=why)

    calibration = None if suites is None else suites.calibration
    return Mixed(
        sources=sources,
        teachings=teachings,
        asks_about_validation=validation_teachers(teachings, left_out, calibration),
        temperature=spec.objective.temperature,
        epoch_of=batches.epoch_of,
    )


def described_teachers(teachings: Mapping[str, Teaching]) -> dict[str, dict[str, Any]]:
    """Returns the description of each teacher for the run's event `assembled`."""
    return {
        name: {
            "teacher": None if teaching.model is None else teaching.model.model_id,
            "teacher_device": None if teaching.model is None else teaching.model.device,
            "vocabulary": teaching.untaught.note,
            "kd_is": teaching.representation.kd_is,
        }
        for name, teaching in teachings.items()
    }


def _sources(spec: RunSpec) -> Sequence[SourceSpec]:
    return spec.data.sources or ()
