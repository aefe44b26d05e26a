"""Teacher, student and data that do not fit together are refused, each with its own message."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from lectern_common.checks.compatibility import StudentFacts, require_teacher_fits
from lectern_common.errors import (
    Incompatible,
    LecternError,
    RepresentationNotOffered,
    SameWeights,
    TokenizerMismatch,
    WrongModel,
)
from lectern_common.spec.load import parse_spec
from lectern_common.tokens.shards import TOKENIZER_NAME, ShardManifest
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from protos import teacher_pb2

TOKENS = {"a": 0, "b": 1, "c": 2}
SHA = tokenizer_sha256(TOKENS)


def teacher(**changes: Any) -> teacher_pb2.Model:
    values: dict[str, Any] = {
        "model_id": "big",
        "weights_sha256": "t" * 64,
        "logit_width": 8,
        "num_tokens": 3,
        "tokenizer_sha256": SHA,
        "hidden_size": 16,
        "hidden_dtype": teacher_pb2.DTYPE_FLOAT32,
        "representations": [
            teacher_pb2.RepresentationOffer(kind=teacher_pb2.REPRESENTATION_DENSE, offered=True),
            teacher_pb2.RepresentationOffer(kind=teacher_pb2.REPRESENTATION_HIDDEN, offered=True),
            teacher_pb2.RepresentationOffer(
                kind=teacher_pb2.REPRESENTATION_TOP_K, offered=False, reason="no room"
            ),
        ],
        "limits": teacher_pb2.Limits(
            max_sequences=64,
            max_tokens=4096,
            max_sequence_tokens=128,
            max_top_k=4,
            max_draws=100,
            max_reply_bytes=1 << 20,
        ),
    }
    return teacher_pb2.Model(**{**values, **changes})


def check(
    model: teacher_pb2.Model,
    student: StudentFacts | None = None,
    teacher_tokens: Mapping[str, int] = TOKENS,
    manifest: ShardManifest | None = None,
    dataset: Path | None = None,
    **sections: Any,
) -> None:
    body = {
        "name": "a",
        "teacher": {},
        "student": {"init": "small"},
        "data": {"path": "text", "seq_len": 64},
        **sections,
    }
    facts = student or StudentFacts(8, TOKENS, "s" * 64)
    require_teacher_fits(parse_spec(body), model, lambda: teacher_tokens, facts, manifest, dataset)


def test_a_fitting_teacher_passes() -> None:
    check(teacher())


def test_a_wider_teacher_with_the_same_tokens_passes() -> None:
    check(teacher(logit_width=12), StudentFacts(8, TOKENS, None))


def test_padded_rows_are_not_tokens() -> None:
    """S7: Qwen2.5-Coder-7B has 152,064 logits, the 0.5B 151,936, and 151,665 ids are tokens."""
    large = teacher(logit_width=152_064, num_tokens=151_665)
    check(large, StudentFacts(151_936, TOKENS, None))
    check(large, StudentFacts(151_665, TOKENS, None))
    check(large, StudentFacts(152_064, TOKENS, None))
    for width, words in ((151_664, "too few for the teacher's 151665"), (152_065, "must cover")):
        with pytest.raises(Incompatible, match=words):
            check(large, StudentFacts(width, TOKENS, None))


CASES: list[tuple[dict[str, Any], type[LecternError], str]] = [
    ({"model": teacher(), "teacher": {"model": "other"}}, WrongModel, "serves big"),
    (
        {"model": teacher(), "teacher": {"representation": "top_k"}},
        RepresentationNotOffered,
        "no room.*dense, hidden",
    ),
    ({"model": teacher(weights_sha256="s" * 64)}, SameWeights, "allow_same_weights"),
    (
        {"model": teacher(tokenizer_sha256="x" * 64), "teacher_tokens": {"b": 0, "a": 1, "c": 2}},
        TokenizerMismatch,
        'id 0: teacher "b", student "a"',
    ),
    ({"model": teacher(logit_width=7)}, Incompatible, "8 logits, but the teacher only 7"),
    ({"model": teacher(num_tokens=9, logit_width=9)}, Incompatible, "too few"),
    (
        {"model": teacher(), "data": {"path": "t", "seq_len": 129}},
        Incompatible,
        "limit of 128 tokens per sequence",
    ),
    (
        {"model": teacher(), "batch": {"sequences_per_step": 65}},
        Incompatible,
        "micro_batch_sequences",
    ),
    (
        {"model": teacher(hidden_size=4096), "batch": {"sequences_per_step": 4}},
        Incompatible,
        "1 sequences of 64 tokens fit",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "words"), CASES)
def test_a_teacher_that_does_not_fit_is_refused(
    arguments: dict[str, Any], error: type[LecternError], words: str
) -> None:
    """TEACHER-DIVERGENCE: the teacher's own weights as the student are refused."""
    with pytest.raises(error, match=words):
        check(**arguments)


