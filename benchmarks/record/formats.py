"""Bytes a token, KL and gradient error of each format of a record, at the shape of a 7B teacher.

The teacher has that shape's head, 3,584 wide, over 32,768 and 151,936 ids, in bfloat16, on a body
of one thin layer with random weights; its final norm makes the logits spread as a trained model's
do (about 2 nats of entropy). The figures are those that `lectern precompute` prints (quality.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.trainer.loops import RandomBatches
from lectern_common.teacher.record.manifest import RecordFormat
from lectern_models.logits.output_head import OutputHead
from student_trainer.record.facts import needs_head
from student_trainer.record.precompute import PlannedPart
from student_trainer.record.quality import quality_of
from student_trainer.targets import HiddenTargets
from student_trainer.teacher.local import InProcessTeacher
from student_trainer.teacher.recorded_rows import RowMeaning

FORMATS: dict[str, dict[str, Any]] = {
    "hidden": {"name": "hidden"},
    "hidden_fp8": {"name": "hidden_fp8"},
    "top_k 64": {"name": "top_k", "top_k": 64, "log_prob_bits": 16},
    "top_k 64, 8 bits": {"name": "top_k", "top_k": 64, "log_prob_bits": 8},
    "sampled 50": {"name": "sampled", "num_draws": 50, "log_prob_bits": 16},
}
GOALS: dict[str, dict[str, str]] = {
    "hidden_fp8": {"bytes_per_token": "<= 3600"},
    "top_k 64": {"bytes_per_token": "<= 300"},
    "top_k 64, 8 bits": {"bytes_per_token": "<= 300"},
    "sampled 50": {"bytes_per_distinct_id": "<= 5.5"},
}
_INITIAL_RANGE = 0.02


@dataclass(frozen=True)
class Shape:
    """A teacher's vocabulary, width, and the standard deviation of its logits."""

    vocab_size: int
    hidden_size: int
    spread: float


SHAPES = (Shape(32_768, 3_584, 4.1), Shape(151_936, 3_584, 4.4))


def measure(shapes: Sequence[Shape] = SHAPES) -> Iterator[dict[str, Any]]:
    """Yields one row for each vocabulary and format."""
    disable_progress_bar()
    for shape in shapes:
        teacher = InProcessTeacher(_model(shape))
        for name, fields in FORMATS.items():
            yield _row(shape, name, RecordFormat(**fields), teacher)


def _row(shape: Shape, name: str, form: RecordFormat, teacher: InProcessTeacher) -> dict[str, Any]:
    batches = RandomBatches(shape.vocab_size, 1, 64)
    is_hidden = form.representation.format.needs_head
    part = PlannedPart(
        "training",
        form,
        None if is_hidden else 1.0,
        0 if form.name == "sampled" else None,
        lambda: [batches.batch_at(0)],
        num_batches=1,
        num_sequences=1,
        num_positions=64,
    )
    head = _head(teacher, batches) if needs_head(part) else None
    meaning = RowMeaning(shape.vocab_size, shape.hidden_size, "bfloat16", 1.0, head)
    quality = quality_of(part, teacher, meaning)
    row = {
        "format": name,
        "vocab_size": shape.vocab_size,
        "bytes_per_token": quality.bytes_per_token,
        "kl_nats": quality.kl,
        "gradient_error": quality.gradient_error,
        "goals": GOALS.get(name, {}),
    }
    if quality.distinct_ids is not None:
        row["distinct_ids"] = quality.distinct_ids
        row["bytes_per_distinct_id"] = quality.bytes_per_token / quality.distinct_ids
    return row


def _head(teacher: InProcessTeacher, batches: RandomBatches) -> OutputHead:
    sequences, positions = zip(*batches.batch_at(0).sequences(), strict=True)
    asked = RecordFormat(name="hidden").representation
    targets = teacher.score(sequences, positions, asked, 1.0)
    if not isinstance(targets, HiddenTargets):
        raise TypeError("expected hidden states")
    return targets.head


def _model(shape: Shape) -> Any:
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=_INITIAL_RANGE,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, trust_remote_code=False
    )
    with torch.no_grad():
        model.model.norm.weight.fill_(shape.spread / (_INITIAL_RANGE * shape.hidden_size**0.5))
    return model
