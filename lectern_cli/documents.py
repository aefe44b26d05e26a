"""Text documents on disk: found, checked and hashed before anything is written.

A document is a whole text file, or one row of a .jsonl file. Whatever cannot be used is named with
its reason (`LeftOut`), never dropped in silence.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lectern_common.errors import CorruptData, NotFound

ROWS_SUFFIX = ".jsonl"
MAX_DOCUMENT_BYTES = 32 << 20


@dataclass(frozen=True)
class Document:
    """A usable document. `name` is its input's name and the path below it, `#row` for .jsonl."""

    name: str
    path: Path
    text_bytes: int
    sha256: str
    row_span: tuple[int, int] | None = None  # (offset, bytes) of a .jsonl row
    text_field: str = "text"

    def read(self) -> str:
        """Returns the text.

        Raises:
            CorruptData: it is not what was hashed when the document was found.
        """
        try:
            with self.path.open("rb") as file:
                if self.row_span is None:
                    text = _decoded(file.read(self.text_bytes + 1))
                else:
                    file.seek(self.row_span[0])
                    text = _row_text(file.read(self.row_span[1]), self.text_field)
        except (OSError, _UnusableError):
            text = ""
        if hashlib.sha256(text.encode()).hexdigest() != self.sha256:
            raise CorruptData(f"{self.path} changed while it was being read; run again")
        return text


@dataclass(frozen=True)
class LeftOut:
    """A document that is not used, and why. An empty one loses nothing and is no fault."""

    name: str
    reason: str
    is_fault: bool = True


class _UnusableError(Exception):
    """Why a file or a row is no document."""


def find_files(
    inputs: list[Path], include: list[str], exclude: list[str]
) -> list[tuple[str, Path]]:
    """Returns (name, path) of every file named or below a named folder, in a fixed order.

    Inputs keep their order; below a folder, paths are sorted. Hidden files and folders, and folders
    behind symbolic links, are not entered.

    Args:
        include: below folders, only files whose name or relative path matches one of these glob
            patterns; empty takes all.
        exclude: files and folders whose name or relative path matches are left out.

    Raises:
        NotFound: an input does not exist.
    """
    found = []
    for given in inputs:
        if given.is_dir():
            label = given.resolve().name
            found += [
                (f"{label}/{relative}", given / relative)
                for relative in sorted(_files_below(given, exclude))
                if not include or _matches(relative, include)
            ]
        elif given.exists():
            found.append((given.name, given))
        else:
            raise NotFound(f"no file or folder {given}")
    return found


def scan(
    files: list[tuple[str, Path]],
    *,
    text_field: str = "text",
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Document], list[LeftOut]]:
    """Returns the usable documents of `files`, in order, and what is left out.

    Reads every file once and keeps no text. `on_progress` is told (files done, files).
    """
    documents: list[Document] = []
    left_out: list[LeftOut] = []
    for number, (name, path) in enumerate(files):
        on_progress(number, len(files))
        parts = (
            _rows(name, path, text_field, max_document_bytes)
            if path.suffix == ROWS_SUFFIX
            else [_whole(name, path, max_document_bytes)]
        )
        for part in parts:
            if isinstance(part, Document):
                documents.append(part)
            else:
                left_out.append(part)
    on_progress(len(files), len(files))
    return documents, left_out


def _files_below(folder: Path, exclude: list[str]) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if _is_wanted((relative / name).as_posix(), exclude)]
        for name in names:
            path = (relative / name).as_posix()
            if _is_wanted(path, exclude):
                yield path


def _is_wanted(relative: str, exclude: list[str]) -> bool:
    return not Path(relative).name.startswith(".") and not _matches(relative, exclude)


def _matches(relative: str, patterns: list[str]) -> bool:
    name = relative.rpartition("/")[2]
    return any(fnmatchcase(relative, glob) or fnmatchcase(name, glob) for glob in patterns)


def _whole(name: str, path: Path, max_bytes: int) -> Document | LeftOut:
    try:
        if not path.is_file():
            return LeftOut(name, "not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            return LeftOut(name, f"over {max_bytes} bytes; split it, or write it as {ROWS_SUFFIX}")
        _decoded(data)
    except OSError as error:
        return LeftOut(name, f"cannot be read: {error.strerror}")
    except _UnusableError as error:
        return LeftOut(name, str(error))
    if not data:
        return LeftOut(name, "empty", is_fault=False)
    return Document(name, path, len(data), hashlib.sha256(data).hexdigest())


def _rows(name: str, path: Path, text_field: str, max_bytes: int) -> Iterator[Document | LeftOut]:
    """Yields every row; an over-long line is passed over without holding it in memory."""
    offset = 0
    try:
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
                    yield LeftOut(label, f"over {max_bytes} bytes")
                else:
                    yield _row(label, path, line, offset, text_field)
                offset += size
    except OSError as error:
        yield LeftOut(name, f"cannot be read: {error.strerror}")


def _row(label: str, path: Path, line: bytes, offset: int, text_field: str) -> Document | LeftOut:
    try:
        data = _row_text(line, text_field).encode()
    except _UnusableError as error:
        return LeftOut(label, str(error))
    if not data:
        return LeftOut(label, "empty", is_fault=False)
    digest = hashlib.sha256(data).hexdigest()
    return Document(label, path, len(data), digest, (offset, len(line)), text_field)


def _row_text(line: bytes, text_field: str) -> str:
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _UnusableError("not JSON") from None
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise _UnusableError(f"has no text under {text_field!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError("its text has a lone surrogate") from None
    return text


def _decoded(data: bytes) -> str:
    if b"\0" in data:
        raise _UnusableError("not text (it has a NUL byte)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _UnusableError(f"not UTF-8 (byte {error.start})") from None
