"""What a run has written: metrics, series for charts, samples, rollouts and checkpoints."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from control_plane.views.view import View
from lectern_common.json_lines import MAX_COUNT

TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]


class MetricsView(View):
    """Metric records in the order of their steps; null means that a number was not finite."""

    run_id: str
    metrics: list[dict[str, Any]]
    cursor: str
    """Pass as `cursor`, or to a stream, to continue after the last record."""
    rewound: bool
    """The trainer went back to a checkpoint: drop earlier records; these begin at the start."""
    more: bool
    """More records can be read now."""


class BucketsView(View):
    """A metric as buckets of consecutive lines, each list with one entry a bucket.

    mean, min and max are null if no value of the bucket was finite; tokens, seconds and time are
    null if the trainer did not write them.
    """

    step: list[int]
    """The last step."""
    first_step: list[int]
    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]
    count: list[int]
    """Finite values."""
    non_finite: list[int]
    """Values that were not finite."""
    tokens: list[int | None]
    """Trained on so far, at the last step."""
    seconds: list[float | None]
    """Of training so far, over all attempts, at the last step."""
    time: list[float | None]
    """Unix seconds, at the last step."""


class MarkView(View):
    """What happened at a step."""

    kind: Literal["checkpoint", "restart", "non_finite"]
    step: int
    time: float | None


class SeriesView(View):
    """What a chart of a run shows."""

    run_id: str
    revision: str
    """Changes whenever the metrics do."""
    cursor: str
    """`/runs/ID/events?after=0-CURSOR` streams what comes after this answer."""
    last_step: int | None
    keys: list[str]
    """Every metric ever logged, whether asked for or not."""
    keys_left_out: int
    """Metrics beyond the first 512, or with names that are too long."""
    unknown_keys: list[str]
    """Asked for, but not logged so far: misspelt, or still to come. Their series are empty."""
    series: dict[str, BucketsView]
    marks: list[MarkView]
    """In step order, at most 200 of each kind."""


class SampleView(View):
    """What the student generated for a prompt at one evaluation, and what its teacher did."""

    step: int
    prompt: str
    student: str
    teacher: str | None
    """The same at every step; null if the run has no teacher, and until it has answered."""


class SamplesView(View):
    """Samples in the order of their steps, newest last."""

    run_id: str
    samples: list[SampleView]


class RolloutView(View):
    """What the student wrote after a prompt, and how far the teacher is from each token of it."""

    step: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    """The step that learnt it, as in the metrics."""
    row: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    """Its place in the step."""
    sample: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    """Its number among those after the same prompt."""
    prompt: str | None
    """Null if the run has no tokenizer, as `text` and `tokens` are then."""
    prompt_ids: list[TokenId]
    text: str | None
    """Without the end token."""
    ids: list[TokenId]
    """Of the text."""
    end: TokenId | None
    """The token that ended it; null if it was cut at rollout.max_new_tokens."""
    tokens: list[str] | None
    """What each learnt token adds to the text, the end token last."""
    kl: list[float | None]
    """The divergence from the teacher at each of these tokens, in nats; null if not finite."""
    mean_kl: float | None

    @model_validator(mode="after")
    def _each_token_is_judged(self) -> Self:
        learnt = len(self.ids) + (self.end is not None)
        if len(self.kl) != learnt or (self.tokens is not None and len(self.tokens) != learnt):
            raise ValueError("tokens, kl and ids do not go together")
        return self


class RolloutsView(View):
    """Rollouts in the order of their steps, newest last."""

    run_id: str
    rollouts: list[RolloutView]
    more: bool
    """There are earlier ones: ask with `before_step`, the first step of these."""


class CheckpointView(View):
    """One checkpoint on disk. It is verified when a run resumes from it."""

    step: int
    completed_at: float
    bytes: int
    validation_loss: float | None
    """Measured at its step; null if none was."""


class CheckpointsView(View):
    """The complete checkpoints of a run, oldest first."""

    run_id: str
    checkpoints: list[CheckpointView]
