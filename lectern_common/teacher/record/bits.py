"""Packs ids into as many bits as they need, and log-probabilities into 16 or 8. No torch.

Legend: N rows, M values of a row.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_NO_MASS = {16: (1 << 16) - 1, 8: (1 << 8) - 1}  # the code of log 0
_STEPS_PER_NAT = 1 << 11  # of 16-bit codes
_LOWEST = 32.0  # nats: what is less likely is stored as the least likely code


def bits_per_id(vocab_size: int) -> int:
    """Returns how many bits hold every id below `vocab_size`: ceil(log2 V), at least 1."""
    return max(1, (vocab_size - 1).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Returns the bytes that `count` values of `bits` bits take, padded to whole bytes."""
    return (count * bits + 7) // 8


def pack_bits(values_NM: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.uint8]:
    """Returns each row's values one after the other, lowest bit first: uint8 [N, packed_bytes].

    Args:
        values_NM: each at least 0 and below 2 ** bits.
        bits: at most 32.
    """
    places = np.arange(bits, dtype=np.uint32)
    values_NM = values_NM.astype(np.uint32)
    bits_NMb = ((values_NM[:, :, None] >> places) & np.uint32(1)).astype(np.uint8)
    return np.packbits(bits_NMb.reshape(len(values_NM), -1), axis=-1, bitorder="little")


def unpack_bits(packed_NB: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.int64]:
    """Returns the values that `pack_bits` packed, int64 [N, count]."""
    firsts = np.arange(count) * bits
    offsets, shifts = firsts >> 3, (firsts & 7).astype(np.uint64)
    # Each value lies within the 8 bytes from its first one on.
    padded = np.zeros((len(packed_NB), packed_NB.shape[1] + 8), np.uint8)
    padded[:, : packed_NB.shape[1]] = packed_NB
    found = np.zeros((len(packed_NB), count), np.uint64)
    for byte in range((bits + 14) // 8):
        found |= padded[:, offsets + byte].astype(np.uint64) << np.uint64(8 * byte)
    mask = np.uint64((1 << bits) - 1)
    return ((found >> shifts) & mask).astype(np.int64)


def log_prob_codes(
    log_probs: npt.NDArray[np.floating], bits: int
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Returns the codes of log-probabilities, in nats, of the same shape.

    16 bits: steps of 1/2048 nat from 0 down, so that a probability is off by at most 0.025 %.
    8 bits: the square root of -log p in 254 steps, so that likely ids are kept more exactly than
    unlikely ones: at most 0.8 % off at p = 0.9, 2 % at 0.5, 4 % at 0.1, 8 % at 1e-4. What is below
    e^-32 is stored as that; -inf has a code of its own, the largest.

    Args:
        log_probs: at most 0, or above it by float32's rounding; may hold -inf.
        bits: 16 or 8.
    """
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if bits == 16 else np.uint8
    none = _NO_MASS[bits]
    below = np.clip(-log_probs.astype(np.float64), 0.0, _LOWEST)
    if bits == 16:
        codes = np.rint(below * _STEPS_PER_NAT)
    else:
        codes = np.rint(np.sqrt(below / _LOWEST) * (none - 1))
    codes = np.minimum(codes, none - 1)
    return np.asarray(np.where(np.isneginf(log_probs), none, codes), dtype)


def log_probs_of(codes: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.float64]:
    """Returns the log-probabilities that the codes stand for, float64; see `log_prob_codes`."""
    none = _NO_MASS[bits]
    if bits == 16:
        below = codes.astype(np.float64) / _STEPS_PER_NAT
    else:
        below = _LOWEST * np.square(codes.astype(np.float64) / (none - 1))
    return np.where(codes == none, -np.inf, -below)
