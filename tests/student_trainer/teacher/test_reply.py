"""Reply streams: valid ones are assembled, all others refused."""

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.errors import LecternError, TeacherError, WrongModel
from lectern_common.wire.formats import FORMATS, Representation, Widths
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2 as pb
from student_trainer.targets import DenseTargets, HiddenTargets, TopKTargets
from student_trainer.teacher import reply
from student_trainer.teacher.reply import Expected, Payload, assemble, to_targets
from tests.support.training.wire_teacher import arriving, reply_stream

V, D, N = 6, 4, 5
LOGITS = np.arange(N * V, dtype=np.float32).reshape(N, V) / 7


def expected(kind: str = "dense", **changes: Any) -> Expected:
    settings: dict[str, Any] = {
        "fingerprint": "me",
        "representation": Representation(kind, 2 if kind == "top_k" else None),
        "num_rows": N,
        "widths": Widths(V, D, "bfloat16"),
    }
    return Expected(**{**settings, **changes})


def dense_stream(rows: np.ndarray = LOGITS) -> list[pb.LogitsForBatchReply]:
    return reply_stream(
        [row.tobytes() for row in rows],
        fingerprint="me",
        kind=pb.REPRESENTATION_DENSE,
        dtype=pb.DTYPE_FLOAT32,
        vocab_size=V,
        piece_rows=2,
    )


def test_dense_rows_arrive_in_order_and_bit_for_bit() -> None:
    replies = dense_stream()
    payload = assemble(iter(arriving(replies)), expected())
    targets = to_targets(payload, expected(), 2.0, None)
    assert isinstance(targets, DenseTargets)
    np.testing.assert_array_equal(targets.logits_NV.numpy(), LOGITS)
    assert payload.received_bytes == sum(len(reply.SerializeToString()) for reply in replies)


def test_bfloat16_states_keep_their_bits() -> None:
    values = torch.randn(N, D).bfloat16()
    replies = reply_stream(
        [row.view(torch.uint8).numpy().tobytes() for row in values],
        fingerprint="me",
        kind=pb.REPRESENTATION_HIDDEN,
        dtype=pb.DTYPE_BFLOAT16,
        vocab_size=V,
    )
    head = OutputHead(torch.zeros(V, D))
    targets = to_targets(
        assemble(arriving(replies), expected("hidden")), expected("hidden"), 1.0, head
    )
    assert isinstance(targets, HiddenTargets)
    assert targets.hidden_ND.dtype == torch.bfloat16
    assert torch.equal(targets.hidden_ND, values)
    assert targets.head is head


def test_top_k_records_are_unpacked() -> None:
    rows = [struct.pack("<2f2I2f", 3 + n, 1 + n, n, 5 - n, 10 + n, 20 + n) for n in range(N)]
    replies = reply_stream(
        rows,
        fingerprint="me",
        kind=pb.REPRESENTATION_TOP_K,
        dtype=pb.DTYPE_FLOAT32,
        vocab_size=V,
    )
    targets = to_targets(
        assemble(arriving(replies), expected("top_k")), expected("top_k"), 2.5, None
    )
    assert isinstance(targets, TopKTargets)
    assert targets.logits_NK.tolist() == [[3.0 + n, 1.0 + n] for n in range(N)]
    assert targets.ids_NK.tolist() == [[n, 5 - n] for n in range(N)]
    assert targets.ids_NK.dtype == torch.int64
    assert targets.log_rest_t_N.tolist() == [10.0 + n for n in range(N)]
    assert targets.log_normalizer_t_N.tolist() == [20.0 + n for n in range(N)]
    assert (targets.temperature, targets.vocab_size) == (2.5, V)


Change = Callable[[list[Any]], Any]


def header(name: str, value: Any) -> Change:
    return lambda replies: setattr(replies[0].header, name, value)


def piece(index: int, name: str, value: Any) -> Change:
    return lambda replies: setattr(replies[index].piece, name, value)


def trailer(name: str, value: Any) -> Change:
    return lambda replies: setattr(replies[-1].trailer, name, value)


def flip_a_bit(replies: list[Any]) -> None:
    data = bytearray(replies[2].piece.payload)
    data[3] ^= 16
    replies[2].piece.payload = bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (header("kind", pb.REPRESENTATION_HIDDEN), "has kind"),
        (header("dtype", pb.DTYPE_FLOAT16), "has dtype"),
        (header("num_rows", N + 1), "has num_rows 6; expected 5"),
        (header("row_bytes", 4), "has row_bytes"),
        (header("total_bytes", 1 << 40), "has total_bytes"),
        (header("vocab_size", V - 1), "has vocab_size"),
        (piece(2, "first_row", 3), "continues at row 3; expected row 2"),
        (piece(1, "first_row", 1), "continues at row 1; expected row 0"),
        (piece(2, "num_rows", 0), "continues at row"),
        (piece(2, "num_rows", 4), "more than 5 rows"),
        (piece(2, "num_rows", 1), "1 rows of the teacher's reply are 48 bytes; expected 24"),
        (piece(2, "payload", b"123"), "are 3 bytes"),
        (trailer("crc32", 5), "checksum differs"),
        (trailer("total_bytes", 5), "its trailer says 5"),
        (flip_a_bit, "checksum differs"),
        (lambda replies: replies[:-1], "ended after 5 of 5 rows without an error"),
        (lambda replies: replies[:2], "ended after 2 of 5 rows"),
        (lambda replies: replies[1:], "piece in the wrong place"),
        (lambda replies: [replies[0], replies[0], *replies[1:]], "header in the wrong place"),
        (lambda replies: [*replies, replies[1]], "piece in the wrong place"),
        (lambda replies: [*replies, replies[-1]], "trailer in the wrong place"),
        (lambda replies: [replies[0], replies[2], replies[1], *replies[3:]], "continues at row 2"),
        (lambda replies: [replies[0], replies[1], replies[3], replies[4]], "continues at row 4"),
        (lambda replies: [replies[0], replies[-1]], "ended after 0 of 5 rows"),
        (lambda replies: [pb.LogitsForBatchReply()], "None in the wrong place"),
        (lambda replies: [], "ended after 0"),
    ],
)
def test_an_invalid_reply_is_refused(change: Change, message: str) -> None:
    replies = dense_stream()
    changed = change(replies)
    with pytest.raises(TeacherError, match=message):
        assemble(arriving(replies if changed is None else changed), expected())


