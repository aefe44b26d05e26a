"""The section `evaluation` of a RunSpec: what is measured during training, and what follows it."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import Section
from lectern_common.spec.suites import (
    AGREEMENT,
    CODE,
    HARNESS,
    PERPLEXITY,
    VALIDATION_LOSS,
    CodeOptions,
    HarnessOptions,
    Suites,
    harness_tasks,
)

if TYPE_CHECKING:
    from lectern_common.spec.run_spec import RunSpec

Prompt = Annotated[str, Field(min_length=1, max_length=4096)]
MetricName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w./@-]+$")]

# Metrics, with what a run needs in order to measure them.
_OF_TEACHER = {"val/kl": "lowest", "val/top1_agreement": "highest"}
_OF_SUITE = {
    "val/bits_per_byte": (PERPLEXITY, "lowest"),
    "val/calibration_error": (AGREEMENT, "lowest"),
}
OF_CODE = "code/pass_at_"
OF_HARNESS = "lm-eval/"


class EvaluationSpec(Section):
    """Evaluation on the validation set: before the first step, every `every_steps`, after the last.

    Measures cross entropy and, if the run distils, the KL to the teacher and how often they agree;
    and what `suites` names.
    """

    every_steps: PositiveInt = 100
    """Steps between evaluations."""
    max_sequences: PositiveInt = 200
    """Most validation rows to evaluate; always the same ones."""
    suites: Suites = Field([], max_length=8)
    """What else to measure: perplexity (val/bits_per_byte), agreement (val/calibration_error), code
    (code/pass_at_K), lm-eval:TASK (lm-eval/TASK/METRIC); see docs/evaluate.md."""
    code: CodeOptions | None = None
    """How the suite code is run."""
    lm_eval: HarnessOptions | None = None
    """How tasks of lm-eval are run."""
    metric: MetricName = VALIDATION_LOSS
    """What patience and checkpoint.keep_best follow: loss/val, val/kl, val/top1_agreement, or a
    metric of a suite."""
    metric_goal: Literal["lowest", "highest"] | None = None
    """Which value of `metric` is the best; null: what is known of it. Required for lm-eval."""
    patience: PositiveInt | None = None
    """Stop early after this many evaluations in a row without a new best value of `metric`, and
    export the weights with the best, even if all steps are made. null: export the last weights."""
    prompts: list[Prompt] = Field([], max_length=16)
    """Texts that student and teacher continue at every evaluation, for people to read."""
    prompt_tokens: Annotated[int, Field(ge=1, le=512)] | None = None
    """Tokens to generate per prompt, greedily (48)."""

    @model_validator(mode="after")
    def _prompt_tokens_belong_to_prompts(self) -> Self:
        if self.prompts and self.prompt_tokens is None:
            object.__setattr__(self, "prompt_tokens", 48)
        if not self.prompts and self.prompt_tokens is not None:
            raise ValueError("prompt_tokens has no effect without prompts")
        return self

    @model_validator(mode="after")
    def _options_belong_to_suites(self) -> Self:
        for name, used, needs, default in (
            ("code", CODE in self.suites, "code", CodeOptions),
            ("lm_eval", bool(self.tasks), "lm-eval:TASK", HarnessOptions),
        ):
            if used and getattr(self, name) is None:
                object.__setattr__(self, name, default())
            if not used and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect without the suite {needs}")
        return self

    @model_validator(mode="after")
    def _the_goal_is_known(self) -> Self:
        goal = _goal_of(self.metric)
        if goal is None and self.metric_goal is None:
            raise ValueError(
                f"metric_goal is required with metric {self.metric}: set lowest or highest"
            )
        if goal is not None and self.metric_goal not in (None, goal):
            raise ValueError(f"metric_goal must be {goal} with metric {self.metric}")
        if self.metric_goal is None and self.metric != VALIDATION_LOSS:
            object.__setattr__(self, "metric_goal", goal)
        return self

    @model_validator(mode="after")
    def _the_metric_is_of_a_suite(self) -> Self:
        needed = None
        if self.metric in _OF_SUITE:
            needed = _OF_SUITE[self.metric][0]
            is_there = needed in self.suites
        elif self.metric.startswith(OF_CODE):
            needed = f"code, with {self.metric.removeprefix(OF_CODE)} in code.k"
            known = () if self.code is None else self.code.k
            is_there = self.metric.removeprefix(OF_CODE) in map(str, known)
        elif self.metric.startswith(OF_HARNESS):
            task = self.metric.removeprefix(OF_HARNESS).partition("/")[0]
            needed, is_there = HARNESS + task, task in self.tasks
        elif self.metric == VALIDATION_LOSS or self.metric in _OF_TEACHER:
            is_there = True
        else:
            names = (VALIDATION_LOSS, *_OF_TEACHER, *_OF_SUITE, f"{OF_CODE}K")
            raise ValueError(
                f"metric must be one of {', '.join(names)} or {OF_HARNESS}TASK/METRIC, got "
                f"{self.metric}"
            )
        if not is_there:
            raise ValueError(f"metric {self.metric} needs the suite {needed}")
        return self

    @property
    def tasks(self) -> list[str]:
        """The tasks of lm-evaluation-harness."""
        return harness_tasks(self.suites)

    @property
    def is_highest(self) -> bool:
        """True if the highest value of the metric is the best."""
        return (self.metric_goal or _goal_of(self.metric)) == "highest"

    @property
    def generates(self) -> bool:
        """True if a suite needs more than the validation rows."""
        return CODE in self.suites or bool(self.tasks)


def _goal_of(metric: str) -> str | None:
    """Returns which value of a metric is the best; None if that is not known."""
    if metric.startswith(OF_CODE):
        return "highest"
    if metric.startswith(OF_HARNESS):
        return None
    known = {**_OF_TEACHER, **{name: goal for name, (_, goal) in _OF_SUITE.items()}}
    return known.get(metric, "lowest")


def require_measured(spec: "RunSpec") -> None:
    """Raises Misfit unless the run can measure what its evaluation names."""
    evaluation = spec.evaluation
    if not spec.distils:
        if AGREEMENT in evaluation.suites:
            raise Misfit(
                "evaluation.suites agreement compares with the teacher, which the run does not "
                "have; remove it",
                "evaluation.suites",
                "teacher",
            )
        if evaluation.metric in _OF_TEACHER:
            raise Misfit(
                f"evaluation.metric {evaluation.metric} compares with the teacher, which the run "
                "does not have; set loss/val",
                "evaluation.metric",
                "teacher",
            )
    if evaluation.generates and spec.device.count > 1:
        raise Misfit(
            "evaluation.suites code and lm-eval need the whole student on one device, but "
            f"device.count is {spec.device.count}; evaluate the run afterwards with `lectern "
            "evaluate`",
            "evaluation.suites",
            "device.count",
        )
