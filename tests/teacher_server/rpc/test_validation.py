"""Each field of a request, invalid by itself: the refusal names it. No engine is involved."""

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lectern_common.errors import (
    Incompatible,
    InvalidRequest,
    LecternError,
    RepresentationNotOffered,
    WrongModel,
)
from lectern_common.wire.formats import FORMATS
from protos import teacher_pb2 as pb
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.validation import require_protocol, require_vocab_size, scoring_request
from tests.support.asking import KINDS, request

V = 97
FACTS = dataclasses.replace(
    FixtureEngine(V).facts,
    hidden_size=8,
    hidden_dtype="bfloat16",
    not_offered={"dense": None, "hidden": None, "top_k": None, "sampled": "it draws none"},
)
LIMITS = Limits(
    max_sequences=4,
    max_tokens=40,
    max_sequence_tokens=16,
    max_top_k=20,
    max_reply_bytes=4 * V * 20,
)


def change(**fields: Any) -> Callable[[pb.LogitsForBatchRequest], None]:
    """A change of top-level fields; lists replace what was there."""

    def apply(message: pb.LogitsForBatchRequest) -> None:
        for name, value in fields.items():
            if name == "sequence_lengths":
                message.sequence_lengths[:] = value
            elif name == "representation":
                message.representation.CopyFrom(value)
            else:
                setattr(message, name, value)

    return apply


def ids(*tokens: int) -> bytes:
    return np.asarray(tokens, "<u4").tobytes()


def sampled_fields(**fields: int) -> pb.Representation:
    return pb.Representation(kind=pb.REPRESENTATION_DENSE, **fields)


def top_k(k: int) -> pb.Representation:
    return pb.Representation(kind=pb.REPRESENTATION_TOP_K, top_k=k)


# The valid request has two sequences of 2 and 3 tokens and asks for dense rows at all positions.
BAD: list[tuple[str, Callable[[pb.LogitsForBatchRequest], None], str, str]] = [
    ("empty run_id", change(run_id=""), "run_id", "must match"),
    ("run_id in capitals", change(run_id="Run"), "run_id", "must match"),
    ("run_id with a path", change(run_id="../x"), "run_id", "must match"),
    ("run_id with a newline", change(run_id="run\n"), "run_id", "must match"),
    ("run_id of 64", change(run_id="a" * 64), "run_id", "{0,62}"),
    ("request_id of 65", change(request_id="r" * 65), "request_id", "64"),
    ("request_id with escapes", change(request_id="\x1b[2J"), "request_id", "printable"),
    ("request_id beyond ASCII", change(request_id="\u00e9"), "request_id", "ASCII"),
    ("vocab_size 0", change(vocab_size=0), "vocab_size", "between 1 and the model's 97"),
    ("vocab_size over the head", change(vocab_size=V + 1), "vocab_size", "97"),
    ("no representation", change(representation=pb.Representation()), "representation.kind", "0"),
    (
        "unknown representation",
        change(representation=pb.Representation(kind=cast(pb.RepresentationKind, 9))),
        "representation.kind",
        "9 is not one of",
    ),
    ("top_k 0", change(representation=top_k(0)), "representation.top_k", "between 1 and 20"),
    ("top_k over the limit", change(representation=top_k(21)), "representation.top_k", "20"),
    (
        "top_k over vocab_size",
        change(representation=top_k(11), vocab_size=10),
        "representation.top_k",
        "between 1 and 10",
    ),
    (
        "top_k with dense",
        change(representation=sampled_fields(top_k=1)),
        "representation.top_k",
        "no effect with representation dense",
    ),
    (
        "top_k with hidden",
        change(representation=pb.Representation(kind=pb.REPRESENTATION_HIDDEN, top_k=3)),
        "representation.top_k",
        "no effect with representation hidden",
    ),
    (
        "num_draws with dense",
        change(representation=sampled_fields(num_draws=5)),
        "representation.num_draws",
        "no effect",
    ),
    (
        "seed with dense",
        change(representation=sampled_fields(seed=5)),
        "representation.seed",
        "no effect",
    ),
    ("temperature absent", change(temperature=0.0), "temperature", "finite and above 0"),
    ("temperature negative", change(temperature=-1.0), "temperature", "above 0"),
    ("temperature NaN", change(temperature=float("nan")), "temperature", "finite"),
    ("temperature infinite", change(temperature=float("inf")), "temperature", "finite"),
    ("temperature minus infinite", change(temperature=float("-inf")), "temperature", "finite"),
    (
        "empty batch",
        change(sequence_lengths=[], token_ids=b""),
        "sequence_lengths",
        "0 sequences; it must have between 1 and 4",
    ),
    ("tokens without lengths", change(sequence_lengths=[]), "sequence_lengths", "0 sequences"),
    (
        "too many sequences",
        change(sequence_lengths=[1] * 5),
        "sequence_lengths",
        "5 sequences; it must have between 1 and 4",
    ),
    (
        "empty sequence",
        change(sequence_lengths=[2, 0, 3]),
        "sequence_lengths",
        "sequence_lengths[1] is 0 tokens",
    ),
    (
        "sequence too long",
        change(sequence_lengths=[2, 17], token_ids=ids(*range(19))),
        "sequence_lengths",
        "sequence_lengths[1] is 17 tokens; it must be between 1 and 16",
    ),
    (
        "length beyond 31 bits",
        change(sequence_lengths=[2, 2**32 - 1]),
        "sequence_lengths",
        "4294967295 tokens",
    ),
    (
        "too many tokens",
        change(sequence_lengths=[16, 16, 9], token_ids=ids(*range(41))),
        "sequence_lengths",
        "41 tokens; a request holds at most 40",
    ),
    ("token_ids absent", change(token_ids=b""), "token_ids", "0 bytes; 5 tokens"),
    ("token_ids short", change(token_ids=ids(1, 2, 3, 4)), "token_ids", "need 20"),
    ("token_ids long", change(token_ids=ids(1, 2, 3, 4, 5, 6)), "token_ids", "24 bytes"),
    ("token_ids cut", change(token_ids=ids(1, 2, 3, 4, 5)[:-1]), "token_ids", "19 bytes"),
    (
        "id beyond the vocabulary",
        change(token_ids=ids(1, 2, 3, V, 5)),
        "token_ids",
        "token_ids[3] is 97; it must be at most 96",
    ),
    (
        "id beyond 31 bits",
        change(token_ids=ids(1, 2**32 - 1, 3, 4, 5)),
        "token_ids",
        "token_ids[1] is 4294967295",
    ),
    (
        "positions absent",
        change(positions=pb.POSITIONS_UNSPECIFIED),
        "positions",
        "expected POSITIONS_ALL",
    ),
    ("positions unknown", change(positions=7), "positions", "positions is 7"),
    ("mask with all", change(position_mask=b"\x01"), "position_mask", "leave it out"),
    (
        "mask with last",
        change(position_mask=b"\x01", positions=pb.POSITIONS_LAST),
        "position_mask",
        "leave it out",
    ),
    ("mask absent", change(positions=pb.POSITIONS_MASK), "position_mask", "0 bytes, but 5 tokens"),
    (
        "mask too long",
        change(positions=pb.POSITIONS_MASK, position_mask=b"\x01\x00"),
        "position_mask",
        "2 bytes",
    ),
    (
        "mask without a bit",
        change(positions=pb.POSITIONS_MASK, position_mask=b"\x00"),
        "position_mask",
        "has no bit set",
    ),
    (
        "mask with a padding bit",
        change(positions=pb.POSITIONS_MASK, position_mask=b"\x21"),
        "position_mask",
        "beyond token 4",
    ),
    (
        "reply over the limit",
        change(sequence_lengths=[7, 7, 7], token_ids=ids(*range(21))),
        "sequence_lengths",
        "21 positions of 388), over the limit of 7760; at most 20 positions fit, the first 2 of "
        "these 3 sequences",
    ),
]