def test_another_models_reply_is_refused_as_such() -> None:
    with pytest.raises(WrongModel, match=r"has fingerprint .*, expected someone"):
        assemble(arriving(dense_stream()), expected(fingerprint="someone else"))


def test_a_masked_id_is_no_fault() -> None:
    rows = LOGITS.copy()
    rows[3, 2] = -math.inf
    targets = to_targets(assemble(arriving(dense_stream(rows)), expected()), expected(), 1.0, None)
    assert isinstance(targets, DenseTargets) and targets.logits_NV[3, 2] == -math.inf


@pytest.mark.parametrize(("ids", "value"), [(2, math.nan), (2, math.inf), (slice(V), -math.inf)])
def test_values_that_are_not_finite_are_refused(ids: int | slice, value: float) -> None:
    rows = LOGITS.copy()
    rows[3, ids] = value
    payload = assemble(arriving(dense_stream(rows)), expected())
    with pytest.raises(TeacherError, match="not finite"):
        to_targets(payload, expected(), 1.0, None)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ((3, 1, 0, V, 9, 9), "beyond the vocabulary of 6"),
        ((math.nan, 1, 0, 1, 9, 9), "not finite"),
        ((3, 1, 0, 1, 9, math.inf), "not finite"),
        ((-math.inf, -math.inf, 0, 1, 9, 9), "not finite"),
        ((3, 1, 0, 1, math.nan, 9), "not finite"),
        ((1, 3, 0, 1, 9, 9), "not in descending order"),
        ((3, 3, 1, 0, 9, 9), "not in descending order"),  # equal logits: the lower id first
        ((3, 3, 1, 1, 9, 9), "not in descending order"),
        ((3, 1, 2, 2, 9, 9), "has the same id twice"),
    ],
)
def test_top_k_values_out_of_range_are_refused(record: tuple[float, ...], message: str) -> None:
    replies = reply_stream(
        [struct.pack("<2f2I2f", *record)] * N,
        fingerprint="me",
        kind=pb.REPRESENTATION_TOP_K,
        dtype=pb.DTYPE_FLOAT32,
        vocab_size=V,
    )
    with pytest.raises(LecternError, match=message):
        to_targets(assemble(arriving(replies), expected("top_k")), expected("top_k"), 1.0, None)


def test_top_k_rows_in_order_are_accepted_and_one_row_out_of_order_is_refused() -> None:
    three = expected("top_k", representation=Representation("top_k", 3))
    logits: list[list[float]] = [[5, 5, 2], [0.0, -0.0, -1], [9, 8, 7]]
    ids = [[0, 4, 1], [2, 3, 0], [5, 0, 4]]

    def taken(ids: list[list[int]]) -> TopKTargets:
        rows = [
            struct.pack("<3f3I2f", *row, *of, 9, 9) for row, of in zip(logits, ids, strict=True)
        ]
        payload = Payload(np.frombuffer(b"".join(rows), np.uint8), 0)
        targets = to_targets(payload, dataclasses.replace(three, num_rows=3), 1.0, None)
        assert isinstance(targets, TopKTargets)
        return targets

    assert taken(ids).ids_NK.tolist() == ids
    for row, wrong, message in (
        (0, [4, 0, 1], "not in descending order"),
        (0, [0, 4, 0], "has the same id twice"),
        (1, [3, 2, 0], "not in descending order"),
        (2, [5, 0, 5], "has the same id twice"),
    ):
        with pytest.raises(TeacherError, match=message):
            taken([*ids[:row], wrong, *ids[row + 1 :]])


def whole_vocabulary(log_rest: float) -> TopKTargets:
    replies = reply_stream(
        [struct.pack("<2f2I2f", 3, 1, 0, 1, log_rest, 9)] * N,
        fingerprint="me",
        kind=pb.REPRESENTATION_TOP_K,
        dtype=pb.DTYPE_FLOAT32,
        vocab_size=2,
    )
    two = expected("top_k", widths=Widths(2, D, "bfloat16"))
    targets = to_targets(assemble(arriving(replies), two), two, 1.0, None)
    assert isinstance(targets, TopKTargets)
    return targets


def test_the_rest_of_the_whole_vocabulary_is_minus_infinity() -> None:
    assert whole_vocabulary(-math.inf).log_rest_t_N.isneginf().all()


@pytest.mark.parametrize("log_rest", [-80.0, math.inf, math.nan])
def test_a_rest_of_the_whole_vocabulary_is_refused(log_rest: float) -> None:
    with pytest.raises(TeacherError, match="has a rest, but its top_k covers every token"):
        whole_vocabulary(log_rest)


def test_every_format_becomes_targets() -> None:
    assert set(reply._TARGETS) == set(FORMATS)
