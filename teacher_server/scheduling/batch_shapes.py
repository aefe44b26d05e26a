"""Chooses the waiting sequences to compute together with the leader, whose turn it is.

equal_lengths   for "independent": sequences of the very same length
near_lengths    for "throughput": sequences of nearly its length, padded to the longest of them
"""

import bisect
from collections.abc import Sequence

# Padding may be this share of all tokens computed, and five times that in a single batch: short
# sequences gain more from a larger batch than a few tokens of padding cost.
MAX_PADDING = 0.019
_MAX_BATCH_PADDING = 5 * MAX_PADDING


def equal_lengths(lengths: Sequence[int], leader: int, max_tokens: int) -> list[int]:
    """Returns indices of sequences of the leader's length, leader first, at most `max_tokens`.

    Their number is a power of two, so that few shapes occur.
    """
    length = lengths[leader]
    same = [index for index, other in enumerate(lengths) if other == length and index != leader]
    room = max(1, min(1 + len(same), max_tokens // length))
    return [leader, *same][: 1 << (room.bit_length() - 1)]


class NearLengths:
    """Chooses batches whose padding, over all batches so far, stays under MAX_PADDING."""

    def __init__(self) -> None:
        self._allowance = 0.0  # tokens of padding that earlier batches left unused

    def __call__(self, lengths: Sequence[int], leader: int, max_tokens: int) -> list[int]:
        """Returns indices of the leader, first, and of sequences of nearly its length.

        Padding counts as tokens: the longest length times their number is at most `max_tokens`,
        unless the leader by itself has more.
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        by_length = [lengths[index] for index in order]
        position = order.index(leader, bisect.bisect_left(by_length, lengths[leader]))
        first = last = position
        total = lengths[leader]
        while True:
            steps = []
            if first > 0:
                steps.append((first - 1, last))
            if last + 1 < len(order):
                steps.append((first, last + 1))
            choices = []
            for low, high in steps:
                added = by_length[low] if low < first else by_length[high]
                padded = by_length[high] * (high - low + 1)
                padding = padded - total - added
                if padded <= max_tokens and padding <= self._limit(total + added):
                    choices.append((padding, low, high, added))
            if not choices:
                break
            _, first, last, added = min(choices)
            total += added
        padding = by_length[last] * (last - first + 1) - total
        self._allowance += MAX_PADDING * total - padding
        return [leader] + [order[at] for at in range(first, last + 1) if order[at] != leader]

    def _limit(self, tokens: int) -> float:
        return min(self._allowance + MAX_PADDING * tokens, _MAX_BATCH_PADDING * tokens)
