"""RunSpec: the one description of a run, and what a resume may change of it.

The YAML file, the REST body, the command line and the page all have this schema. Every field takes
effect, or the spec is refused. The rules between two sections are here; the sections are in
sections.py, loading and messages in load.py.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lectern_common.errors import Conflict, InvalidSpec
from lectern_common.spec.data import DataSpec, Teachers, of_source, require_sources_fit
from lectern_common.spec.evaluation import EvaluationSpec, require_measured
from lectern_common.spec.refusals import Misfit
from lectern_common.spec.rollout import RolloutSection, require_rollouts_fit
from lectern_common.spec.sections import (
    BatchSpec,
    CheckpointSpec,
    DeviceSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ScheduleSpec,
    Section,
    StudentSpec,
    TeacherSpec,
)

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
NAME_RULE = "lower-case letters, digits and hyphens, at most 63, beginning with a letter or digit"

TAG_PATTERN = r"^[^\s,]{1,40}$"
TAG_RULE = "1 to 40 characters without spaces and commas"

Tag = Annotated[str, Field(pattern=TAG_PATTERN)]


def _each_once(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("must not repeat an entry")
    return values


class RunSpec(Section):
    """One run. Each field is documented below it; defaults apply unless set."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """The run's name, part of its id: lower-case letters, digits and hyphens, at most 63, beginning
    with a letter or digit."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seeds initial weights (with student.config), row order, synthetic data, sampled targets."""
    teacher: TeacherSpec | None = None
    """Required if objective.alpha < 1; refused with alpha 1, which needs no teacher."""
    teachers: Teachers | None = None
    """Instead of `teacher`, with data.sources: teachers by name, each with the fields of `teacher`.
    """
    student: StudentSpec
    data: DataSpec
    rollout: RolloutSection | None = None
    """Rows that the student writes itself; null: all rows are of data."""
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    batch: BatchSpec = BatchSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    device: DeviceSpec = DeviceSpec()
    report_to: Annotated[list[Literal["tensorboard", "wandb"]], AfterValidator(_each_once)] = Field(
        [], max_length=2
    )
    """Where else to write metrics; metrics.jsonl is always written."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Of the runs that wait for a device, those of the highest priority start first, and among
    equals the oldest."""
    group: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Runs that belong together, such as those of a sweep: named like a run."""
    tags: Annotated[list[Tag], AfterValidator(_each_once)] = Field([], max_length=20)
    """Words to find runs by; at most 20, each of at most 40 characters without spaces or commas."""
    notes: Annotated[str, Field(max_length=4096)] = ""
    """What a person wants to remember about the run."""

    @model_validator(mode="after")
    def _teacher_if_distilling(self) -> Self:
        if self.data.sources is not None or self.teachers is not None:
            return self  # see _sources_fit
        if self.objective.alpha < 1 and self.teacher is None:
            raise Misfit(
                f"teacher is required: objective.alpha is {self.objective.alpha:g}, so the run "
                "distils; set teacher.address, or alpha 1 for cross entropy only",
                "teacher",
                "objective.alpha",
            )
        if self.objective.alpha == 1 and self.teacher is not None:
            raise Misfit(
                "teacher has no effect with objective.alpha 1 (only cross entropy); remove it, "
                "or lower alpha",
                "teacher",
                "objective.alpha",
            )
        return self

    @model_validator(mode="after")
    def _a_record_is_of_a_dataset(self) -> Self:
        teacher = self.teacher
        if teacher is None or self.data.kind == "shards":
            return self
        for name in ("record", "record_to"):
            if getattr(teacher, name) is not None:
                raise Misfit(
                    f"teacher.{name} needs a dataset: synthetic rows are not recorded; set "
                    "data.path",
                    f"teacher.{name}",
                    "data.kind",
                )
        return self

    @model_validator(mode="after")
    def _draws_serve_forward_kl(self) -> Self:
        divergence = self.objective.divergence
        for field, teacher in self.taught_by.items():
            if teacher.representation == "sampled" and divergence != "forward_kl":
                raise Misfit(
                    f"objective.divergence {divergence} needs the teacher's probability of every "
                    f"token, but {field}.representation sampled sends only the drawn ones; set "
                    "divergence forward_kl, or representation hidden or top_k",
                    "objective.divergence",
                    f"{field}.representation",
                )
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        require_sources_fit(self)
        return self

    @model_validator(mode="after")
    def _rows_divide_among_devices(self) -> Self:
        rows, count = self.batch.sequences_per_step, self.device.count
        if rows % count:
            raise Misfit(
                f"device.count {count} must divide batch.sequences_per_step {rows}",
                "device.count",
                "batch.sequences_per_step",
            )
        if self.rows_per_device % self.micro_batch:
            raise Misfit(
                f"batch.micro_batch_sequences {self.micro_batch} must divide the rows of each "
                f"device, {self.rows_per_device}: batch.sequences_per_step {rows} by device.count "
                f"{count}",
                "batch.micro_batch_sequences",
                "batch.sequences_per_step",
                "device.count",
            )
        return self

    @model_validator(mode="after")
    def _patience_keeps_the_best(self) -> Self:
        if self.evaluation.patience is not None and not self.checkpoint.keep_best:
            raise Misfit(
                "evaluation.patience exports the best weights, but checkpoint.keep_best 0 keeps "
                "none; set keep_best 1, or remove patience",
                "evaluation.patience",
                "checkpoint.keep_best",
            )
        return self

    @model_validator(mode="after")
    def _evaluation_can_be_measured(self) -> Self:
        require_measured(self)
        return self

    @model_validator(mode="after")
    def _rollouts_fit(self) -> Self:
        require_rollouts_fit(self)
        return self

    @property
    def rows_per_device(self) -> int:
        """Rows of a step that each device computes."""
        return self.batch.sequences_per_step // self.device.count

    @property
    def micro_batch(self) -> int:
        """Rows that a device computes at a time, and sends to the teacher in one request."""
        return min(self.batch.micro_batch_sequences or self.rows_per_device, self.rows_per_device)

    @property
    def trains_on_data(self) -> bool:
        """True if some rows of its steps are rows of data; False if the student writes them all."""
        return self.rollout is None or self.rollout.fraction < 1

    @property
    def distils(self) -> bool:
        """True if the loss has a distillation term, so that the run needs a teacher."""
        return bool(self.taught_by)

    @property
    def asks_server(self) -> bool:
        """True if it needs a teacher server, not only a record of one."""
        return any(teacher.record is None for teacher in self.taught_by.values())

    @property
    def taught_by(self) -> dict[str, TeacherSpec]:
        """All its teachers, by their fields: `teacher`, or `teachers.NAME` of several."""
        if self.teacher is not None:
            return {"teacher": self.teacher}
        return {f"teachers.{name}": teacher for name, teacher in (self.teachers or {}).items()}

    def by_source(self) -> "list[RunSpec]":
        """Returns the spec of each source (see `of_source`); itself if it has no sources."""
        sources = self.data.sources
        return [self] if sources is None else [of_source(self, source) for source in sources]


# What says something about a run and nothing about its training; may be changed at any time.
LABELS = ("priority", "group", "tags", "notes")

# What a resume may change: dotted paths, each with everything below it.
RESUME_MAY_CHANGE = (
    "schedule.steps",
    "evaluation",
    "checkpoint",
    "report_to",
    "rollout.keep",
    *LABELS,
    "device",
    "teacher.address",
    "teacher.record_to",
    "teacher.deadline_seconds",
    "teacher.outage_budget_seconds",
    "teacher.token_file",
    "teacher.tls_ca_file",
    "teacher.tls_cert_file",
    "teacher.tls_key_file",
)

# Fields that have no effect, and are null, while another field has its default.
HAS_NO_EFFECT_BESIDE_THE_DEFAULT_OF = {
    "device.max_restarts": "device.count",
    "evaluation.prompt_tokens": "evaluation.prompts",
    "evaluation.code": "evaluation.suites",
    "evaluation.lm_eval": "evaluation.suites",
    "evaluation.metric_goal": "evaluation.metric",
}


def require_resumable(old: RunSpec, new: RunSpec, made: int | None) -> None:
    """Raises InvalidSpec, naming every field, if a resume may not make the change.

    Args:
        old: the spec that the run has had so far.
        new: the spec to resume it with.
        made: steps at its newest checkpoint; None means that it has none and starts over.
    """
    problems = [
        (field, f"was {before!r}, is {after!r}; a resume may not change it")
        for field, before, after in resume_differences(old, new)
    ]
    if new.schedule.steps < (made or 0):
        why = f"is {new.schedule.steps}, but the run has already made {made} steps"
        problems.append(("schedule.steps", why))
    before, after = old.evaluation.max_sequences, new.evaluation.max_sequences
    if made is not None and new.evaluation.patience is not None and before != after:
        why = f"was {before}, is {after}; losses of other rows do not compare: set patience null"
        problems.append(("evaluation.max_sequences", why))
    before_metric, metric = old.evaluation.metric, new.evaluation.metric
    if made is not None and before_metric != metric:
        why = f"was {before_metric}, is {metric}; values of another metric do not compare"
        problems.append(("evaluation.metric", why))
    if problems:
        raise InvalidSpec(problems)


def require_more_to_do(name: str, old: RunSpec, new: RunSpec, made: int, *, early: bool) -> None:
    """Raises Conflict if a run that has succeeded would make no further step.

    Args:
        name: the run's name, for the message.
        old: the spec that it has had.
        new: the spec to resume it with.
        made: steps that it has made.
        early: it stopped before the last step, because its patience ran out.
    """
    patience = new.evaluation.patience
    if early and patience is not None and patience <= (old.evaluation.patience or 0):
        raise Conflict(
            f"run {name} has succeeded: its evaluation.patience ran out at step {made}; to "
            "continue, resume with a higher evaluation.patience, or null"
        )
    if new.schedule.steps <= made:
        raise Conflict(
            f"run {name} has succeeded: it has made all {made} steps; to continue, resume with a "
            "higher schedule.steps"
        )


def resume_differences(old: RunSpec, new: RunSpec) -> list[tuple[str, Any, Any]]:
    """Returns (dotted field, old, new) for each difference that a resume may not make."""
    return [
        (field, before, after)
        for field, before, after in _differences("", old.model_dump(), new.model_dump())
        if not resume_may_change(field)
    ]


def resume_may_change(field: str) -> bool:
    """Returns whether a resume may change a field, by its dotted path."""
    if field.startswith("teachers."):  # as of one teacher, whatever its name
        field = ".".join(["teacher", *field.split(".")[2:]])
    return any(field == free or field.startswith(free + ".") for free in RESUME_MAY_CHANGE)


def _differences(prefix: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [
            difference
            for key in old
            for difference in _differences(f"{prefix}.{key}".lstrip("."), old[key], new[key])
        ]
    return [] if old == new else [(prefix, old, new)]
