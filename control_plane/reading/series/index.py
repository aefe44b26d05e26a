"""The index of one metrics.jsonl: brought up to date with the file, and checked against it.

The file grows by lines, is cut back by a resume, or is replaced. So the index holds the CRC-32 of
each 1,024 lines that it has read. Before it is used, the last of them and some others are read
again; what no longer fits is indexed anew. Only what came since is parsed.
"""

import errno
import os
import random
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from control_plane.reading.series.chunk import (
    CHUNK_LINES,
    LEAF,
    LEAVES,
    MAX_KEYS,
    POINT,
    Chunk,
    chunk_of,
    merged,
)
from control_plane.reading.series.index_file import IndexFile
from control_plane.reading.series.lines import Line, read_lines
from control_plane.reading.series.stats import Array, joined
from lectern_common.files import opened_regular
from lectern_common.json_lines import Position, position_at
from lectern_common.logs import get_logger

# Two million lines; then pairs of chunks are merged, so that the index stays below about 50 MB.
MAX_CHUNKS = 2048
# Of a folder that cannot be written in, whose index lies in memory.
MAX_CHUNKS_IN_MEMORY = 256
# Texts of 1,024 lines that are read again before the index is believed.
CHECKED = 12

_log = get_logger()


@dataclass
class Indexed:
    """What is known of a file at one moment; what several charts need of it is computed once.

    Attributes:
        chunks: of all lines but the last ones.
        rest: the last lines, fewer than a chunk.
        position: the end of the last complete line.
        revision: changes whenever the file does.
        answers: what query.py computed of it last; replaced whole, since threads read it.
    """

    chunks: Sequence[Chunk]
    rest: Sequence[Line]
    position: Position
    revision: str
    answers: Mapping[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def leaves(self) -> Array:
        """LEAF, of all chunks."""
        return joined(LEAF, [chunk.leaves for chunk in self.chunks])

    @cached_property
    def points(self) -> Array:
        """POINT, of all chunks: `leaf` is an index into `leaves`, `key` a value of `numbers`."""
        points = []
        for place, chunk in enumerate(self.chunks):
            if len(chunk.points):
                part = chunk.points.copy()
                numbers = [self.numbers[key] for key in chunk.keys]
                part["key"] = np.array(numbers, np.uint32)[part["key"]]
                part["leaf"] += np.uint32(place * LEAVES)
                points.append(part)
        return joined(POINT, points)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """A number for each key of the chunks, in the order of their first values."""
        keys = dict.fromkeys(key for chunk in self.chunks for key in chunk.keys)
        return {key: number for number, key in enumerate(keys)}

    @cached_property
    def keys(self) -> list[str]:
        """At most MAX_KEYS keys, in the order of their first values."""
        return self._all_keys[:MAX_KEYS]

    @cached_property
    def keys_left_out(self) -> int:
        left_out = max((chunk.keys_left_out for chunk in self.chunks), default=0)
        return left_out + max(0, len(self._all_keys) - MAX_KEYS)

    @cached_property
    def _all_keys(self) -> list[str]:
        keys = dict.fromkeys(self.numbers)
        for line in self.rest:
            keys.update(dict.fromkeys(line.values))
        return list(keys)


NOTHING = Indexed((), (), Position(), "none")


class Index:
    """The index of one file. Its methods may be called from any thread.

    Args:
        metrics_path: metrics.jsonl.
        index_path: kept beside it; if that cannot be written, the index lies in memory, coarser.

    Attributes:
        in_memory: the index is nowhere else.
    """

    def __init__(self, metrics_path: Path, index_path: Path) -> None:
        self._metrics_path = metrics_path
        self._file = IndexFile(index_path)
        self.in_memory = False
        self._inode: int | None = None
        self._chunks: list[Chunk] | None = None  # None: not read yet
        self._last = NOTHING
        self._lock = threading.Lock()
        self.waiting = 0  # calls that wait for another one's work

    @property
    def num_bytes(self) -> int:
        """Memory that the chunks take, about."""
        chunks = self._chunks or ()
        return sum(c.leaves.nbytes + c.stats.nbytes + c.points.nbytes + 2048 for c in chunks)

    @property
    def indexed_bytes(self) -> int:
        """How far the file is indexed; 0 before it was looked at."""
        return self._chunks[-1].end if self._chunks else 0

    def up_to_date(self, goes_on: Callable[[], bool] = lambda: True) -> Indexed:
        """Returns what the file says now.

        Args:
            goes_on: called after each chunk; False leaves the rest for later, and the answer is
                that of an earlier moment.
        """
        self.waiting += 1
        with self._lock:
            self.waiting -= 1
            try:
                with opened_regular(self._metrics_path) as file:
                    return self._up_to_date(file, goes_on)
            except FileNotFoundError:
                return NOTHING

    def _up_to_date(self, file: BinaryIO, goes_on: Callable[[], bool]) -> Indexed:
        found = os.fstat(file.fileno())
        revision = f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"
        if revision == self._last.revision:
            return self._last
        if self._chunks is None:
            self._inode, self._chunks = self._file.read()
        num_fitting = _num_fitting(file, self._chunks, everything=self._inode != found.st_ino)
        del self._chunks[num_fitting:]
        if self._inode != found.st_ino:
            self._inode = found.st_ino
            if self._file.is_there:
                self._rewrite()
        while True:
            start = self.indexed_bytes
            read = read_lines(file, start, limit=CHUNK_LINES)
            if len(read.lines) < CHUNK_LINES:
                break
            self._add(chunk_of(read.lines, start, read.check))
            if not goes_on():
                return self._last
        position = position_at(file, read.end)
        self._last = Indexed(tuple(self._chunks), tuple(read.lines), position, revision)
        return self._last

    def _add(self, chunk: Chunk) -> None:
        chunks = self._chunks if self._chunks is not None else []
        chunks.append(chunk)
        if len(chunks) > (MAX_CHUNKS_IN_MEMORY if self.in_memory else MAX_CHUNKS):
            self._chunks = _halved(chunks)
            self._rewrite()
        elif not self._file.is_there:
            self._rewrite()
        else:
            self._written(lambda: self._file.append(chunk, len(chunks) - 1))

    def _rewrite(self) -> None:
        chunks, inode = self._chunks or [], self._inode or 0
        self._written(lambda: self._file.write(inode, chunks))

    def _written(self, write: Callable[[], None]) -> None:
        """Writes, unless the index lies in memory; it does from the first failure on."""
        if self.in_memory:
            return
        try:
            write()
        except OSError as error:
            self.in_memory = True
            if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOENT):
                path = str(self._metrics_path)
                _log.warning("metrics index not written", metrics=path, error=str(error))
            while len(self._chunks or ()) > MAX_CHUNKS_IN_MEMORY:
                self._chunks = _halved(self._chunks or [])


