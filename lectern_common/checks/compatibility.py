"""Checks that teacher, student and data fit together.

Runs before a run is accepted, and again in the trainer before its first step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lectern_common.checks.rules import require_own_tokenizer
from lectern_common.checks.vocabularies import (
    Untaught,
    Vocabulary,
    require_known_ids,
    require_one_vocabulary,
)
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
    read_dataset_map,
    tokenizer_sha256,
)
from lectern_common.wire.formats import FORMATS, Widths, offered_by
from protos import teacher_pb2


@dataclass(frozen=True)
class StudentFacts:
    """What is known about a student before it is loaded. None means unknown without a download.

    `max_positions` is also None if it has no limit.
    """

    vocab_size: int | None
    tokens: TokenizerMap | None
    weights_sha256: str | None
    max_positions: int | None = None


def require_teacher_fits(
    spec: RunSpec,
    teacher: teacher_pb2.Model,
    teacher_tokens: Callable[[], TokenizerMap],
    student: StudentFacts,
    manifest: ShardManifest | None,
    dataset: Path | None,
    validation: Path | None = None,
    prompts: Path | None = None,
) -> Untaught:
    """Returns the ids that this teacher cannot teach, none of which the data uses.

    Args:
        spec: a spec that distils.
        teacher: the answer of GetModel.
        teacher_tokens: fetches the teacher's tokenizer map; called only if the hashes differ.
        student: what is known about the student.
        manifest: of the training shards; None for synthetic data.
        dataset: folder of the training shards.
        validation: folder of the validation shards, if they are others.
        prompts: folder of the prompts that the student continues, if there are any.

    Raises:
        Incompatible: or a subclass (WrongModel, RepresentationNotOffered, SameWeights,
            TokenizerMismatch): this teacher cannot teach the run; the message says what to set.
    """
    if spec.teacher is None:
        raise ValueError("the spec does not distil")
    wanted = spec.teacher.model
    if wanted is not None and wanted != teacher.model_id:
        record = spec.teacher.record
        theirs = f"{spec.teacher.address} serves" if record is None else f"record {record} is of"
        raise WrongModel(f"teacher.model is {wanted}, but {theirs} {teacher.model_id}")
    _require_offered(spec.teacher.representation, teacher)
    _require_within_limits(spec, teacher, student)
    if (
        student.weights_sha256 is not None
        and student.weights_sha256 == teacher.weights_sha256
        and not spec.teacher.allow_same_weights
    ):
        raise SameWeights(
            f"student.init {spec.student.init} has the teacher's own weights ({teacher.model_id}), "
            "so there is nothing to distil; choose another student, or set "
            "teacher.allow_same_weights"
        )
    return require_one_vocabulary(
        spec,
        teacher,
        teacher_tokens,
        Vocabulary(student.vocab_size, student.tokens, manifest, dataset, validation, prompts),
    )


def require_data_fits(
    dataset: Path,
    manifest: ShardManifest,
    student: TokenizerMap | None,
    validation: Path | None = None,
) -> str | None:
    """Raises unless every id that a dataset uses means the same to the student.

    Returns what was checked, in words, if other ids differ; else None.

    Args:
        dataset: its folder.
        manifest: its manifest.
        student: the student's tokens. None means unknown; then only the tokenizer beside the
            shards, if there is one, is checked against the manifest.
        validation: folder of other validation shards, of the same tokenizer.

    Raises:
        TokenizerMismatch: the ids differ; names the first ones that do.
        CorruptData: the shards were not written with the tokenizer beside them.
    """
    path = dataset / TOKENIZER_NAME
    if student is None and not path.exists():
        return None
    if student is not None and tokenizer_sha256(student) == manifest.tokenizer_sha256:
        return None
    of_data = read_dataset_map(path)
    require_own_tokenizer(path, tokenizer_sha256(of_data), manifest.tokenizer_sha256)
    if student is None:
        return None
    folders = [dataset] if validation is None else [dataset, validation]
    return require_known_ids(folders, of_data, student)


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
            f"data.seq_len {seq_len} exceeds the teacher's limit of {limits.max_sequence_tokens} "
            "tokens per sequence; lower it"
        )
    if sequences * seq_len > limits.max_tokens or sequences > limits.max_sequences:
        raise Incompatible(
            f"a micro-batch of {sequences} x {seq_len} tokens exceeds the teacher's limit of "
            f"{limits.max_sequences} sequences and {limits.max_tokens} tokens per request; lower "
            "batch.micro_batch_sequences"
        )
    num_draws = spec.teacher.num_draws if spec.teacher else None
    if num_draws is not None and num_draws > limits.max_draws:
        raise Incompatible(
            f"teacher.num_draws {num_draws} exceeds the teacher's limit of {limits.max_draws}; "
            "lower it"
        )
    if student.vocab_size is not None:
        asked = min(student.vocab_size, teacher.logit_width)
        _require_top_k_fits(asked, spec, teacher)
        _require_reply_fits(asked, spec, teacher)


def _require_top_k_fits(vocab_size: int, spec: RunSpec, teacher: teacher_pb2.Model) -> None:
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
            f"a micro-batch needs a reply of {asked} bytes of {spec.teacher.representation}, over "
            f"the teacher's limit of {limit}; {limit // (position_bytes * seq_len)} sequences of "
            f"{seq_len} tokens fit: lower batch.micro_batch_sequences, or choose another "
            "teacher.representation"
        )
