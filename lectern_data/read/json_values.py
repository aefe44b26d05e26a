"""Finds the rows of a .json file: the values of its list, or the values that follow each other.

Only the row at hand is in memory, however long the list is. Rows are found by their brackets;
whether one is valid JSON is for its reader to say.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from lectern_data.read.unusable import UnusableError

_CHUNK_BYTES = 1 << 20
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
# A whole string, or a mark outside strings; a quote on its own begins a string that goes on.
_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\],]', re.DOTALL)
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


@dataclass(frozen=True)
class JsonValue:
    """A row's bytes and where they are in the file; `data` is None if there are too many.

    `in_list` means that it is a member of the list that the file consists of.
    """

    offset: int
    data: bytes | None
    in_list: bool


def json_values(file: IO[bytes], max_bytes: int) -> Iterator[JsonValue]:
    """Yields the rows of a file that is open at its beginning, in order.

    Raises:
        UnusableError: brackets or quotes do not match, so the rest of the file has no rows.
    """
    row = _Row(_beginning(file), max_bytes)
    file.seek(row.offset)
    is_list = file.read(1) == b"["
    if is_list:
        row = _Row(row.offset + 1, max_bytes)
    else:
        file.seek(row.offset)
    depth = outside = int(is_list)
    for piece, mark in _pieces(file):
        if depth < outside:
            if piece.strip(_SPACE):
                raise UnusableError("has more after its list; a file of lines ends in .jsonl")
            continue
        if mark == b"," and is_list and depth == outside:
            row.add(piece[:-1])
            yield row.value(in_list=is_list)
            row = _Row(row.end + 1, max_bytes)
            continue
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
        if depth < outside:
            row.add(piece[:-1])
            if not is_list or mark != b"]":
                raise UnusableError("not JSON (a closing bracket too many)")
            if not row.is_blank:
                yield row.value(in_list=is_list)
            continue
        row.add(piece)
        if not is_list and depth == 0 and mark in (b"}", b"]"):
            yield row.value(in_list=is_list)
            row = _Row(row.end, max_bytes)
    if depth > 0:
        raise UnusableError("not JSON (it ends before its brackets are closed)")
    if not is_list and not row.is_blank:
        yield row.value(in_list=is_list)


class _Row:
    """The bytes since the end of the last row, of which at most `max_bytes` are kept."""

    def __init__(self, offset: int, max_bytes: int) -> None:
        self.offset = offset
        self.end = offset
        self._data = bytearray()
        self._max_bytes = max_bytes

    @property
    def is_blank(self) -> bool:
        return self.end == self.offset + len(self._data) and not self._data.strip(_SPACE)

    def add(self, data: bytes) -> None:
        self.end += len(data)
        if self.end - self.offset <= self._max_bytes:
            self._data += data

    def value(self, *, in_list: bool) -> JsonValue:
        if self.end - self.offset > self._max_bytes:
            return JsonValue(self.offset, None, in_list)
        data = self._data.lstrip(_SPACE)
        return JsonValue(self.end - len(data), bytes(data), in_list)


def _beginning(file: IO[bytes]) -> int:
    """Returns the offset of the first byte that is neither a byte order mark nor white space."""
    offset = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(offset)
    while chunk := file.read(_CHUNK_BYTES):
        if text := chunk.lstrip(_SPACE):
            return offset + len(chunk) - len(text)
        offset += len(chunk)
    return offset


def _pieces(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the file in pieces, each with the mark that it ends with: one of {}[], or none.

    Marks inside strings do not count.

    Raises:
        UnusableError: the file ends inside a string.
    """
    string: _String | None = None  # the one that goes on in the next chunk
    while chunk := file.read(_CHUNK_BYTES):
        first = last = 0
        if string is not None:
            string = _String(chunk, int(string.is_escaped))
            first = string.end
            string = None if string.is_closed else string
        for match in () if string else _MARK.finditer(chunk, first):
            mark = match.group()
            if mark == b'"':
                string = _String(chunk, match.end())
                break
            if len(mark) == 1:
                yield chunk[last : match.end()], mark
                last = match.end()
        if last < len(chunk):
            yield chunk[last:], b""
    if string is not None:
        raise UnusableError("not JSON (it ends inside a string)")


class _String:
    """How the string that has begun before `begin` goes on in a chunk.

    Attributes:
        is_closed: its closing quote is in the chunk, just before `end`.
        is_escaped: it is not, and a backslash at the chunk's end escapes the next byte.
    """

    def __init__(self, chunk: bytes, begin: int) -> None:
        found = _INSIDE_STRING.match(chunk, begin)
        stop = begin if found is None else found.end()
        rest = chunk[stop : stop + 1]
        self.is_closed = rest == b'"'
        self.is_escaped = rest == b"\\"
        self.end = stop + 1
