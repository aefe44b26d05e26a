"""Sampled replies: valid ones are assembled, all others refused."""

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lectern_common.errors import TeacherError
from lectern_common.wire.formats import Representation, Widths
from protos import teacher_pb2 as pb
from student_trainer.targets import SampledTargets
from student_trainer.teacher.reply import Expected, assemble, to_targets
from tests.support.training.wire_teacher import arriving, reply_stream

V, U = 6, 4
Record = tuple[int, int, float]  # id, count, log-probability
ROWS: list[list[Record]] = [
    [(0, 1, -1.5), (3, 2, -0.75), (5, 1, -2.0)],
    [(2, 4, -0.125)],
    [(1, 3, -0.25), (2, 1, -2.5)],
    [(0, 1, -1.5), (1, 1, -1.5), (2, 1, -1.5), (4, 1, -1.5)],
    [(5, 4, 0.0)],
]


def expected(**changes: Any) -> Expected:
    settings: dict[str, Any] = {
        "fingerprint": "me",
        "representation": Representation("sampled", num_draws=U, seed=9),
        "num_rows": len(ROWS),
        "widths": Widths(V, 8, "bfloat16"),
    }
    return Expected(**{**settings, **changes})


def stream(rows: list[list[Record]], piece_rows: int = 2) -> list[pb.LogitsForBatchReply]:
    packed = [
        b"".join(struct.pack("<If", i | (count - 1) << 24, log_p) for i, count, log_p in row)
        for row in rows
    ]
    return reply_stream(
        packed,
        fingerprint="me",
        kind=pb.REPRESENTATION_SAMPLED,
        dtype=pb.DTYPE_FLOAT32,
        vocab_size=V,
        piece_rows=piece_rows,
    )


def targets_of(replies: Any, **changes: Any) -> SampledTargets:
    wanted = expected(**changes)
    targets = to_targets(assemble(arriving(replies), wanted), wanted, 2.5, None)
    assert isinstance(targets, SampledTargets)
    return targets


def rows_of(targets: SampledTargets) -> list[list[Record]]:
    rows = [targets.rows(row, row + 1) for row in range(len(targets))]
    return [
        list(zip(row.ids_R.tolist(), row.counts_R.tolist(), row.log_probs_R.tolist(), strict=True))
        for row in rows
    ]


@pytest.mark.parametrize("piece_rows", [1, 2, 5])
def test_rows_of_any_length_arrive_in_order_and_bit_for_bit(piece_rows: int) -> None:
    replies = stream(ROWS, piece_rows)
    targets = targets_of(iter(replies))
    assert rows_of(targets) == ROWS
    assert (targets.num_draws, targets.temperature, targets.vocab_size) == (U, 2.5, V)
    payload = assemble(arriving(replies), expected())
    assert payload.received_bytes == sum(len(reply.SerializeToString()) for reply in replies)


def test_256_draws_of_one_id_are_one_record() -> None:
    most = Representation("sampled", num_draws=256)
    targets = targets_of(stream([[(5, 256, -0.5)]]), representation=most, num_rows=1)
    assert rows_of(targets) == [[(5, 256, -0.5)]]


Change = Callable[[list[Any]], Any]


def header(name: str, value: Any) -> Change:
    return lambda replies: setattr(replies[0].header, name, value)


def piece(index: int, name: str, value: Any) -> Change:
    return lambda replies: setattr(replies[index].piece, name, value)


def lengths(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def flip_a_bit(replies: list[Any]) -> None:
    data = bytearray(replies[2].piece.payload)
    data[4] ^= 1
    replies[2].piece.payload = bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (header("row_bytes", 8), "has row_bytes 8; expected 0"),
        (header("total_bytes", 88), "has total_bytes 88; expected 0"),
        (header("kind", pb.REPRESENTATION_TOP_K), "has kind"),
        (header("dtype", pb.DTYPE_BFLOAT16), "has dtype"),
        (piece(1, "row_lengths", b""), "have 0 bytes of row_lengths; expected 8"),
        (piece(1, "row_lengths", lengths(3)), "have 4 bytes of row_lengths; expected 8"),
        (piece(1, "row_lengths", lengths(3, 1, 1)), "have 12 bytes of row_lengths"),
        (piece(1, "row_lengths", lengths(4, 0)), "has 0 or 4 ids; it must have 1 to 4"),
        (piece(1, "row_lengths", lengths(5, 1)), "has 1 or 5 ids; it must have 1 to 4"),
        (piece(1, "row_lengths", lengths(2**32 - 1, 5)), "has 5 or 4294967295 ids"),
        (piece(1, "row_lengths", lengths(3, 2)), "are 32 bytes, but their row_lengths make 40"),
        (piece(1, "row_lengths", lengths(1, 3)), "does not have 4 draws"),
        (piece(1, "payload", b"1234567"), "are 7 bytes, but their row_lengths make 32"),
        (piece(2, "first_row", 3), "continues at row 3; expected row 2"),
        (lambda replies: setattr(replies[-1].trailer, "total_bytes", 5), "trailer says 5"),
        (lambda replies: setattr(replies[-1].trailer, "crc32", 5), "checksum differs"),
        (flip_a_bit, "checksum differs"),
        (lambda replies: replies[:-1], "ended after 5 of 5 rows"),
        (lambda replies: replies[:2], "ended after 2 of 5 rows"),
        (lambda replies: replies[1:], "piece in the wrong place"),
    ],
)
def test_an_invalid_sampled_reply_is_refused(change: Change, message: str) -> None:
    replies = stream(ROWS)
    changed = change(replies)
    with pytest.raises(TeacherError, match=message):
        targets_of(replies if changed is None else changed)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([(0, 3, -1.0)], "does not have 4 draws"),
        ([(0, 3, -1.0), (1, 2, -1.0)], "does not have 4 draws"),
        ([(3, 2, -1.0), (1, 2, -1.0)], "not in ascending order"),
        ([(3, 2, -1.0), (3, 2, -1.0)], "not in ascending order"),
        ([(V, 4, -1.0)], "beyond the vocabulary of 6"),
        ([(2, 2, -1.0), (2**24 - 1, 2, -1.0)], "beyond the vocabulary of 6"),
        ([(2, 4, math.nan)], "not finite"),
        ([(2, 4, -math.inf)], "not finite"),
        ([(2, 4, math.inf)], "not finite"),
        ([(2, 4, 3e38)], "sum to more than 1"),
        ([(2, 4, 1e-5)], "sum to more than 1"),
        ([(2, 2, -0.1), (3, 2, -0.1)], "sum to more than 1"),
    ],
)
def test_an_impossible_row_of_draws_is_refused(row: list[Record], message: str) -> None:
    for place in (0, 2, 4):
        with pytest.raises(TeacherError, match=message):
            targets_of(stream([*ROWS[:place], row, *ROWS[place + 1 :]]))


