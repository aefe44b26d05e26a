"""Where the rows of each recorded sequence are, found by its tokens. No torch.

A sequence is found by every token up to the last one that has a row, whatever batch, step or row
of the data it is in: a teacher's answer after a token depends on those before it and on no other.
Equal tokens of which other ones are asked about, such as a turn of a chat that is once learnt and
once not, have an entry each, in the order of the data.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData

_KEY_BYTES = 16

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


@dataclass(frozen=True)
class SequenceIndex:
    """The entries of a part, in rising order of keys."""

    entries: np.ndarray  # ENTRY [sequences]

    @cached_property
    def _keys(self) -> np.ndarray:
        return _comparable(self.entries["key"])

    @classmethod
    def read(cls, path: Path) -> "SequenceIndex":
        """Reads index.bin. Raises CorruptData unless it holds whole entries in rising order."""
        data = path.read_bytes()
        if len(data) % ENTRY.itemsize:
            raise CorruptData(f"{path} does not hold whole entries of {ENTRY.itemsize} bytes")
        entries = np.frombuffer(data, ENTRY)
        keys = _comparable(entries["key"])
        if len(keys) > 1 and not (keys[:-1] <= keys[1:]).all():
            raise CorruptData(f"the entries of {path} are not in rising order of their keys")
        return cls(entries)

    @classmethod
    def sorted(cls, entries: np.ndarray) -> "SequenceIndex":
        """Returns the index of entries in any order; those with one key stay in theirs."""
        return cls(entries[np.argsort(_comparable(entries["key"]), kind="stable")])

    def find(self, key: bytes) -> np.ndarray:
        """Returns the entries with this key, one for each mask; none if it is not there."""
        wanted = _comparable(np.frombuffer(key, "V16"))[0]
        first = int(np.searchsorted(self._keys, wanted))
        last = first
        while last < len(self._keys) and self._keys[last] == wanted:
            last += 1
        return self.entries[first:last]


def _comparable(keys: np.ndarray) -> np.ndarray:
    """Returns keys as fixed-width byte strings that numpy orders as bytes.

    numpy ignores NUL bytes at the end of a string, so a byte that is not NUL ends each.
    """
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, _KEY_BYTES)
    ended = np.full((len(raw), _KEY_BYTES + 1), 1, np.uint8)
    ended[:, :_KEY_BYTES] = raw
    return ended.view(f"S{_KEY_BYTES + 1}").ravel()
