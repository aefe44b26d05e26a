"""Packing whole chats into rows: no chat is cut, and the rows are those of best fit."""

import numpy as np
import numpy.typing as npt
import pytest

from lectern_common.tokens.chat_rows import (
    best_fit,
    chat_lengths,
    chat_shares,
    fit,
    learnt_labels,
    segments,
)


def lengths_of(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def one_by_one(lengths: npt.NDArray[np.int64], capacity: int) -> list[int]:
    """Returns the tokens of each row that best fit makes, longest first, one chat at a time."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting) if fitting else capacity
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return sorted(capacity - room for room in rooms)


def test_each_chat_goes_into_the_fullest_row_with_room_for_it() -> None:
    packing = best_fit(lengths_of(3, 6, 4, 7, 1, 2, 5), 10)
    rows = [packing.row(index).tolist() for index in range(len(packing))]
    # 7; 6; 5; then 4 beside 6, 3 beside 7, 2 and 1 beside 5. Rows by their first chats.
    assert rows == [[0, 3], [1, 2], [4, 5, 6]]
    assert packing.row_tokens(lengths_of(3, 6, 4, 7, 1, 2, 5)).tolist() == [10, 10, 8]


@pytest.mark.parametrize("capacity", [1, 2, 9, 33, 64])
def test_rows_are_those_of_best_fit_one_chat_at_a_time(capacity: int) -> None:
    draw = np.random.default_rng(capacity)
    for count in (1, 2, 7, 60, 200):
        lengths = draw.integers(1, capacity + 1, count)
        packing = best_fit(lengths, capacity)
        assert sorted(packing.chats.tolist()) == list(range(count))
        assert sorted(packing.row_tokens(lengths).tolist()) == one_by_one(lengths, capacity)
        firsts = [packing.row(index)[0] for index in range(len(packing))]
        assert firsts == sorted(firsts)
        assert all((np.diff(packing.row(index)) > 0).all() for index in range(len(packing)))


def test_the_packing_is_a_function_of_the_lengths() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 5000)
    one, other = best_fit(lengths, 128), best_fit(lengths.copy(), 128)
    assert one.chats.tolist() == other.chats.tolist()
    assert one.offsets.tolist() == other.offsets.tolist()


def test_no_chats_make_no_rows() -> None:
    assert len(best_fit(lengths_of(), 8)) == 0


def test_many_chats_fill_their_rows_almost_whole() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.5, 0.9, 100_000), 1, 1025).astype(np.int64)
    packing = best_fit(lengths, 1025)
    assert packing.row_tokens(lengths).max() <= 1025
    assert 1 - lengths.sum() / (len(packing) * 1025) < 0.01


def test_a_chat_of_seq_len_and_its_last_label_is_not_long() -> None:
    lengths = lengths_of(8, 9, 10, 30)
    cut = fit(lengths, 8, "cut")
    assert cut.chosen.tolist() == [0, 1, 2, 3] and cut.lengths.tolist() == [8, 9, 9, 9]
    assert (cut.longer, cut.cut, cut.dropped) == (2, 2, 0)
    drop = fit(lengths, 8, "drop")
    assert drop.chosen.tolist() == [0, 1] and drop.lengths.tolist() == [8, 9]
    assert (drop.longer, drop.cut, drop.dropped) == (2, 0, 2)


def test_a_chat_without_a_label_is_left_out_and_counted_once() -> None:
    is_labelled = np.array([True, False, True, False])
    cut = fit(lengths_of(8, 9, 10, 30), 8, "cut", is_labelled)
    assert cut.chosen.tolist() == [0, 2]
    assert (cut.longer, cut.cut, cut.dropped, cut.unlabelled) == (2, 1, 0, 2)
    drop = fit(lengths_of(8, 9, 10, 30), 8, "drop", is_labelled)
    assert drop.chosen.tolist() == [0]
    assert (drop.longer, drop.cut, drop.dropped, drop.unlabelled) == (2, 0, 2, 1)


def test_tokens_are_assigned_to_chats_wherever_a_block_begins() -> None:
    starts = np.array([0, 3, 4, 11])
    owner = np.repeat([0, 1, 2, 3], chat_lengths(starts, 15))
    for first in range(15):
        for count in range(1, 16 - first):
            chat, begins, offsets = segments(starts, first, count)
            here = owner[first : first + count]
            assert chat == here[0]
            assert begins.tolist() == [0, *(np.flatnonzero(np.diff(here)) + 1).tolist()]
            assert offsets.tolist() == [first + i - int(starts[here[i]]) for i in range(count)]


def test_learnt_labels_are_counted_within_each_limit() -> None:
    draw = np.random.default_rng(3)
    mask, starts = (draw.random(500) < 0.4).astype(np.uint8), np.array([0, 1, 40, 41, 300])
    counts = learnt_labels(np.split(mask, [17, 41, 333]), starts, [1, 5, 50, 500])
    chats = np.split(mask, starts[1:])
    for row, limit in zip(counts, [1, 5, 50, 500], strict=True):
        assert row.tolist() == [int(chat[1:limit].sum()) for chat in chats]


def test_shares_are_of_positions_and_of_what_is_learnt() -> None:
    """Chats of 5, 4 and 20 tokens, of which 3, 0 and 9 are learnt; rows of 8."""
    lengths, within, whole = lengths_of(5, 4, 20), lengths_of(3, 0, 2), lengths_of(3, 0, 9)
    cut = chat_shares(lengths, within, whole, 8, "cut")
    assert (cut.chats, cut.longer, cut.cut, cut.dropped, cut.unlabelled) == (3, 1, 1, 0, 1)
    assert cut.rows == 2  # 5 tokens, and 9 of which the last is only a label
    assert cut.padding == 1 - (5 + 8) / 16
    assert (cut.labels, cut.labels_of_positions) == (5, 5 / 16)
    assert cut.labels_lost == pytest.approx(7 / 12)
    drop = chat_shares(lengths, within, whole, 8, "drop")
    assert (drop.rows, drop.cut, drop.dropped, drop.labels) == (1, 0, 1, 3)
    assert drop.labels_lost == 0.75
