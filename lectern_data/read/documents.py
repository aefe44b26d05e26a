"""Documents on disk that a scan has found, and reading them again.

A document is a whole text file, or one row of a .jsonl, .json or Parquet file (rows.py); a file may
be compressed (compressed.py). Anything unusable is named with its reason (`LeftOut`), never dropped
silently; scan.py finds both.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lectern_common.errors import CorruptData
from lectern_common.words import inert_name
from lectern_data.read.compressed import READ_ERRORS, opened, suffix_of
from lectern_data.read.rows import (
    PARQUET_SUFFIXES,
    Content,
    decoded,
    json_row,
    open_parquet,
    parquet_values,
    sha256_of,
)
from lectern_data.read.unusable import UnusableError


@dataclass(frozen=True, slots=True)
class Document:
    """A usable document. `name` is its input's name and the path inside it, with `#row` for rows.

    `place` locates a row in its file: (offset, bytes) of a .jsonl or .json row, in the unpacked
    file; (row group, index in it) of a Parquet row; None means that the document is the whole file.
    `sha256` is of what it says: equal for chats whose keys stand in another order. `text_sha256`
    is of its text as it is written and rendered; "" means that it is `sha256`. A text that
    `is_cut` goes on behind its end, so no token ends it.
    """

    name: str
    path: Path
    text_bytes: int
    sha256: str
    place: tuple[int, int] | None = None
    text_sha256: str = ""
    is_cut: bool = False

    @property
    def written_sha256(self) -> str:
        return self.text_sha256 or self.sha256


@dataclass(frozen=True)
class LeftOut:
    """Documents that are not used, and why. An empty one loses nothing and is not a fault.

    `name` is safe to print: see `inert_name`.
    """

    name: str
    reason: str
    is_fault: bool = True
    documents: int = 1


def texts_of(documents: Iterable[Document], content: Content) -> Iterator[str]:
    """Yields the text of each document; reads consecutive rows of a file together.

    Raises:
        CorruptData: a file changed since the document was found.
    """
    for path, group in groupby(documents, key=lambda document: document.path):
        wanted = list(group)
        try:
            for document, text in zip(wanted, _texts(path, wanted, content), strict=True):
                if sha256_of(text) != document.written_sha256:
                    raise UnusableError("another text")
                yield text
        except (*READ_ERRORS, UnusableError, ValueError):
            raise CorruptData(
                f"{inert_name(path)} changed while it was being read; run again"
            ) from None


def _texts(path: Path, documents: list[Document], content: Content) -> Iterator[str]:
    if suffix_of(path) in PARQUET_SUFFIXES:
        yield from _parquet_texts(path, documents, content)
        return
    with opened(path) as file:
        for document in documents:
            if document.place is None:
                file.seek(0)
                yield decoded(file.read(document.text_bytes + 1))
            else:
                file.seek(document.place[0])
                yield json_row(file.read(document.place[1]), content)


def _parquet_texts(path: Path, documents: list[Document], content: Content) -> Iterator[str]:
    with open_parquet(path, content) as file:
        for group, members in groupby(documents, key=lambda document: (document.place or (0,))[0]):
            wanted = [(document.place or (0, 0))[1] for document in members]
            values = parquet_values(file, group, content, first=wanted[0])
            for index in wanted:
                row = next((row for found, row in values if found == index), None)
                if row is None:
                    raise UnusableError("fewer rows")
                yield content.of(row, columnar=True)
