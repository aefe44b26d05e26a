"""A set of 16-byte digests that takes little more than 16 bytes for each, for millions of them."""

import numpy as np

_BYTES = 16
_DTYPE = f"S{_BYTES}"  # ends with NULs or not: of equal lengths, equal strings are equal digests


class DigestSet:
    """Digests in a sorted array, and those added lately in a set, which is merged as it grows."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, _DTYPE)
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, digest: bytes) -> bool:
        if digest in self._recent:
            return True
        wanted = np.frombuffer(digest, _DTYPE)
        place = int(np.searchsorted(self._sorted, wanted)[0])
        return place < len(self._sorted) and bool(self._sorted[place] == wanted[0])

    def add(self, digest: bytes) -> None:
        """Adds a digest that is not in it."""
        self._recent.add(digest)
        if len(self._recent) >= max(1 << 16, len(self._sorted) // 8):
            recent = np.frombuffer(b"".join(self._recent), _DTYPE)
            self._recent.clear()
            self._sorted = np.concatenate([self._sorted, recent])
            self._sorted.sort()