def _halved(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Returns the chunks with every two neighbours of equal size merged, the oldest first."""
    out: list[Chunk] = []
    first: Chunk | None = None
    for chunk in chunks:
        if first is None:
            first = chunk
        elif first.leaf_lines == chunk.leaf_lines:
            out.append(merged(first, chunk))
            first = None
        else:
            out.append(first)
            first = chunk
    return out if first is None else [*out, first]


def _num_fitting(file: BinaryIO, chunks: Sequence[Chunk], *, everything: bool) -> int:
    """Returns how many chunks, from the first on, say what the file says.

    Args:
        everything: read the whole text again, not only some of it.
    """
    texts = [
        (number, begin, end, check)
        for number, chunk in enumerate(chunks)
        for begin, (end, check) in zip(
            [chunk.start, *(end for end, _ in chunk.checks)], chunk.checks, strict=False
        )
    ]
    if not everything:
        # After a resume the file differs from some line on, which is near its end.
        while texts and not _fits(file, *texts[-1][1:]):
            texts.pop()
        some = random.sample(texts, min(CHECKED, len(texts)))
        if all(_fits(file, *text[1:]) for text in some):
            return _whole(texts, chunks)
    for count, text in enumerate(texts):
        if not _fits(file, *text[1:]):
            return _whole(texts[:count], chunks)
    return _whole(texts, chunks)


def _whole(texts: Sequence[tuple[int, int, int, int]], chunks: Sequence[Chunk]) -> int:
    """Returns how many chunks lie within the texts, which begin with the first."""
    if not texts:
        return 0
    number, _, end, _ = texts[-1]
    return number + 1 if chunks[number].end == end else number


def _fits(file: BinaryIO, begin: int, end: int, check: int) -> bool:
    file.seek(begin)
    text = file.read(end - begin)
    return len(text) == end - begin and zlib.crc32(text) == check
