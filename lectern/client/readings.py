"""What a run has logged, as a control plane reports it: metrics and samples."""

from dataclasses import dataclass, fields
from typing import Any

from lectern.client.problems import unknown_form


@dataclass(frozen=True)
class Sample:
    """What a run's student wrote after a prompt at an evaluation.

    Attributes:
        step: the evaluation's step.
        prompt: as in the spec.
        student: what the student wrote.
        teacher: what the teacher wrote; None if the run has no teacher, or none has answered yet.
    """

    step: int
    prompt: str
    student: str
    teacher: str | None

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Sample":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes a sample."""
        try:
            return cls(data["step"], data["prompt"], data["student"], data["teacher"])
        except (KeyError, TypeError) as error:
            raise unknown_form("a sample", error) from None


@dataclass(frozen=True)
class MetricsBatch:
    """Metric records of a run, in step order.

    Attributes:
        cursor: where the next records start.
        rewound: the run went back to a checkpoint; these records start over from its first step.
        more: further records can be read right away.
    """

    records: list[dict[str, Any]]
    cursor: str
    rewound: bool
    more: bool


@dataclass(frozen=True)
class Buckets:
    """One metric as buckets of consecutive lines: lists with one entry a bucket.

    Attributes:
        step: the last step of each bucket.
        first_step: its first.
        mean, min, max: of its finite values; None without one.
        count: how many values were finite.
        non_finite: how many were not.
        tokens: trained on so far, at the last step; None if the trainer did not write it.
        seconds: of training so far, over all attempts, at the last step; or None.
        time: Unix seconds at the last step; or None.
    """

    step: list[int]
    first_step: list[int]
    mean: list[float | None]
    min: list[float | None]
    max: list[float | None]
    count: list[int]
    non_finite: list[int]
    tokens: list[int | None]
    seconds: list[float | None]
    time: list[float | None]

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Buckets":
        """Parses an answer. Raises ControlPlaneUnavailable unless it describes buckets."""
        try:
            return cls(**{entry.name: data[entry.name] for entry in fields(cls)})
        except (KeyError, TypeError) as error:
            raise unknown_form("a series", error) from None
