"""What to record for a run: which parts, in which format, and which rows each covers.

A run asks its teacher about its training rows at its own temperature, and about its validation rows
at temperature 1. Hidden states hold for both. Log-probabilities do not, so they are two parts,
unless the run's temperature is 1. Draws do not tell the likeliest id, which a third part holds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from lectern_common.errors import InvalidSpec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.stages.precompute import RecordOptions
from lectern_common.teacher.record.manifest import RecordFormat, RecordFormatName
from student_trainer.batch import Batch
from student_trainer.data.rows import Rows, in_order
from student_trainer.data.select import Data
from student_trainer.record.precompute import PlannedPart


def format_of(teacher: TeacherSpec, options: RecordOptions) -> RecordFormat:
    """Returns the format of the training rows.

    Raises:
        InvalidSpec: there is no record of the spec's representation, or an option has no effect.
    """
    kind = teacher.representation
    if kind == "dense":
        why = (
            "dense is not recorded: it takes 4 bytes for each id of the vocabulary and token; "
            "hidden holds the same in a few kilobytes"
        )
        raise InvalidSpec([("teacher.representation", why)])
    if options.eight_bit_hidden and kind != "hidden":
        raise InvalidSpec([("teacher.representation", f"{kind} has no hidden states to store")])
    if options.log_prob_bits != 16 and kind == "hidden":
        raise InvalidSpec([("teacher.representation", "hidden has no log-probabilities to store")])
    if options.draw_sets != 1 and kind != "sampled":
        raise InvalidSpec([("teacher.representation", f"{kind} has no draws to make more of")])
    name: RecordFormatName = "hidden_fp8" if options.eight_bit_hidden else kind
    return RecordFormat.model_validate(
        {
            "name": name,
            "top_k": teacher.top_k,
            "num_draws": teacher.num_draws,
            "log_prob_bits": None if kind == "hidden" else options.log_prob_bits,
        }
    )


def planned_parts(spec: RunSpec, data: Data, options: RecordOptions) -> list[PlannedPart]:
    """Returns what to record for a run of `spec` with this data.

    Raises:
        InvalidSpec: the run has no teacher, or its student writes rows; or see `format_of`.
    """
    if spec.rollout is not None:
        why = (
            "has no use in a record, which answers only about rows that are known before; remove it"
        )
        raise InvalidSpec([("rollout", why)])
    if spec.teacher is None:
        why = "is required: there is nothing to record for a run with objective.alpha 1"
        raise InvalidSpec([("teacher", why)])
    form = format_of(spec.teacher, options)

    training = _Covered([data.training], spec.micro_batch)
    validation = _Covered([data.validation], spec.micro_batch)
    both = _Covered([data.training, data.validation], spec.micro_batch)

    def planned(
        name: str,
        rows: _Covered,
        form: RecordFormat = form,
        temperature: float | None = None,
        draws: int | None = None,
    ) -> PlannedPart:
        return PlannedPart(
            name,
            form,
            temperature,
            draws,
            rows.batches,
            rows.num_batches,
            rows.num_sequences,
            rows.num_positions,
        )

    if form.representation.format.needs_head:
        return [planned("training", both)]
    temperature = spec.objective.temperature
    is_one = temperature == 1.0
    if form.name == "top_k":
        parts = [planned("training", both if is_one else training, temperature=temperature)]
        return parts if is_one else [*parts, planned("validation", validation, temperature=1.0)]
    parts = []
    for number in range(options.draw_sets):
        rows = both if is_one and number == 0 else training
        parts.append(planned(f"training-{number}", rows, temperature=temperature, draws=number))
    if not is_one:
        parts.append(planned("validation", validation, temperature=1.0, draws=0))
    likeliest = RecordFormat(name="top_k", top_k=1, log_prob_bits=16)
    return [*parts, planned("likeliest", validation, likeliest, 1.0)]


@dataclass(frozen=True)
class _Covered:
    """The rows that a part covers, `sequences` of them at a time."""

    rows: list[Rows]
    sequences: int

    def batches(self) -> Iterator[Batch]:
        return chain.from_iterable(in_order(rows, self.sequences) for rows in self.rows)

    @property
    def num_batches(self) -> int:
        return sum(-(-len(rows) // self.sequences) for rows in self.rows)

    @property
    def num_sequences(self) -> int:
        return sum(len(rows) for rows in self.rows)

    @cached_property
    def num_positions(self) -> int:
        counted = (rows.counted(index) for rows in self.rows for index in range(len(rows)))
        seq_len = self.rows[0].seq_len
        return sum(seq_len if of is None else int(np.count_nonzero(of)) for of in counted)
