"""RunSpec: the one description of a run. YAML file, REST body, CLI input and page show this schema.

Every field is applied or the spec is refused; nothing is only recorded. What holds between two
sections is here, the sections themselves in sections.py, files and messages in load.py.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lectern_common.errors import Conflict, InvalidSpec
from lectern_common.spec.sections import (
    BatchSpec,
    CheckpointSpec,
    DataSpec,
    DeviceSpec,
    EvaluationSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ScheduleSpec,
    Section,
    StudentSpec,
    TeacherSpec,
)

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
NAME_RULE = "lower-case letters, digits and hyphens, at most 63, beginning with a letter or digit"


def _each_once(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("must name each once")
    return values


class RunSpec(Section):
    """A whole run. See docs beside each field; defaults are in force unless set."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """For people and for the run id: lower-case letters, digits and hyphens, at most 63, beginning
    with a letter or digit."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Initial weights (with student.config), row order, synthetic data, sampled targets."""
    teacher: TeacherSpec | None = None
    """Required with objective.alpha < 1, refused with alpha 1, which needs no teacher."""
    student: StudentSpec
    data: DataSpec
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
    """Further places that metrics are written to; metrics.jsonl always is."""

    @model_validator(mode="after")
    def _teacher_if_distilling(self) -> Self:
        if self.objective.alpha < 1 and self.teacher is None:
            raise ValueError(
                f"teacher is required: objective.alpha is {self.objective.alpha:g}, so the run "
                "distils; set teacher.address, or alpha 1 for cross entropy alone"
            )
        if self.objective.alpha == 1 and self.teacher is not None:
            raise ValueError(
                "teacher has no effect with objective.alpha 1 (cross entropy alone); remove it, "
                "or lower alpha"
            )
        return self

    @model_validator(mode="after")
    def _draws_serve_forward_kl(self) -> Self:
        divergence = self.objective.divergence
        if (
            self.teacher is not None
            and self.teacher.representation == "sampled"
            and divergence != "forward_kl"
        ):
            raise ValueError(
                f"objective.divergence {divergence} needs the teacher's probability of every "
                "token, and teacher.representation sampled tells it of those drawn alone; set "
                "divergence forward_kl, or representation hidden or top_k"
            )
        return self

    @model_validator(mode="after")
    def _rows_divide_among_devices(self) -> Self:
        rows, count = self.batch.sequences_per_step, self.device.count
        if rows % count or self.rows_per_device % self.micro_batch:
            raise ValueError(
                f"device.count {count} must divide batch.sequences_per_step {rows}, and "
                f"batch.micro_batch_sequences {self.batch.micro_batch_sequences} the rows of each "
                "device"
            )
        return self

    @model_validator(mode="after")
    def _patience_keeps_the_best(self) -> Self:
        if self.evaluation.patience is not None and not self.checkpoint.keep_best:
            raise ValueError(
                "evaluation.patience exports the best weights, and checkpoint.keep_best 0 keeps "
                "none; set keep_best 1, or remove patience"
            )
        return self

    @property
    def rows_per_device(self) -> int:
        """Rows of a step that each of `device.count` devices computes."""
        return self.batch.sequences_per_step // self.device.count

    @property
    def micro_batch(self) -> int:
        """Rows that a device computes at a time, and asks the teacher about in one request."""
        return min(self.batch.micro_batch_sequences or self.rows_per_device, self.rows_per_device)

    @property
    def distils(self) -> bool:
        """True where the loss has a distillation term, and so a teacher is asked."""
        return self.teacher is not None


# What a resume may change: dotted paths, each covering everything below it.
RESUME_MAY_CHANGE = (
    "schedule.steps",
    "evaluation",
    "checkpoint",
    "report_to",
    "device",
    "teacher.address",
    "teacher.deadline_seconds",
    "teacher.outage_budget_seconds",
    "teacher.token_file",
    "teacher.tls_ca_file",
    "teacher.tls_cert_file",
    "teacher.tls_key_file",
)

# Fields that have no effect, and are null, while another has its default.
HAS_NO_EFFECT_BESIDE_THE_DEFAULT_OF = {
    "device.max_restarts": "device.count",
    "evaluation.prompt_tokens": "evaluation.prompts",
}


def require_resumable(old: RunSpec, new: RunSpec, made: int | None) -> None:
    """Raises InvalidSpec, field by field, where a resume may not make the change.

    Args:
        old: what the run has gone by so far.
        new: what it is to go on with.
        made: steps at its newest checkpoint; None where it has none, and begins anew.
    """
    problems = [
        (field, f"was {before!r}, is {after!r}; a resume may not change it")
        for field, before, after in resume_differences(old, new)
    ]
    if new.schedule.steps < (made or 0):
        problems.append(("schedule.steps", f"is {new.schedule.steps}, but {made} steps are made"))
    before, after = old.evaluation.max_sequences, new.evaluation.max_sequences
    if made is not None and new.evaluation.patience is not None and before != after:
        why = f"was {before}, is {after}; losses of other rows do not compare: set patience null"
        problems.append(("evaluation.max_sequences", why))
    if problems:
        raise InvalidSpec(problems)


def require_more_to_do(name: str, old: RunSpec, new: RunSpec, made: int, *, early: bool) -> None:
    """Raises Conflict where a run that has succeeded would make no further step.

    Args:
        name: of the run, for people.
        old: what it has gone by.
        new: what it is to go on with.
        made: its steps.
        early: it ended before the last one, its patience being over.
    """
    patience = new.evaluation.patience
    if early and patience is not None and patience <= (old.evaluation.patience or 0):
        raise Conflict(
            f"run {name} has succeeded: its evaluation.patience was over at step {made}; to go "
            "on, resume with a higher evaluation.patience, or null"
        )
    if new.schedule.steps <= made:
        raise Conflict(
            f"run {name} has succeeded: it has made all {made} steps; to go on, resume with a "
            "higher schedule.steps"
        )


def resume_differences(old: RunSpec, new: RunSpec) -> list[tuple[str, Any, Any]]:
    """Returns (dotted field, old, new) for each difference that a resume may not make."""
    return [
        (field, before, after)
        for field, before, after in _differences("", old.model_dump(), new.model_dump())
        if not any(field == free or field.startswith(free + ".") for free in RESUME_MAY_CHANGE)
    ]


def _differences(prefix: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in old
            for difference in _differences(f"{prefix}.{key}".lstrip("."), old[key], new[key])
        ]
    return [] if old == new else [(prefix, old, new)]
