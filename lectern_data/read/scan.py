"""Finds, checks and hashes every document of the inputs before anything is written."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from lectern_common.words import inert_name
from lectern_data.read.compressed import (
    READ_ERRORS,
    disguised,
    is_compressed,
    opened,
    suffix_of,
    why_not_read,
)
from lectern_data.read.documents import Document, LeftOut
from lectern_data.read.json_values import JsonValue, json_values
from lectern_data.read.rows import (
    JSON_LINES_SUFFIXES,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    ROW_SUFFIXES,
    Content,
    decoded,
    json_row,
    json_row_is_cut,
    open_parquet,
    parquet_values,
    sha256_of,
)
from lectern_data.read.unusable import UnusableError

MAX_DOCUMENT_BYTES = 8 << 20
_PROGRESS_ROWS = 1 << 12
_JSON_IS = "a .json file is a list of rows, or one row"


def scan(
    files: list[tuple[str, Path]],
    *,
    content: Content | None = None,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    columns: dict[str, None] | None = None,
) -> tuple[list[Document], list[LeftOut]]:
    """Returns the usable documents of `files`, in order, and those left out.

    Reads every file once and keeps no text in memory.

    Args:
        files: (name, path) of each.
        content: what a row must hold; None means a text under "text".
        max_document_bytes: a larger document is left out.
        on_progress: called with (bytes done, bytes of all files).
        columns: gets the names of all fields of all rows.

    Raises:
        Misconfigured: there are Parquet files, but pyarrow is not installed.
    """
    content, columns = content or Content(), {} if columns is None else columns
    documents: list[Document] = []
    left_out: list[LeftOut] = []
    sizes = [_size(path) for _, path in files]
    done, total = 0, sum(sizes)
    for (name, path), size in zip(files, sizes, strict=True):
        label, found = inert_name(name), len(documents) + len(left_out)
        for number, part in enumerate(_parts(label, path, content, max_document_bytes, columns)):
            if isinstance(part, Document):
                documents.append(part)
                if part.place is not None and number % _PROGRESS_ROWS == 0:
                    on_progress(done + _offset(part), total)
            else:
                left_out.append(part)
        if len(documents) + len(left_out) == found:
            left_out.append(LeftOut(label, "empty", is_fault=False))
        done += size
        on_progress(done, total)
    return documents, left_out


def _parts(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    """Yields a file's documents, and what cannot be used of it."""
    try:
        suffix, reason = suffix_of(path), _why_not(path, content)
        if reason is not None:
            yield LeftOut(name, reason)
        elif suffix in PARQUET_SUFFIXES:
            yield from _parquet_rows(name, path, content, max_bytes, columns)
        elif suffix in JSON_LINES_SUFFIXES:
            yield from _json_lines(name, path, content, max_bytes, columns)
        elif suffix in JSON_SUFFIXES:
            yield from _json_rows(name, path, content, max_bytes, columns)
        else:
            yield _whole(name, path, max_bytes)
    except READ_ERRORS as error:
        yield LeftOut(name, f"cannot be read: {_first_words(error)}")


def _why_not(path: Path, content: Content) -> str | None:
    """Returns why a file cannot be read, as far as its name and first bytes tell; else None."""
    if path.is_symlink() and not os.path.exists(path):
        return f"a link to {inert_name(os.readlink(path))}, which cannot be reached"
    if not path.is_file():
        return "not a regular file"
    reason = why_not_read(path)
    if reason is None and suffix_of(path) in JSON_LINES_SUFFIXES + JSON_SUFFIXES:
        reason = disguised(path)
    if reason is None and content.is_chat and suffix_of(path) not in ROW_SUFFIXES:
        reason = (
            f"not a file of chats; those end in {', '.join(ROW_SUFFIXES)}; drop --chat to read it "
            "as text"
        )
    return reason


def _whole(name: str, path: Path, max_bytes: int) -> Document | LeftOut:
    try:
        with opened(path) as file:
            file.seek(0)
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            return LeftOut(name, _too_large(max_bytes))
        decoded(data)
    except UnusableError as error:
        really = disguised(path)
        return LeftOut(name, f"{error}" + (f"; it is {really}" if really else ""))
    if not data:
        return LeftOut(name, "empty", is_fault=False)
    return Document(name, path, len(data), hashlib.sha256(data).hexdigest())


