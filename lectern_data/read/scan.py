"""Finds, checks and hashes every document of the inputs before anything is written."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lectern_data.read.chat_rows import field_names
from lectern_data.read.documents import Document, LeftOut
from lectern_data.read.rows import (
    JSON_LINES_SUFFIXES,
    PARQUET_SUFFIXES,
    ROW_SUFFIXES,
    Content,
    decoded,
    is_parquet,
    json_row,
    open_parquet,
    parquet_values,
)
from lectern_data.read.unusable import UnusableError

MAX_DOCUMENT_BYTES = 8 << 20
_PROGRESS_ROWS = 1 << 12


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
    sizes = [path.stat().st_size if path.exists() else 0 for _, path in files]
    done, total = 0, sum(sizes)
    for (name, path), size in zip(files, sizes, strict=True):
        for number, part in enumerate(_parts(name, path, content, max_document_bytes, columns)):
            if isinstance(part, Document):
                documents.append(part)
                if part.place is not None and number % _PROGRESS_ROWS == 0:
                    on_progress(done + _offset(part), total)
            else:
                left_out.append(part)
        done += size
        on_progress(done, total)
    return documents, left_out


def _parts(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return _parquet_rows(name, path, content, max_bytes, columns)
    if suffix in JSON_LINES_SUFFIXES:
        return _json_rows(name, path, content, max_bytes, columns)
    if content.is_chat:
        return iter([LeftOut(name, f"not a file of chats; those end in {', '.join(ROW_SUFFIXES)}")])
    return iter([_whole(name, path, max_bytes)])


def _whole(name: str, path: Path, max_bytes: int) -> Document | LeftOut:
    try:
        if not path.is_file():
            return LeftOut(name, "not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            return LeftOut(name, _too_large(max_bytes))
        decoded(data)
    except OSError as error:
        return LeftOut(name, f"cannot be read: {error.strerror}")
    except UnusableError as error:
        return LeftOut(name, str(error))
    if not data:
        return LeftOut(name, "empty", is_fault=False)
    return Document(name, path, len(data), hashlib.sha256(data).hexdigest())


def _json_rows(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    """Yields every row; skips an overlong line without holding it in memory."""
    offset = 0
    try:
        if not path.is_file():
            yield LeftOut(name, "not a regular file")
            return
        if is_parquet(path):
            yield LeftOut(name, "a Parquet file; rename it to .parquet")
            return
        with path.open("rb") as file:
            for number in range(1, 1 << 62):
                line = file.readline(max_bytes + 1)
                if not line:
                    return
                size = len(line)
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
    except OSError as error:
        yield LeftOut(name, f"cannot be read: {error.strerror}")


def _json_row(
    label: str, path: Path, line: bytes, offset: int, content: Content, columns: dict[str, None]
) -> Document | LeftOut:
    try:
        text = json_row(line, content, columns)
    except UnusableError as error:
        return LeftOut(label, str(error))
    return _row(label, path, text, (offset, len(line)), content)


def _parquet_rows(
    name: str, path: Path, content: Content, max_bytes: int, columns: dict[str, None]
) -> Iterator[Document | LeftOut]:
    """Yields every row, a few in memory at a time. Without the column, every row is lost."""
    number = 0
    try:
        if not path.is_file():
            yield LeftOut(name, "not a regular file")
            return
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
                            columns.update(dict.fromkeys(field_names(row)))
                        label, place = f"{name}#{number}", (group, index)
                        yield _parquet_row(label, path, row, place, content, max_bytes)
            except UnusableError as error:
                lost = file.metadata.num_rows - number
                reason = f"{error}; it and the rows after it are lost"
                yield LeftOut(f"{name}#{number + 1}", reason, documents=lost)
    except OSError as error:
        yield LeftOut(name, f"cannot be read: {error.strerror}")


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
    return _row(label, path, text, place, content)


def _too_large(max_bytes: int) -> str:
    return f"larger than {max_bytes:,} bytes; split it, or raise --max-document-bytes"


def _row(
    label: str, path: Path, text: str, place: tuple[int, int], content: Content
) -> Document | LeftOut:
    if not text:
        return LeftOut(label, "empty", is_fault=False)
    return Document(label, path, len(text.encode()), content.sha256(text), place)


def _num_rows(path: Path) -> int:
    """Returns the number of rows of a Parquet file, at least 1; 1 if it is not one."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return max(1, int(read_metadata(path).num_rows))
    except (ArrowException, OSError):
        return 1


def _offset(document: Document) -> int:
    """Returns a row's offset in its file; 0 if unknown, as in Parquet files."""
    if document.place is None or document.path.suffix.lower() in PARQUET_SUFFIXES:
        return 0
    return document.place[0]
