"""Requests that a server must refuse: some written by hand, and any number at random."""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, cast

from faults.teacher.clients.asking import request
from protos import teacher_pb2 as pb

# What the server under attack was started with.
VOCAB_SIZE = 97
MAX_SEQUENCES, MAX_TOKENS, MAX_SEQUENCE_TOKENS, MAX_TOP_K, MAX_DRAWS = 8, 64, 32, 16, 10

Change = Callable[[pb.LogitsForBatchRequest], None]


def _set(**fields: Any) -> Change:
    def change(message: pb.LogitsForBatchRequest) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def _representation(**fields: Any) -> Change:
    def change(message: pb.LogitsForBatchRequest) -> None:
        message.representation.CopyFrom(pb.Representation(**fields))

    return change


def _sequences(*lengths: int, tokens: int | None = None, last_id: int = 1) -> Change:
    def change(message: pb.LogitsForBatchRequest) -> None:
        number = sum(lengths) if tokens is None else tokens
        ids = [1] * (number - 1) + [last_id] if number else []
        message.sequence_lengths[:] = lengths
        message.token_ids = struct.pack(f"<{number}I", *ids)

    return change


def _mask(data: bytes) -> Change:
    return _set(positions=pb.POSITIONS_MASK, position_mask=data)


_TOP_K = pb.REPRESENTATION_TOP_K
_SAMPLED = pb.REPRESENTATION_SAMPLED
_DENSE = pb.REPRESENTATION_DENSE

# (field that the refusal must name, change to a valid request)
CASES: list[tuple[str, Change]] = [
    ("run_id", _set(run_id="")),
    ("run_id", _set(run_id="Upper")),
    ("run_id", _set(run_id="-dash")),
    ("run_id", _set(run_id="../../etc")),
    ("run_id", _set(run_id="a" * 64)),
    ("run_id", _set(run_id="run 1")),
    ("request_id", _set(request_id="x" * 65)),
    ("request_id", _set(request_id="line\nbreak")),
    ("request_id", _set(request_id="\x1b[31m")),
    ("token_ids", _sequences(3, last_id=VOCAB_SIZE)),
    ("token_ids", _sequences(3, last_id=0xFFFFFFFF)),
    ("token_ids", _sequences(3, tokens=2)),
    ("token_ids", _sequences(3, tokens=4)),
    ("token_ids", _set(token_ids=b"")),
    ("token_ids", _set(token_ids=b"\x01\x00\x00")),
    ("token_ids", _set(token_ids=bytes(29))),
    ("sequence_lengths", _sequences()),
    ("sequence_lengths", _sequences(0)),
    ("sequence_lengths", _sequences(3, 0, 4)),
    ("sequence_lengths", _sequences(MAX_SEQUENCE_TOKENS + 1)),
    ("sequence_lengths", _sequences(*[1] * (MAX_SEQUENCES + 1))),
    ("sequence_lengths", _sequences(30, 30, 30)),
    ("sequence_lengths", _sequences(0xFFFFFFFF, tokens=1)),
    ("sequence_lengths", _sequences(0xFFFFFFFF, 0xFFFFFFFF, tokens=1)),
    ("positions", _set(positions=pb.POSITIONS_UNSPECIFIED)),
    ("positions", _set(positions=77)),
    ("position_mask", _mask(b"")),
    ("position_mask", _mask(b"\x00")),
    ("position_mask", _mask(b"\xff")),
    ("position_mask", _mask(b"\x01\x00")),
    ("position_mask", _set(position_mask=b"\x01")),
    ("vocab_size", _set(vocab_size=0)),
    ("vocab_size", _set(vocab_size=VOCAB_SIZE + 1)),
    ("vocab_size", _set(vocab_size=0xFFFFFFFF)),
    ("representation.kind", _representation()),
    ("representation.kind", _representation(kind=99)),
    ("representation.top_k", _representation(kind=_TOP_K)),
    ("representation.top_k", _representation(kind=_TOP_K, top_k=VOCAB_SIZE + 1)),
    ("representation.top_k", _representation(kind=_TOP_K, top_k=MAX_TOP_K + 1)),
    ("representation.top_k", _representation(kind=_DENSE, top_k=1)),
    ("representation.num_draws", _representation(kind=_SAMPLED)),
    ("representation.num_draws", _representation(kind=_SAMPLED, num_draws=MAX_DRAWS + 1)),
    ("representation.num_draws", _representation(kind=_DENSE, num_draws=3)),
    ("representation.seed", _representation(kind=_DENSE, seed=3)),
    ("temperature", _set(temperature=0.0)),
    ("temperature", _set(temperature=-1.0)),
    ("temperature", _set(temperature=float("nan"))),
    ("temperature", _set(temperature=float("inf"))),
    ("temperature", _set(temperature=float("-inf"))),
]


def right() -> pb.LogitsForBatchRequest:
    """Returns the request that the cases change."""
    return request([[1, 2, 3], [4, 5, 6, 7]], vocab_size=VOCAB_SIZE)


def bad_requests() -> Iterator[tuple[str, pb.LogitsForBatchRequest]]:
    """Yields (field at fault, request) for each case."""
    for field, change in CASES:
        message = right()
        change(message)
        yield field, message


def drawn(draw: random.Random) -> pb.LogitsForBatchRequest:
    """Returns a request whose fields are valid or invalid at random."""
    lengths = [
        draw.choice([0, 1, 2, 3, MAX_SEQUENCE_TOKENS, MAX_SEQUENCE_TOKENS + 1, 1 << 31])
        for _ in range(draw.choice([0, 1, 1, 2, 3, MAX_SEQUENCES + 1]))
    ]
    number = draw.choice([min(sum(lengths), 500), draw.randrange(200)])
    ids = [draw.choice([0, 1, VOCAB_SIZE - 1, VOCAB_SIZE, 0xFFFFFFFF]) for _ in range(number)]
    if draw.random() < 0.7:
        ids = [token % VOCAB_SIZE for token in ids]
    fields: dict[str, Any] = {
        "protocol_version": draw.choice([1, 1, 1, 1, 0, 2]),
        "run_id": draw.choice(["run-1", "run-1", "run-1", "", "A", "a" * 100]),
        "request_id": draw.choice(["", "r-1", "x" * 65, "\x00"]),
        "expected_fingerprint": draw.choice(["", "", "", "abc"]),
        "token_ids": struct.pack(f"<{number}I", *ids) + bytes(draw.choice([0, 0, 0, 1])),
        "sequence_lengths": lengths,
        "positions": draw.choice([1, 1, 2, 3, 0, 9]),
        "position_mask": bytes(draw.choice([0, 0, 1, 2, 300])),
        "vocab_size": draw.choice([VOCAB_SIZE, VOCAB_SIZE, 1, 0, VOCAB_SIZE + 1, 1 << 31]),
        "representation": pb.Representation(
            kind=cast(Any, draw.choice([1, 2, 3, 4, 0, 9])),
            top_k=draw.choice([0, 0, 1, MAX_TOP_K, MAX_TOP_K + 1, 1 << 31]),
            num_draws=draw.choice([0, 0, 1, MAX_DRAWS, 1 << 31]),
            seed=draw.choice([0, 0, 1, 1 << 63]),
        ),
        "temperature": draw.choice([1.0, 2.0, 0.0, -1.0, float("nan"), float("inf"), 1e-300]),
    }
    return pb.LogitsForBatchRequest(**fields)