def test_the_same_weights_pass_if_allowed() -> None:
    """TEACHER-DIVERGENCE: unless explicitly allowed."""
    check(teacher(weights_sha256="s" * 64), teacher={"allow_same_weights": True})


def test_top_k_is_bounded_by_vocabulary_and_limit() -> None:
    offers = [
        teacher_pb2.RepresentationOffer(kind=teacher_pb2.REPRESENTATION_TOP_K, offered=True),
    ]
    with pytest.raises(Incompatible, match="exceeds 4"):
        check(teacher(representations=offers), teacher={"representation": "top_k", "top_k": 5})


SAMPLED = [teacher_pb2.RepresentationOffer(kind=teacher_pb2.REPRESENTATION_SAMPLED, offered=True)]


def test_draws_are_bounded_by_the_teachers_limit() -> None:
    check(teacher(representations=SAMPLED), teacher={"representation": "sampled", "num_draws": 100})
    with pytest.raises(Incompatible, match="num_draws 101 exceeds the teacher's limit of 100"):
        check(
            teacher(representations=SAMPLED),
            teacher={"representation": "sampled", "num_draws": 101},
        )
    with pytest.raises(RepresentationNotOffered, match="unknown to it"):
        check(teacher(), teacher={"representation": "sampled"})


def test_a_reply_of_draws_is_bounded_by_all_of_them_distinct() -> None:
    """8 x 64 positions of 50 draws of 8 bytes: 204,800 bytes, of a wide vocabulary."""
    limits = teacher().limits
    wide: dict[str, Any] = {"logit_width": 60, "representations": SAMPLED}
    student = StudentFacts(60, TOKENS, None)
    spec: dict[str, Any] = {
        "teacher": {"representation": "sampled"},
        "batch": {"sequences_per_step": 8},
    }
    limits.max_reply_bytes = 204_800
    check(teacher(limits=limits, **wide), student, **spec)
    limits.max_reply_bytes = 204_799
    with pytest.raises(
        Incompatible, match=r"204800 bytes of sampled.*7 sequences of 64 tokens fit"
    ):
        check(teacher(limits=limits, **wide), student, **spec)
    # A vocabulary of 8 has no more than 8 distinct ids to draw.
    limits.max_reply_bytes = 8 * 64 * 8 * 8
    check(teacher(limits=limits, representations=SAMPLED), **spec)


def test_without_a_student_tokenizer_the_data_must_match_the_teacher(tmp_path: Path) -> None:
    manifest = ShardManifest.model_validate(
        {
            "schema": "pretokenize-bin-v1",
            "tokenizer_sha256": "0" * 64,
            "corpus_sha256": "1" * 64,
            "shard_count": 1,
            "total_tokens": 7,
            "vocab_size": 3,
            "eos_policy": "none",
            "eos_token_id": None,
            "seq_length_hint": None,
            "producer_version": "1",
            "producer_sha256": "2" * 64,
        }
    )
    with pytest.raises(Incompatible, match="a different tokenizer"):
        check(teacher(), StudentFacts(8, None, None), manifest=manifest)
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "x": 1, "c": 2}, "a"))
    other.save(str(tmp_path / TOKENIZER_NAME))
    with pytest.raises(TokenizerMismatch, match=r'teacher and data .* id 1: teacher "b", data "x"'):
        check(teacher(), StudentFacts(8, None, None), manifest=manifest, dataset=tmp_path)
    check(
        teacher(),
        StudentFacts(8, None, None),
        manifest=manifest.model_copy(update={"tokenizer_sha256": SHA}),
    )