@pytest.mark.parametrize(
    ("apply", "field", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_an_invalid_field_is_refused_by_name(
    apply: Callable[[pb.LogitsForBatchRequest], None], field: str, says: str
) -> None:
    message = request([[1, 2], [3, 4, 5]])
    scoring_request(message, FACTS, LIMITS)
    apply(message)
    with pytest.raises(InvalidRequest) as caught:
        scoring_request(message, FACTS, LIMITS)
    assert caught.value.field == field
    assert says in str(caught.value)


def test_too_many_sequences_are_refused_without_reading_them() -> None:
    """A message holds sixteen million lengths: reading them takes the event loop half a second."""

    class Unread:
        def __len__(self) -> int:
            return 16_000_000

        def __iter__(self) -> Iterator[int]:
            raise AssertionError("read before it was counted")

    right = request([[1]])
    fields = {field.name: getattr(right, field.name) for field in right.DESCRIPTOR.fields}
    message: Any = SimpleNamespace(**{**fields, "sequence_lengths": Unread()})
    with pytest.raises(InvalidRequest, match="has 16000000 sequences; it must have between 1 and"):
        scoring_request(message, FACTS, LIMITS)


def test_a_different_protocol_version_is_incompatible() -> None:
    for version in (0, 2):
        message = request([[1]])
        message.protocol_version = version
        with pytest.raises(Incompatible, match=f"protocol_version is {version}"):
            scoring_request(message, FACTS, LIMITS)
        with pytest.raises(Incompatible):
            require_protocol(version)


def test_the_fingerprint_of_another_model_is_refused() -> None:
    scoring_request(request([[1]], fingerprint=FACTS.fingerprint), FACTS, LIMITS)
    with pytest.raises(WrongModel, match=FACTS.model_id):
        scoring_request(request([[1]], fingerprint="0" * 64), FACTS, LIMITS)


def test_a_representation_that_is_not_offered_is_refused_with_its_reason() -> None:
    message = request([[1]])
    message.representation.CopyFrom(
        pb.Representation(kind=pb.REPRESENTATION_SAMPLED, num_draws=5, seed=1)
    )
    with pytest.raises(RepresentationNotOffered, match="it draws none"):
        scoring_request(message, FACTS, LIMITS)


@pytest.mark.parametrize("vocab_size", [0, V + 1, 2**32 - 1])
def test_a_vocab_size_beyond_the_head_is_refused(vocab_size: int) -> None:
    with pytest.raises(InvalidRequest, match="vocab_size") as caught:
        require_vocab_size(vocab_size, FACTS)
    assert caught.value.field == "vocab_size"


def test_texts_come_again_unless_the_client_says_that_they_do_not() -> None:
    message = request([[1, 2]])
    assert not scoring_request(message, FACTS, LIMITS).comes_once
    message.comes_once = True
    assert scoring_request(message, FACTS, LIMITS).comes_once


def test_limits_themselves_are_allowed() -> None:
    message = request([list(range(16)), [1, 2], [3], [4]], "top_k", top_k=20, run_id="a" * 63)
    message.request_id = "~" * 64
    plain = scoring_request(message, FACTS, LIMITS)
    assert (plain.num_tokens, plain.num_rows, plain.row_bytes) == (20, 20, 168)
    assert scoring_request(request([[V - 1]] * 4), FACTS, LIMITS).num_rows == 4


def test_the_plain_request_equals_the_message() -> None:
    message = request([[1, 2], [3, 4, 5], [6]], "hidden", mask=[[0, 1], [0, 0, 0], [1]])
    plain = scoring_request(message, FACTS, LIMITS)
    assert [ask.token_ids_S.tolist() for ask in plain.asks] == [[1, 2], [6]]  # nothing asked of 2nd
    assert [ask.asked_S.tolist() for ask in plain.asks] == [[False, True], [True]]
    assert plain.row_bytes == 16
    assert plain.num_rows == 2


@settings(max_examples=300, deadline=None)
@given(
    run_id=st.text(max_size=70),
    request_id=st.text(max_size=70),
    token_ids=st.binary(max_size=80),
    lengths=st.lists(st.integers(0, 2**32 - 1), max_size=6),
    positions=st.integers(-1, 5),
    mask=st.binary(max_size=4),
    vocab_size=st.integers(0, 2**32 - 1),
    kind=st.integers(-1, 6),
    k=st.integers(0, 2**32 - 1),
    draws=st.integers(0, 300),
    temperature=st.floats(),
    version=st.integers(0, 2),
)
def test_any_request_is_accepted_or_refused_by_name(
    run_id: str,
    request_id: str,
    token_ids: bytes,
    lengths: list[int],
    positions: Any,
    mask: bytes,
    vocab_size: int,
    kind: Any,
    k: int,
    draws: int,
    temperature: float,
    version: int,
) -> None:
    message = pb.LogitsForBatchRequest(
        protocol_version=version,
        run_id=run_id.encode("utf-8", "replace").decode(),
        request_id=request_id.encode("utf-8", "replace").decode(),
        token_ids=token_ids,
        sequence_lengths=lengths,
        positions=positions,
        position_mask=mask,
        vocab_size=vocab_size,
        representation=pb.Representation(kind=kind, top_k=k, num_draws=draws),
        temperature=temperature,
    )
    try:
        plain = scoring_request(message, FACTS, LIMITS)
    except InvalidRequest as error:
        assert error.field is not None and error.field in {
            *(field.name for field in pb.LogitsForBatchRequest.DESCRIPTOR.fields),
            *(f"representation.{f.name}" for f in pb.Representation.DESCRIPTOR.fields),
        }
    except LecternError:
        pass
    else:
        assert plain.num_rows >= 1


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    kind=st.sampled_from(["dense", "hidden", "top_k"]),
    data=st.data(),
)
def test_valid_requests_are_accepted_unchanged(
    lengths: list[int], kind: str, data: st.DataObject
) -> None:
    tokens = [data.draw(st.lists(st.integers(0, V - 1), min_size=n, max_size=n)) for n in lengths]
    mask = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    mask[0][0] = True
    roomy = dataclasses.replace(LIMITS, max_tokens=1000, max_reply_bytes=1 << 20)
    message = request(tokens, kind, mask=mask, top_k=3 if kind == "top_k" else 0)
    plain = scoring_request(message, FACTS, roomy)
    asked = [(t, m) for t, m in zip(tokens, mask, strict=True) if any(m)]
    assert [ask.token_ids_S.tolist() for ask in plain.asks] == [t for t, _ in asked]
    assert [ask.asked_S.tolist() for ask in plain.asks] == [m for _, m in asked]
    assert all(ask.representation.kind == kind for ask in plain.asks)
    assert list(KINDS) == list(FORMATS)
