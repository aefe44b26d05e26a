"""Rows that stand in two sets, token for token.

Candidates are found by hash, 8 bytes a row, and then compared, so that what is called a duplicate
is one.
"""

import numpy as np
import numpy.typing as npt

from student_trainer.datasets import Rows
from student_trainer.seeds import Key, raw_bits


def row_hashes(tokens: npt.NDArray[np.uint32], seq_len: int) -> npt.NDArray[np.uint64]:
    """Returns a hash of each row of seq_len + 1 tokens; row i begins at token i * seq_len.

    Multilinear: the sum of random factors times tokens, modulo 2^64. Two different rows have the
    same one with a probability of at most 2^-32, whatever is in them.

    Args:
        tokens: a whole number of rows, and the last label: [n * seq_len + 1].
        seq_len: labels of a row.
    """
    factors = raw_bits(Key.ROW_HASH, (0,), seq_len + 1)
    inputs_NS = tokens[:-1].reshape(-1, seq_len)
    last_N = tokens[seq_len::seq_len].astype(np.uint64)
    sums_N = np.einsum("ns,s->n", inputs_NS, factors[:seq_len])
    return np.asarray(sums_N + last_N * factors[seq_len], np.uint64)


def in_both(
    rows: Rows,
    hashes: npt.NDArray[np.uint64],
    others: Rows,
    other_hashes: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Returns for each of `rows` whether one of `others` has the same tokens, [len(rows)].

    Args:
        rows, others: of equal length.
        hashes, other_hashes: theirs, as `row_hashes` gives them.
    """
    order = np.argsort(other_hashes, kind="stable")
    ordered = other_hashes[order]
    first = np.searchsorted(ordered, hashes, "left")
    end = np.searchsorted(ordered, hashes, "right")
    found = np.zeros(len(rows), bool)
    for index in np.flatnonzero(first < end):
        row = rows.row(int(index))
        candidates = order[first[index] : end[index]]
        found[index] = any(np.array_equal(row, others.row(int(other))) for other in candidates)
    return found
