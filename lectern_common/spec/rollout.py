"""The section `rollout` of a RunSpec: rows that the student writes itself, and learns from.

Agarwal et al. 2024, "On-Policy Distillation of Language Models: Learning from Self-Generated
Mistakes" (GKD): `fraction` is its lambda.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import RelativePath, Section

if TYPE_CHECKING:
    from lectern_common.spec.run_spec import RunSpec

# With these a teacher says what every token's probability is, whatever the student writes.
_WHOLE = ("hidden", "dense")


class RolloutSection(Section):
    """On-policy rows: the student continues prompts, and the teacher scores each of its tokens.

    Written rows have no cross entropy: only their completions count, with the distillation term.
    """

    fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of a step's rows that the student writes, on average (exactly all of them with 1, which
    needs objective.alpha 0). Which ones is a pure function of (seed, step)."""
    prompts: RelativePath | None = None
    """Prompt set under the data root (`lectern data prepare --prompts`). Exactly one of this and
    prompt_tokens."""
    prompt_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Use the first tokens of each row of `data` as a prompt: so many."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    """Longest completion, in tokens; a longer one is cut, and trains without an end token."""
    temperature: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Of the student's sampling, independent of objective.temperature; 0 takes the likeliest token.
    """
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of likeliest tokens with this probability; 1: from all."""
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Sample from this many likeliest tokens; 0: from all."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    """Completions of each prompt, which are rows of the same step; must divide
    batch.sequences_per_step."""
    stale_steps: Annotated[int, Field(ge=0, le=1)] = 0
    """0: a step writes with the weights that it changes. 1: its rows were written one step before,
    so that the teacher scores them while the student learns."""
    engine: Literal["local"] = "local"
    """What generates: the student itself, in the trainer."""
    keep: bool = True
    """Keep some of what the student writes in the run's rollouts.jsonl, for people to read."""

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> Self:
        if (self.prompts is None) == (self.prompt_tokens is None):
            raise ValueError(
                "set exactly one of prompts (a prompt set) and prompt_tokens (the beginnings of "
                "the rows of data)"
            )
        return self

    @model_validator(mode="after")
    def _greedy_needs_no_sampling(self) -> Self:
        if self.temperature > 0:
            return self
        for name in ("top_p", "top_k"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with temperature 0; remove it")
        if self.samples_per_prompt > 1:
            raise ValueError(
                "with temperature 0 all completions of a prompt are the same; set "
                "samples_per_prompt 1, or a temperature above 0"
            )
        return self


def require_rollouts_fit(spec: "RunSpec") -> None:
    """Raises Misfit unless the run's other settings suit rows that the student writes."""
    rollout, teacher, objective = spec.rollout, spec.teacher, spec.objective
    if rollout is None:
        return
    if teacher is None:
        raise Misfit(
            "rollout needs a teacher, which scores what the student writes; remove it, or lower "
            "objective.alpha",
            "rollout",
            "objective.alpha",
        )
    if rollout.fraction == 1 and objective.alpha > 0:
        raise Misfit(
            f"rollout.fraction 1 leaves no rows of data, on which alone objective.alpha "
            f"{objective.alpha:g} weighs the cross entropy; set alpha 0, or lower fraction",
            "rollout.fraction",
            "objective.alpha",
        )
    for name in ("record", "record_to"):
        if getattr(teacher, name) is not None:
            raise Misfit(
                f"teacher.{name} has no use with rollout: a record answers only about rows that "
                "are known before, and nobody knows what a student will write; remove one of the "
                "two",
                f"teacher.{name}",
                "rollout",
            )
    if teacher.representation not in _WHOLE and objective.divergence != "forward_kl":
        raise Misfit(
            f"with rollout, objective.divergence {objective.divergence} needs the teacher's "
            "probability of every token that the student may write, but teacher.representation "
            f"{teacher.representation} tells only those that the teacher likes; set representation "
            "hidden, or divergence forward_kl",
            "objective.divergence",
            "teacher.representation",
        )
    rows, samples = spec.batch.sequences_per_step, rollout.samples_per_prompt
    if rows % samples:
        raise Misfit(
            f"rollout.samples_per_prompt {samples} must divide batch.sequences_per_step {rows}, "
            "which counts the completions of all prompts",
            "rollout.samples_per_prompt",
            "batch.sequences_per_step",
        )
    if rollout.prompt_tokens is not None and rollout.prompt_tokens > spec.data.seq_len:
        raise Misfit(
            f"rollout.prompt_tokens {rollout.prompt_tokens} exceeds data.seq_len "
            f"{spec.data.seq_len}: a row has no more tokens; lower it, or raise seq_len",
            "rollout.prompt_tokens",
            "data.seq_len",
        )