def _json_lines(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    """Yields every row; skips an overlong line without holding it in memory."""
    number = offset = 0
    try:
        with opened(path) as file:
            file.seek(0)
            while line := file.readline(max_bytes + 1):
                number, size = number + 1, len(line)
                too_long = size > max_bytes and not line.endswith(b"\n")
                while too_long and not line.endswith(b"\n"):
                    line = file.readline(max_bytes + 1)
                    size += len(line)
                    if not line:
                        break
                label = f"{name}#{number}"
                if too_long:
                    yield LeftOut(label, _too_large(max_bytes))
                else:
                    yield _json_row(label, path, line, offset, content, columns)
                offset += size
    except READ_ERRORS as error:
        yield _rest(name, number, f"cannot be read: {_first_words(error)}")


def _json_rows(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    """Yields every row of a .json file; the row of a file that is one object has no number."""
    number, held, lost = 0, None, None
    try:
        with opened(path) as file:
            file.seek(0)
            for value in json_values(file, max_bytes):
                if held is not None:
                    yield _json_value(f"{name}#{number}", path, held, content, max_bytes, columns)
                number, held = number + 1, value
    except UnusableError as error:
        lost = str(error)
    except READ_ERRORS as error:
        lost = f"cannot be read: {_first_words(error)}"
    if held is not None and (held.in_list or number > 1):
        yield _json_value(f"{name}#{number}", path, held, content, max_bytes, columns)
    elif held is not None:
        row = _json_value(name, path, held, content, max_bytes, columns)
        if isinstance(row, LeftOut) and row.is_fault:
            row = replace(row, reason=f"{row.reason}; {_JSON_IS}")
        yield row
    if lost is not None:
        yield _rest(name, number, lost)


def _json_value(
    label: str,
    path: Path,
    value: JsonValue,
    content: Content,
    max_bytes: int,
    columns: dict[str, None],
) -> Document | LeftOut:
    if value.data is None:
        return LeftOut(label, _too_large(max_bytes))
    return _json_row(label, path, value.data, value.offset, content, columns)


def _rest(name: str, number: int, reason: str) -> LeftOut:
    """Returns what is lost of a file that cannot be read after `number` rows."""
    if number == 0:
        return LeftOut(name, reason)
    return LeftOut(f"{name}#{number + 1}", f"{reason}; it and the rows after it are lost")


def _json_row(
    label: str, path: Path, line: bytes, offset: int, content: Content, columns: dict[str, None]
) -> Document | LeftOut:
    try:
        text = json_row(line, content, columns)
    except UnusableError as error:
        return LeftOut(label, str(error))
    is_cut = bool(text) and json_row_is_cut(line, content)
    return _row(label, path, text, (offset, len(line)), content, is_cut=is_cut)


def _parquet_rows(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    """Yields every row, a few in memory at a time. Without the column, every row is lost."""
    number = 0
    try:
        file = open_parquet(path, content)
    except UnusableError as error:
        yield LeftOut(name, str(error), documents=_num_rows(path))
        return
    with file:
        columns.update(dict.fromkeys(file.schema_arrow.names))
        try:
            for group in range(file.num_row_groups):
                for index, row in parquet_values(file, group, content):
                    number += 1
                    if isinstance(row, dict):
                        columns.update(dict.fromkeys(content.names_in(row)))
                    label, place = f"{name}#{number}", (group, index)
                    yield _parquet_row(label, path, row, place, content, max_bytes)
        except UnusableError as error:
            lost = file.metadata.num_rows - number
            yield replace(_rest(name, number, str(error)), documents=lost)


def _parquet_row(
    label: str,
    path: Path,
    row: object,
    place: tuple[int, int],
    content: Content,
    max_bytes: int,
) -> Document | LeftOut:
    try:
        if isinstance(row, UnusableError):
            raise row
        text = content.of(row, columnar=True)
        if len(text.encode()) > max_bytes:
            raise UnusableError(_too_large(max_bytes))
    except UnusableError as error:
        return LeftOut(label, str(error))
    return _row(label, path, text, place, content, is_cut=content.is_cut(row))


def _too_large(max_bytes: int) -> str:
    return f"larger than {max_bytes:,} bytes; split it, or raise --max-document-bytes"


def _row(
    label: str,
    path: Path,
    text: str,
    place: tuple[int, int],
    content: Content,
    *,
    is_cut: bool,
) -> Document | LeftOut:
    if not text:
        return LeftOut(label, "empty", is_fault=False)
    size, said = len(text.encode()), content.sha256(text)
    written = sha256_of(text) if content.is_chat else ""
    return Document(label, path, size, said, place, written, is_cut)


def _num_rows(path: Path) -> int:
    """Returns the number of rows of a Parquet file, at least 1; 1 if it is not one."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return max(1, int(read_metadata(path).num_rows))
    except (ArrowException, OSError):
        return 1


def _offset(document: Document) -> int:
    """Returns a row's offset in its file; 0 if unknown, as in Parquet and compressed files."""
    is_unknown = suffix_of(document.path) in PARQUET_SUFFIXES or is_compressed(document.path)
    return 0 if document.place is None or is_unknown else document.place[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _first_words(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.partition("\n")[0][:200] or type(error).__name__
