"""Rows that are in two sets, found by hash and compared."""

import numpy as np
import numpy.typing as npt

from student_trainer.batch_sources import TokenStream
from student_trainer.datasets import StreamRows
from student_trainer.duplicates import in_both, row_hashes

S = 4


def rows_and_hashes(*rows: list[int]) -> tuple[StreamRows, npt.NDArray[np.uint64]]:
    """Rows of S + 1 tokens, each of which begins with the last of the one before."""
    tokens = np.array([rows[0][0], *(token for row in rows for token in row[1:])], np.uint32)
    return StreamRows(TokenStream([tokens]), S), row_hashes(tokens, S)


def test_equal_rows_have_equal_hashes_and_one_token_makes_another() -> None:
    tokens = np.random.default_rng(0).integers(0, 1 << 32, 10 * S + 1, dtype=np.uint32)
    hashes = row_hashes(tokens, S)
    assert len(set(hashes.tolist())) == 10
    np.testing.assert_array_equal(row_hashes(tokens[: 3 * S + 1], S), hashes[:3])
    for place in range(S + 1):
        changed = tokens[: S + 1].copy()
        changed[place] ^= 1 << 31
        assert row_hashes(changed, S)[0] != hashes[0]


def test_the_order_of_tokens_matters() -> None:
    one, other = (np.array(row, np.uint32) for row in ([1, 2, 3, 4, 5], [1, 3, 2, 4, 5]))
    assert row_hashes(one, S)[0] != row_hashes(other, S)[0]


def test_a_row_is_a_duplicate_where_every_token_is_the_same() -> None:
    rows, hashes = rows_and_hashes([0, 1, 2, 3, 4], [4, 9, 9, 9, 5], [5, 6, 7, 8, 9])
    others, other_hashes = rows_and_hashes(
        [5, 6, 7, 8, 9], [9, 1, 2, 3, 4], [4, 9, 9, 9, 5], [5, 6, 7, 8, 9]
    )
    assert in_both(rows, hashes, others, other_hashes).tolist() == [False, True, True]


def test_an_equal_hash_alone_is_no_duplicate() -> None:
    rows, _ = rows_and_hashes([0, 1, 2, 3, 4], [4, 5, 6, 7, 8])
    others, _ = rows_and_hashes([9, 9, 9, 9, 4], [4, 5, 6, 7, 8])
    same = np.array([7, 7], np.uint64)
    assert in_both(rows, same, others, same).tolist() == [False, True]
