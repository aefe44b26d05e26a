"""Do this teacher, this student and this data belong together? Asked before a run is accepted, and
again by the trainer before its first step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lectern_common.checks.rules import require_own_tokenizer
from lectern_common.errors import (
    Incompatible,
    RepresentationNotOffered,
    SameWeights,
    WrongModel,
)
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import TOKENIZER_NAME, ShardManifest
from lectern_common.tokens.tokenizer_map import (
    TokenizerMap,
    read_tokenizer_map,
    require_same_tokens,
    tokenizer_sha256,
)
from lectern_common.wire.formats import FORMATS, Widths, offered_by
from protos import teacher_pb2


@dataclass(frozen=True)
class StudentFacts:
    """What is known of a student before it is loaded. None: not known without a download."""

    vocab_size: int | None
    tokens: TokenizerMap | None
    weights_sha256: str | None


def require_teacher_fits(
    spec: RunSpec,
    teacher: teacher_pb2.Model,
    teacher_tokens: Callable[[], TokenizerMap],
    student: StudentFacts,
    manifest: ShardManifest | None,
    dataset: Path | None,
) -> None:
    """Returns where the run can be distilled from this teacher.

    Args:
        spec: a spec that distils.
        teacher: what GetModel answered.
        teacher_tokens: fetches the teacher's map; called only where the hashes differ.
        student: what is known of the student.
        manifest: of the training shards; None for synthetic data.
        dataset: their folder.

    Raises:
        Incompatible: one of its kinds (WrongModel, RepresentationNotOffered, SameWeights,
            TokenizerMismatch) or itself; each says what to set.
    """
    if spec.teacher is None:
        raise ValueError("the spec does not distil")
    wanted = spec.teacher.model
    if wanted is not None and wanted != teacher.model_id:
        raise WrongModel(
            f"teacher.model is {wanted}, but {spec.teacher.address} serves {teacher.model_id}"
        )
    _require_offered(spec.teacher.representation, teacher)
    _require_within_limits(spec, teacher, student)
    if (
        student.weights_sha256 is not None
        and student.weights_sha256 == teacher.weights_sha256
        and not spec.teacher.allow_same_weights
    ):
        raise SameWeights(
            f"student.init {spec.student.init} has the teacher's own weights ({teacher.model_id}): "
            "there is nothing to distil. Take another student, or set teacher.allow_same_weights"
        )
    if student.tokens and teacher.tokenizer_sha256:
        if tokenizer_sha256(student.tokens) != teacher.tokenizer_sha256:
            require_same_tokens(teacher_tokens(), student.tokens)
    elif manifest is not None and teacher.tokenizer_sha256 not in ("", manifest.tokenizer_sha256):
        if dataset is not None and (dataset / TOKENIZER_NAME).is_file():
            of_data = read_tokenizer_map(dataset / TOKENIZER_NAME)
            require_same_tokens(teacher_tokens(), of_data, own="data")
        raise Incompatible(
            f"the data at {spec.data.path} was prepared with another tokenizer than the teacher's "
            f"({teacher.model_id}); prepare it again with the teacher's tokenizer.json"
        )


def require_data_fits(dataset: Path, manifest: ShardManifest, student: TokenizerMap | None) -> None:
    """Raises unless a dataset's ids are the student's.

    Args:
        dataset: its folder.
        manifest: of the same.
        student: its tokens. None means that they are not known; then the tokenizer beside the
            shards, if there is one, has only to be theirs.

    Raises:
        TokenizerMismatch: they are not; names the first ids that differ.
        CorruptData: the tokenizer beside the shards is not the one they were written with.
    """
    path = dataset / TOKENIZER_NAME
    if student is None and not path.exists():
        return
    if student is not None and tokenizer_sha256(student) == manifest.tokenizer_sha256:
        return
    of_data = read_tokenizer_map(path)
    require_own_tokenizer(path, tokenizer_sha256(of_data), manifest.tokenizer_sha256)
    if student is not None:
        require_same_tokens(of_data, student, other="data")


def _require_offered(name: str, teacher: teacher_pb2.Model) -> None:
    offered = offered_by(teacher)
    if name in offered:
        return
    enum = FORMATS[name].enum
    reasons = [offer.reason for offer in teacher.representations if offer.kind == enum]
    raise RepresentationNotOffered(
        f"the teacher does not offer {name} ({reasons[0] if reasons else 'unknown to it'}); set "
        f"teacher.representation to one of: {', '.join(offered)}"
    )


def _require_within_limits(
    spec: RunSpec, teacher: teacher_pb2.Model, student: StudentFacts
) -> None:
    limits, seq_len, sequences = teacher.limits, spec.data.seq_len, spec.micro_batch
    if seq_len > limits.max_sequence_tokens:
        raise Incompatible(
            f"data.seq_len {seq_len} exceeds the {limits.max_sequence_tokens} tokens that the "
            "teacher takes"
        )
    if sequences * seq_len > limits.max_tokens or sequences > limits.max_sequences:
        raise Incompatible(
            f"a micro-batch of {sequences} x {seq_len} tokens exceeds the teacher's "
            f"{limits.max_sequences} sequences and {limits.max_tokens} tokens a request; lower "
            "batch.micro_batch_sequences"
        )
    num_draws = spec.teacher.num_draws if spec.teacher else None
    if num_draws is not None and num_draws > limits.max_draws:
        raise Incompatible(
            f"teacher.num_draws {num_draws} exceeds the {limits.max_draws} that the teacher takes; "
            "lower it"
        )
    if student.vocab_size is not None:
        _require_vocabulary_fits(student.vocab_size, spec, teacher)
        _require_reply_fits(student.vocab_size, spec, teacher)


def _require_vocabulary_fits(vocab_size: int, spec: RunSpec, teacher: teacher_pb2.Model) -> None:
    if vocab_size > teacher.logit_width:
        raise Incompatible(
            f"the student has {vocab_size} logits, the teacher {teacher.logit_width}; the teacher "
            "must cover every id of the student"
        )
    if vocab_size < teacher.num_tokens:
        raise Incompatible(
            f"the student has {vocab_size} logits, too few for the teacher's {teacher.num_tokens} "
            "tokens"
        )
    top_k = spec.teacher.top_k if spec.teacher else None
    largest = min(vocab_size, teacher.limits.max_top_k)
    if top_k is not None and top_k > largest:
        raise Incompatible(
            f"teacher.top_k {top_k} exceeds {largest}, the smaller of the student's vocabulary and "
            "the teacher's limit"
        )


def _require_reply_fits(vocab_size: int, spec: RunSpec, teacher: teacher_pb2.Model) -> None:
    if spec.teacher is None:
        return
    position_bytes = spec.teacher.asks_for.row_bytes(Widths.of_model(teacher, vocab_size))
    seq_len, limit = spec.data.seq_len, teacher.limits.max_reply_bytes
    asked = spec.micro_batch * seq_len * position_bytes
    if asked > limit:
        raise Incompatible(
            f"a micro-batch is {asked} bytes of {spec.teacher.representation}, over the teacher's "
            f"{limit} a reply; {limit // (position_bytes * seq_len)} sequences of {seq_len} tokens "
            "fit: lower batch.micro_batch_sequences, or take another representation"
        )
