"""Where the rows of each recorded sequence are, found by its tokens. No torch.

A sequence is found by every token up to the last one that has a row, whatever batch, step or row
of the data it is in: a teacher's answer after a token depends on those before it and on no other.
Equal tokens of which other ones are asked about, such as a turn of a chat that is once learnt and
once not, have an entry each, in the order of the data.
"""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData
from lectern_common.tokens.shards import ShardFile

_KEY_BYTES = 16
# Entries that are read to find one, and how many such blocks are read at once at the opening.
_BLOCK = 64
_BLOCKS_AT_ONCE = 1024

# One sequence, 48 bytes, in rising order of keys.
ENTRY = np.dtype(
    [
        ("key", "V16"),  # sequence_key of its tokens
        ("first_byte", "<u8"),  # of its rows in rows.bin
        ("mask_byte", "<u8"),  # of its mask in masks.bin
        ("num_bytes", "<u4"),  # of its rows
        ("num_tokens", "<u4"),  # that the key covers
        ("num_rows", "<u4"),  # set bits of its mask
        ("crc32", "<u4"),  # of its rows and then its mask
    ]
)


def sequence_key(ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> bytes:
    """Returns the key of a sequence: BLAKE2b, 16 bytes, of its tokens up to the last asked one.

    Args:
        ids_S: its tokens, hashed as uint32 little-endian.
        asked_S: which have a row; at least one.
    """
    return hashlib.blake2b(covered(ids_S, asked_S).tobytes(), digest_size=_KEY_BYTES).digest()


def covered(
    ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint32]:
    """Returns the tokens up to the last asked one, uint32 little-endian."""
    return ids_S[: int(np.flatnonzero(asked_S)[-1]) + 1].astype("<u4")


def checksum(rows: bytes | memoryview, mask: bytes) -> int:
    """Returns the CRC-32 of a sequence's rows and mask."""
    return zlib.crc32(mask, zlib.crc32(rows))


class SequenceIndex:
    """The entries of a part, in rising order of keys, read where they are needed.

    Of every block of entries only the first key is in memory, because an index may be of tens of
    millions of sequences.

    Attributes:
        sequences: how many entries there are.
        rows: how many rows those have.
    """

    def __init__(self, path: Path) -> None:
        """Reads it once. Raises CorruptData unless it holds whole entries in rising order."""
        if path.exists() and path.stat().st_size % ENTRY.itemsize:
            raise CorruptData(f"{path} does not hold whole entries of {ENTRY.itemsize} bytes")
        self._entries = ShardFile(path, "u1")
        self.sequences = len(self._entries) // ENTRY.itemsize
        self.rows = 0
        firsts, last = [], None
        for start in range(0, self.sequences, _BLOCK * _BLOCKS_AT_ONCE):
            block = self._read(start, start + _BLOCK * _BLOCKS_AT_ONCE)
            keys = comparable(block["key"])
            is_rising = bool((keys[:-1] <= keys[1:]).all())
            if not is_rising or (last is not None and keys[0] < last):
                raise CorruptData(f"the entries of {path} are not in rising order of their keys")
            firsts.append(keys[::_BLOCK].copy())
            last = keys[-1]
            self.rows += int(block["num_rows"].sum(dtype=np.int64))
        self._firsts = np.concatenate(firsts)

    def find(self, key: bytes) -> np.ndarray:
        """Returns the entries with this key, one for each mask; none if it is not there.

        Raises:
            DataUnavailable: the file has changed, or cannot be read.
        """
        wanted = comparable(np.frombuffer(key, "V16"))[0]
        # The block before the first that begins with the key may end with it.
        block = max(0, int(np.searchsorted(self._firsts, wanted)) - 1)
        found = []
        while block < len(self._firsts) and self._firsts[block] <= wanted:
            entries = self._read(block * _BLOCK, (block + 1) * _BLOCK)
            keys = comparable(entries["key"])
            first, end = (int(np.searchsorted(keys, wanted, side)) for side in ("left", "right"))
            found.append(entries[first:end])
            block += 1
        return np.concatenate(found) if found else np.empty(0, ENTRY)

    def _read(self, first: int, last: int) -> np.ndarray:
        data = self._entries[first * ENTRY.itemsize : last * ENTRY.itemsize]
        return np.frombuffer(data.tobytes(), ENTRY)


def comparable(keys: np.ndarray) -> np.ndarray:
    """Returns keys as fixed-width byte strings, which numpy orders as bytes."""
    raw = np.ascontiguousarray(keys).view(np.uint8)
    return raw.reshape(-1, _KEY_BYTES).view(f"S{_KEY_BYTES}").ravel()
