"""metrics.index: the chunks of a metrics.jsonl, appended to as it grows.

The first line names the format, its version and the inode of metrics.jsonl; then come the chunks,
each with its lengths and a CRC-32. A chunk that a kill left torn, or that is damaged, ends what is
read.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.reading.series.chunk import LEAF, LEAVES, POINT, Chunk
from control_plane.reading.series.stats import STATS
from lectern_common.files import write_atomic

_FORMAT = "lectern metrics index 1"
_FRAME = struct.Struct("<III")  # CRC-32 of the rest, bytes of JSON, bytes of arrays


class IndexFile:
    """Reads and writes the file. One process writes it: the control plane."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends: list[int] = []  # in this file: of the first line, then of each chunk

    @property
    def is_there(self) -> bool:
        """Whether `read` found the file, or `write` wrote it."""
        return bool(self._ends)

    def read(self) -> tuple[int | None, list[Chunk]]:
        """Returns the inode and the chunks; (None, []) if there is no such file, or another's."""
        self._ends = []
        try:
            data = self._path.read_bytes()
            head, _, _ = data[:200].partition(b"\n")
            name, _, inode = head.decode().rpartition(" ")
            if name != _FORMAT:
                return None, []
            found = int(inode)
        except (OSError, ValueError):
            return None, []
        self._ends = [len(head) + 1]
        chunks: list[Chunk] = []
        while (decoded := _decoded(data, self._ends[-1])) is not None:
            chunk, end = decoded
            if chunk.start != (chunks[-1].end if chunks else 0):
                break
            chunks.append(chunk)
            self._ends.append(end)
        return found, chunks

    def append(self, chunk: Chunk, chunks_before: int) -> None:
        """Writes a chunk after the first `chunks_before`, in place of what follows them.

        `write` came before, or `read` found that many. Raises OSError.
        """
        begin = self._ends[chunks_before]
        del self._ends[chunks_before + 1 :]
        data = _encoded(chunk)
        with self._path.open("r+b", buffering=0) as file:
            file.truncate(begin)
            file.seek(begin)
            if file.write(data) < len(data):
                raise OSError(f"{self._path} was written only in part")
        self._ends.append(begin + len(data))

    def write(self, inode: int, chunks: Sequence[Chunk]) -> None:
        """Replaces the file. Raises OSError."""
        parts = [f"{_FORMAT} {inode}\n".encode(), *map(_encoded, chunks)]
        write_atomic(self._path, b"".join(parts), durable=False)
        self._ends = np.cumsum([len(part) for part in parts]).tolist()


def _encoded(chunk: Chunk) -> bytes:
    about = {
        "start": chunk.start,
        "checks": chunk.checks,
        "keys": chunk.keys,
        "dense": chunk.dense,
        "points": len(chunk.points),
        "left_out": chunk.keys_left_out,
    }
    text = json.dumps(about, separators=(",", ":")).encode()
    arrays = chunk.leaves.tobytes() + chunk.stats.tobytes() + chunk.points.tobytes()
    lengths = _FRAME.pack(0, len(text), len(arrays))[4:]
    check = zlib.crc32(arrays, zlib.crc32(text, zlib.crc32(lengths)))
    return struct.pack("<I", check) + lengths + text + arrays


def _decoded(data: bytes, begin: int) -> tuple[Chunk, int] | None:
    """Returns the chunk at an offset of the file, and its end; None if it is torn or damaged."""
    if len(data) - begin < _FRAME.size:
        return None
    check, text_bytes, array_bytes = _FRAME.unpack_from(data, begin)
    first = begin + _FRAME.size
    end = first + text_bytes + array_bytes
    if end > len(data) or zlib.crc32(memoryview(data)[begin + 4 : end]) != check:
        return None
    about: dict[str, Any] = json.loads(data[first : first + text_bytes])
    offset = first + text_bytes
    leaves = np.frombuffer(data, LEAF, LEAVES, offset)
    offset += leaves.nbytes
    dense = about["dense"]
    stats = np.frombuffer(data, STATS, len(dense) * LEAVES, offset).reshape(len(dense), LEAVES)
    points = np.frombuffer(data, POINT, about["points"], offset + stats.nbytes)
    checks = [(end, crc) for end, crc in about["checks"]]
    chunk = Chunk(
        about["start"], checks, about["keys"], dense, leaves, stats, points, about["left_out"]
    )
    return chunk, end
