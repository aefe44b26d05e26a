"""Do this teacher, this student and this data belong together? Asked before a run is accepted, and
again by the trainer before its first step.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lectern_common.errors import Incompatible, RepresentationNotOffered, SameWeights, WrongModel
from lectern_common.run_spec import RunSpec
from lectern_common.shards import ShardManifest
from lectern_common.tokenizer_map import TokenizerMap, require_same_tokens, tokenizer_sha256
from protos import teacher_pb2

_KINDS = {
    "dense": teacher_pb2.REPRESENTATION_DENSE,
    "hidden": teacher_pb2.REPRESENTATION_HIDDEN,
    "top_k": teacher_pb2.REPRESENTATION_TOP_K,
}


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
) -> None:
    """Returns where the run can be distilled from this teacher.

    Args:
        spec: a spec that distils.
        teacher: what GetModel answered.
        teacher_tokens: fetches the teacher's map; called only where the hashes differ.
        student: what is known of the student.
        manifest: of the training shards; None for synthetic data.

    Raises:
        WrongModel, RepresentationNotOffered, SameWeights, TokenizerMismatch, Incompatible: each says
            what to set.
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
            f"student.init {spec.student.init} has the teacher's own weights ({teacher.model_id}): there "
            "is nothing to distil. Take another student, or set teacher.allow_same_weights"
        )
    if student.tokens and teacher.tokenizer_sha256:
        if tokenizer_sha256(student.tokens) != teacher.tokenizer_sha256:
            require_same_tokens(teacher_tokens(), student.tokens)
    elif manifest is not None and teacher.tokenizer_sha256 not in ("", manifest.tokenizer_sha256):
        raise Incompatible(
            f"the data at {spec.data.path} was prepared with another tokenizer than the teacher's "
            f"({teacher.model_id}); prepare it again with the teacher's tokenizer.json"
        )


def _require_offered(name: str, teacher: teacher_pb2.Model) -> None:
    for offer in teacher.representations:
        if offer.kind == _KINDS[name] and offer.offered:
            return
    reasons = [offer.reason for offer in teacher.representations if offer.kind == _KINDS[name]]
    offered = [
        known
        for known, kind in _KINDS.items()
        if any(offer.kind == kind and offer.offered for offer in teacher.representations)
    ]
    raise RepresentationNotOffered(
        f"the teacher does not offer {name} ({reasons[0] if reasons else 'unknown to it'}); set "
        f"teacher.representation to one of: {', '.join(offered)}"
    )


def _require_within_limits(
    spec: RunSpec, teacher: teacher_pb2.Model, student: StudentFacts
) -> None:
    limits, asked = teacher.limits, spec.teacher
    micro_batch_tokens = spec.batch.micro_batch * spec.data.seq_len
    if spec.data.seq_len > limits.max_sequence_tokens:
        raise Incompatible(
            f"data.seq_len {spec.data.seq_len} exceeds the teacher's {limits.max_sequence_tokens} tokens"
        )
    if micro_batch_tokens > limits.max_tokens or spec.batch.micro_batch > limits.max_sequences:
        raise Incompatible(
            f"a micro-batch of {spec.batch.micro_batch} x {spec.data.seq_len} tokens exceeds the teacher's "
            f"limit of {limits.max_sequences} sequences and {limits.max_tokens} tokens a request; lower "
            "batch.micro_batch_sequences"
        )
    if asked is not None and asked.top_k is not None and asked.top_k > limits.max_top_k:
        raise Incompatible(f"teacher.top_k {asked.top_k} exceeds the teacher's {limits.max_top_k}")
    if student.vocab_size is None:
        return
    if student.vocab_size > teacher.logit_width:
        raise Incompatible(
            f"the student has {student.vocab_size} logits, the teacher {teacher.logit_width}; the "
            "teacher must cover every id of the student"
        )
    if student.vocab_size < teacher.num_tokens:
        raise Incompatible(
            f"the student has {student.vocab_size} logits for {teacher.num_tokens} tokens of the teacher"
        )
    if asked is not None and asked.top_k is not None and asked.top_k > student.vocab_size:
        raise Incompatible(
            f"teacher.top_k {asked.top_k} exceeds the vocabulary, {student.vocab_size}"
        )
    row_bytes = {
        "dense": 4 * student.vocab_size,
        "hidden": teacher.hidden_size
        * (4 if teacher.hidden_dtype == teacher_pb2.DTYPE_FLOAT32 else 2),
        "top_k": 8 * ((asked.top_k if asked else None) or 0) + 8,
    }[asked.representation if asked else "hidden"]
    if micro_batch_tokens * row_bytes > limits.max_reply_bytes:
        raise Incompatible(
            f"a micro-batch of {micro_batch_tokens} tokens is {micro_batch_tokens * row_bytes} bytes of "
            f"{asked.representation if asked else ''}, over the teacher's {limits.max_reply_bytes} a reply; "
            f"at most {max(1, limits.max_reply_bytes // (row_bytes * spec.data.seq_len))} sequences fit: "
            "lower batch.micro_batch_sequences, or take another representation"
        )
