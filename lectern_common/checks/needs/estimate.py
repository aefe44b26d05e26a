"""Estimates a run before it starts: tokens, bytes over the wire, hours, bytes on disk.

Computed from what preflight.py found. None means not known before the first step.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from lectern_common.checks.needs.memory import ADAMW_BYTES, FLOAT32_BYTES, Computation, ModelShape
from lectern_common.checks.needs.rollouts import longest_prompt
from lectern_common.checks.rules import CUT, left_out_words
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.prompt_sets import PromptFacts
from lectern_common.wire.formats import Widths
from lectern_common.words import counted
from protos import teacher_pb2


@dataclass(frozen=True)
class RowCounts:
    """Rows of the training set, and the validation rows that are evaluated.

    `filled` is the share of their positions that holds tokens; the rest is padding.
    """

    training: int
    validation: int
    filled: float = 1.0


@dataclass(frozen=True)
class DataCounts:
    """How much of a run's data is trained on and held out, and what is left out and why.

    Attributes:
        of: "row" or "chat": what is held out and left out.
        total: of data.path; all but the first four and `held_out_rows` are about it.
        training: used for training, in `training_rows`.
        held_out: for validation, in `held_out_rows`, which may be of data.validation_path; before
            those are left out that the training set has too.
        unknown: left out, because the student lacks an id of them.
        cut, dropped, unlabelled: of the others, as in FittedChats; 0 for text.
        padding: share of the training rows' positions that hold no token.
        labels: that the training rows teach, once; None for text.
        labels_of_positions: their share of the positions of the training rows.
        labels_lost: share of the learnt labels of data.path that is in no row of either set.
    """

    of: str
    total: int
    training: int
    training_rows: int
    held_out: int
    held_out_rows: int
    unknown: int
    cut: int = 0
    dropped: int = 0
    unlabelled: int = 0
    padding: float = 0.0
    labels: int | None = None
    labels_of_positions: float = 1.0
    labels_lost: float = 0.0

    def left_out(self) -> dict[str, int]:
        """Returns how many are left out, by the reason in words; only reasons that occur."""
        words = left_out_words(self.unknown, self.dropped, self.unlabelled)
        return {why: count for why, count in words.items() if count}

    def used(self) -> str:
        """Returns "of 196 to train on, in 140 rows; 20 held out, in 8 rows"."""
        rows, held = counted(self.training_rows, "row"), counted(self.held_out_rows, "row")
        return f"of {self.total:,} to train on, in {rows}; {self.held_out:,} held out, in {held}"

    def __str__(self) -> str:
        parts = [f"{self.of}s: {self.training:,} {self.used()}"]
        if self.cut:
            parts.append(f"{self.cut:,} {CUT}")
        parts += [f"{count:,} left out: {why}" for why, count in self.left_out().items()]
        return "; ".join(parts)

    def as_json(self) -> dict[str, int | float | None]:
        """Returns the counts of chats, named as in the event `assembled`."""
        return {
            "chats": self.total,
            "training_chats": self.training,
            "training_rows": self.training_rows,
            "held_out": self.held_out,
            "held_out_rows": self.held_out_rows,
            "chats_cut": self.cut,
            "chats_dropped": self.dropped,
            "chats_without_labels": self.unlabelled,
            "chats_with_unknown_ids": self.unknown,
            "padding": self.padding,
            "labels": self.labels,
            "labels_of_positions": self.labels_of_positions,
            "labels_lost": self.labels_lost,
        }


@dataclass(frozen=True)
class Wire:
    """Bytes that come from the teacher.

    Attributes:
        bytes_per_token: per position of an answer; `at_most` if it may be less.
        bytes_per_step: of the answers for one step, if every position is asked; of rows that the
            student writes, every one of their longest completions.
        head_bytes: of the output head, fetched once per machine; 0 except with `hidden`.
    """

    bytes_per_token: int
    bytes_per_step: int
    at_most: bool
    head_bytes: int


@dataclass(frozen=True)
class RunEstimate:
    """What a run will need.

    Attributes:
        first_step: the step to resume from; everything below counts only the steps after it.
        tokens_per_step: in all rows of a step, without padding; of rows that the student writes,
            the most. `tokens` counts all steps.
        epochs: how often each training row is seen; None for synthetic data, and if the student
            writes all rows.
        wire: None without a teacher server, or if it or the student's vocabulary is unknown.
        teacher_tokens: tokens that the teacher scores, evaluations included; 0 from a record.
        teacher_hours: at the speed that the teacher has measured, without other clients and
            without its cache; cached rows cost nothing.
        checkpoint_bytes: of one checkpoint; `checkpoints` are on disk at once, including the one
            being written.
        disk_bytes: of these checkpoints and the export.
    """

    first_step: int
    tokens_per_step: int
    tokens: int
    epochs: float | None
    wire: Wire | None
    teacher_tokens: int
    teacher_hours: float | None
    checkpoint_bytes: int | None
    checkpoints: int
    disk_bytes: int | None

    def numbers(self) -> dict[str, Any]:
        """Returns the estimate as JSON values."""
        return asdict(self)


def estimate_run(
    spec: RunSpec,
    rows: RowCounts | None,
    model: teacher_pb2.Model | None,
    shape: ModelShape | None,
    vocab_size: int | None,
    first_step: int = 0,
    prompts: PromptFacts | None = None,
) -> RunEstimate:
    """Returns the estimate, with None for what is unknown.

    Args:
        spec: the run's.
        rows: None for synthetic data.
        model: the teacher; None without one, or if it is unreachable.
        shape: the student's; None if unknown.
        vocab_size: the student's; None if unknown.
        first_step: the step to resume from.
        prompts: what is known of the run's prompt set.
    """
    rows_per_step, last = spec.batch.sequences_per_step, spec.schedule.steps
    steps = max(0, last - first_step)
    tokens_per_row = spec.data.seq_len * (1.0 if rows is None else rows.filled)
    fraction = 0.0 if spec.rollout is None else spec.rollout.fraction
    asked = tokens_per_step = rows_per_step * (1 - fraction) * tokens_per_row
    if spec.rollout is not None:
        written, longest = rows_per_step * fraction, longest_prompt(spec, prompts) or 0
        tokens_per_step += written * (longest + spec.rollout.max_new_tokens)
        asked += written * spec.rollout.max_new_tokens
    tokens_per_step = round(tokens_per_step)
    teacher_tokens = 0
    if spec.asks_server:
        validation = spec.evaluation.max_sequences if rows is None else rows.validation
        every = spec.evaluation.every_steps
        evaluations = (first_step == 0) + _times(first_step, last, every)
        # Of several sources, those that a server scores; each holds out rows of its own.
        share, num_asked = _asked_share(spec)
        teacher_tokens = round(share * steps * tokens_per_step)
        teacher_tokens += round(evaluations * num_asked * validation * tokens_per_row)
    speed = 0.0 if model is None else model.measured_tokens_per_second
    checkpoint = _checkpoint_bytes(shape)
    checkpoints = min(
        spec.checkpoint.keep_last + spec.checkpoint.keep_best + 1,
        _times(first_step, last, spec.checkpoint.every_steps),
    )
    return RunEstimate(
        first_step=first_step,
        tokens_per_step=tokens_per_step,
        tokens=steps * tokens_per_step,
        epochs=steps * rows_per_step / rows.training if rows and spec.trains_on_data else None,
        wire=_wire(spec, model, vocab_size, round(asked)),
        teacher_tokens=teacher_tokens,
        teacher_hours=teacher_tokens / speed / 3600 if spec.asks_server and speed > 0 else None,
        checkpoint_bytes=checkpoint,
        checkpoints=checkpoints,
        disk_bytes=(
            None
            if shape is None or checkpoint is None
            else checkpoints * checkpoint + FLOAT32_BYTES * shape.num_parameters
        ),
    )


def _asked_share(spec: RunSpec) -> tuple[float, int]:
    """Returns the share of the rows that a server scores, and of how many datasets they are."""
    sources, teachers = spec.data.sources, spec.teachers or {}
    if sources is None:
        return 1, 1
    asked = [
        source.weight
        for source in sources
        if source.teacher is not None and teachers[source.teacher].record is None
    ]
    return sum(asked) / sum(source.weight for source in sources), len(asked)


def bytes_to_come(
    spec: RunSpec,
    step: int,
    checkpoints: int,
    checkpoint_bytes: int | None,
    num_parameters: int | None,
) -> int | None:
    """Returns what a run that goes on from `step` still adds to the disk, its export included.

    Older checkpoints go as new ones come, so it adds only those up to the number that it keeps, and
    always room for the one being written.

    Args:
        spec: the run's.
        step: steps made.
        checkpoints: on disk now.
        checkpoint_bytes: of one, measured; None means by `num_parameters`.
        num_parameters: of the weights that it starts from; None if unknown.

    Returns:
        None if neither is known.
    """
    all_weights = spec.student.lora is None and spec.student.keep_every_nth_layer is None
    if checkpoint_bytes is None:
        if num_parameters is None or not all_weights:
            return None
        checkpoint_bytes = (FLOAT32_BYTES + ADAMW_BYTES) * num_parameters
    export_bytes = checkpoint_bytes * FLOAT32_BYTES // (FLOAT32_BYTES + ADAMW_BYTES)
    if spec.student.lora is not None and num_parameters is not None:
        export_bytes = FLOAT32_BYTES * num_parameters  # adapters are merged into it
    due = _times(step, spec.schedule.steps, spec.checkpoint.every_steps)
    kept = spec.checkpoint.keep_last + spec.checkpoint.keep_best + 1
    return min(due, max(1, kept - checkpoints)) * checkpoint_bytes + export_bytes


def computation_of(
    spec: RunSpec,
    model: teacher_pb2.Model | None,
    vocab_size: int,
    chunk_tokens: int,
    *,
    on_cuda: bool,
    longest_prompt: int = 0,
) -> Computation:
    """Returns how one device computes a micro-batch of the run.

    Args:
        spec: the run's.
        model: its teacher; None without one.
        vocab_size: the student's.
        chunk_tokens: the value that `objective.chunk_tokens: auto` has on the device.
        on_cuda: the device's kind.
        longest_prompt: that the student continues, in tokens; 0 without rollouts.
    """
    row_tokens = asked_tokens = spec.data.seq_len if spec.trains_on_data else 0
    if spec.rollout is not None:
        row_tokens = max(row_tokens, longest_prompt + spec.rollout.max_new_tokens)
        asked_tokens = max(asked_tokens, spec.rollout.max_new_tokens)
    narrow = spec.student.dtype == "bfloat16" or (spec.student.dtype == "auto" and on_cuda)
    chosen = spec.objective.chunk_tokens
    head_bytes = answer_bytes = steps_ahead = 0
    if spec.teacher is not None and model is not None:
        asked, widths = spec.teacher.asks_for, _asked_widths(model, vocab_size)
        if asked.format.needs_head:
            # On the CPU the head is converted to float32 once, for all products.
            held = widths if on_cuda else replace(widths, hidden_dtype="float32")
            head_bytes = held.head_bytes(has_bias=model.head_transform.has_bias)
        answer_bytes = asked.row_bytes(widths) * spec.rows_per_device * asked_tokens
        steps_ahead = spec.teacher.prefetch_steps
    return Computation(
        sequences=spec.micro_batch,
        seq_len=row_tokens,
        compute_bytes=2 if narrow else FLOAT32_BYTES,
        checkpointing=spec.device.activation_checkpointing,
        chunk_tokens=chunk_tokens if chosen == "auto" else chosen,
        devices=spec.device.count,
        head_bytes=head_bytes,
        answer_bytes=answer_bytes,
        steps_ahead=steps_ahead,
    )


def _times(first_step: int, last: int, every: int) -> int:
    """Returns how often something happens that is due every `every` steps and after the last."""
    return max(0, -(-last // every) - first_step // every)


def _wire(
    spec: RunSpec, model: teacher_pb2.Model | None, vocab_size: int | None, tokens_per_step: int
) -> Wire | None:
    if spec.teacher is None or not spec.asks_server or model is None or vocab_size is None:
        return None
    asked, widths = spec.teacher.asks_for, _asked_widths(model, vocab_size)
    position_bytes = asked.row_bytes(widths)
    head = 0
    if asked.format.needs_head:
        head = widths.head_bytes(has_bias=model.head_transform.has_bias)
    return Wire(
        bytes_per_token=position_bytes,
        bytes_per_step=position_bytes * tokens_per_step,
        at_most=asked.format.rows_differ or spec.rollout is not None,
        head_bytes=head,
    )


def _asked_widths(model: teacher_pb2.Model, vocab_size: int) -> Widths:
    """Returns the widths of an answer; a narrower teacher answers only about the ids it has."""
    return Widths.of_model(model, min(vocab_size, model.logit_width or vocab_size))


def _checkpoint_bytes(shape: ModelShape | None) -> int | None:
    """Returns the bytes of trained weights and their two moments; frozen weights are not saved."""
    return None if shape is None else (FLOAT32_BYTES + ADAMW_BYTES) * shape.num_trainable
