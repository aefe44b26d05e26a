"""What `precompute` is asked: to record the teacher of a run spec over its data."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import RelativePath


class _Asked(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RecordOptions(_Asked):
    """How to record, beyond what the run's spec says."""

    eight_bit_hidden: Annotated[bool, Field(strict=True)] = False
    """Store hidden states in 8 bits: half the bytes, not exact. With `representation: hidden`."""
    log_prob_bits: Literal[16, 8] = 16
    """Bits of a log-probability. With `representation: top_k` and `sampled`."""
    draw_sets: Annotated[int, Field(ge=1, le=256, strict=True)] = 1
    """Sets of draws to record, used in turn, one an epoch. With `representation: sampled`."""


class PrecomputeRequest(_Asked):
    """Records the teacher of a run spec over its training and validation data."""

    spec: RunSpec
    """Its `teacher`, `data` and `student` say what to ask about what; see run-spec.md."""
    output: RelativePath
    """Name of the record to make, under the data root."""
    options: RecordOptions = RecordOptions()

    def to_record(self) -> RunSpec:
        """Returns the spec without what only a run does with the answers: to keep them."""
        teacher = self.spec.teacher
        if teacher is None or teacher.record_to is None:
            return self.spec
        without = teacher.model_copy(update={"record_to": None})
        return self.spec.model_copy(update={"teacher": without})