def test_log_probabilities_slightly_above_zero_by_rounding_are_accepted() -> None:
    rows = [*ROWS[:4], [(5, 4, float(np.float32(1e-7)))]]
    assert rows_of(targets_of(stream(rows))) == rows


def test_a_vocabulary_smaller_than_the_draws_bounds_a_row() -> None:
    row = [(0, 1, -1.5), (1, 1, -1.5), (2, 2, -1.5)]
    replies = stream([row])
    replies[0].header.vocab_size = 2
    with pytest.raises(TeacherError, match="it must have 1 to 2"):
        targets_of(replies, num_rows=1, widths=Widths(2, 8, "bfloat16"))


def test_row_lengths_of_equal_rows_are_refused() -> None:
    dense = reply_stream(
        [np.zeros(V, "<f4").tobytes()],
        fingerprint="me",
        kind=pb.REPRESENTATION_DENSE,
        dtype=pb.DTYPE_FLOAT32,
        vocab_size=V,
    )
    dense[1].piece.row_lengths = lengths(6)
    with pytest.raises(TeacherError, match="its rows are of equal length"):
        assemble(arriving(dense), expected(representation=Representation("dense"), num_rows=1))


@st.composite
def valid_rows(draw: st.DrawFn) -> list[list[Record]]:
    rows: list[list[Record]] = []
    for _ in range(len(ROWS)):
        drawn = draw(st.lists(st.integers(0, V - 1), min_size=U, max_size=U))
        ids = sorted(set(drawn))
        log_p = float(np.float32(-math.log(len(ids)) - 0.25))
        rows.append([(i, drawn.count(i), log_p) for i in ids])
    return rows


@settings(max_examples=100, deadline=None)
@given(valid_rows(), st.integers(1, 5))
def test_any_rows_of_draws_arrive_as_they_were_sent(
    rows: list[list[Record]], piece_rows: int
) -> None:
    assert rows_of(targets_of(stream(rows, piece_rows))) == rows


@st.composite
def broken_replies(draw: st.DrawFn) -> list[pb.LogitsForBatchReply]:
    """Draws valid rows with a few changes; the checksum fits, so the teacher itself is wrong."""
    rows = draw(valid_rows())
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        what = draw(st.sampled_from(["id", "count", "log_prob", "drop", "repeat", "swap", "merge"]))
        index = draw(st.integers(0, len(row) - 1)) if row else None
        if index is None:
            continue
        number, count, log_p = row[index]
        if what == "id":
            row[index] = (draw(st.integers(0, V) | st.integers(0, 2**24 - 1)), count, log_p)
        elif what == "count":
            row[index] = (number, draw(st.integers(1, U) | st.integers(1, 256)), log_p)
        elif what == "log_prob":
            row[index] = (number, count, draw(st.floats(-3, 0.5, width=32) | st.floats(width=32)))
        elif what == "drop":
            del row[index]
        elif what == "repeat":
            row.insert(index, row[index])
        elif what == "swap":
            row[0], row[index] = row[index], row[0]
        else:
            row += rows[0]
    replies = stream(rows, draw(st.integers(1, 4)))
    if draw(st.integers(0, 3)) == 0:
        part = draw(st.sampled_from(replies[1:-1])).piece
        kept = np.frombuffer(part.row_lengths, "<u4").tolist()
        part.row_lengths = draw(
            st.binary(max_size=16)
            | st.permutations(kept).map(lambda them: lengths(*them))
            | st.lists(st.integers(0, U + 1), max_size=4).map(lambda them: lengths(*them))
        )
    return replies


@settings(max_examples=400, deadline=None)
@given(broken_replies())
def test_any_reply_is_refused_or_gives_rows_of_draws(
    replies: list[pb.LogitsForBatchReply],
) -> None:
    try:
        targets = targets_of(replies)
    except TeacherError:
        return
    assert len(targets) == len(ROWS)
    for row in rows_of(targets):
        ids, counts, log_probs = zip(*row, strict=True)
        assert sum(counts) == U
        assert list(ids) == sorted(set(ids))
        assert 0 <= ids[0] <= ids[-1] < V
        assert all(log_p <= 1e-6 for log_p in log_probs)
        assert sum(math.exp(log_p) for log_p in log_probs) <= 1 + 1e-6
