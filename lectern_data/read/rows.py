"""Reads documents from the rows of .jsonl, .json and Parquet files.

A row that is not a document is named with its number (`UnusableError`), never dropped silently.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lectern_common.errors import Misconfigured
from lectern_data.read.chat_rows import (
    CHAT_FIELDS,
    FINISH,
    chat_json,
    field_names,
    is_cut,
    sorted_json,
)
from lectern_data.read.unusable import UnusableError, listed

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
JSON_SUFFIXES = (".json",)
PARQUET_SUFFIXES = (".parquet",)
ROW_SUFFIXES = JSON_LINES_SUFFIXES + JSON_SUFFIXES + PARQUET_SUFFIXES
TEXT_FIELD = "text"
MESSAGES_FIELD = "messages"
PROMPT_FIELD = "prompt"
# Rows of a Parquet row group in memory at a time.
_ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Content:
    """The field of a row that is its document: a text, or a chat ([{role, content}, ...]).

    `arguments` are further fields that the chat template reads, besides tools and documents. With
    `is_prompt`, a text is a prompt, and of a chat the part that asks for its last answer.
    """

    field: str = TEXT_FIELD
    is_chat: bool = False
    arguments: tuple[str, ...] = ()
    is_prompt: bool = False

    @property
    def is_checked_last(self) -> bool:
        """Whether encoding may still show that a document cannot be used."""
        return self.is_chat or self.is_prompt

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of a row that are read."""
        beside = (*CHAT_FIELDS, *self.arguments) if self.is_chat else (FINISH,)
        return tuple(dict.fromkeys((self.field, *beside)))

    def of(self, row: Any, *, columnar: bool = False) -> str:
        """Returns the row's text, or its chat as JSON (see chat_json); "" if it is empty.

        Args:
            row: the row.
            columnar: its nulls say "not there", as in Parquet.

        Raises:
            UnusableError: the row has none.
        """
        if not isinstance(row, Mapping):
            raise UnusableError(f"has no {self._kind} under {self.field!r}")
        if self.field not in row:
            raise UnusableError(f"has no {self._kind} under {self.field!r}{self.instead(row)}")
        value = row[self.field]
        if value is None or (self.is_chat and value == []):
            return ""
        if self.is_chat:
            value = chat_json(
                row, self.field, self.arguments, columnar=columnar, is_prompt=self.is_prompt
            )
        elif not isinstance(value, str):
            is_chat = isinstance(value, list) and self.is_prompt
            why = f", but a list; add --chat --messages-field {self.field}" if is_chat else ""
            raise UnusableError(f"has no {self._kind} under {self.field!r}{why}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnusableError("its text has a lone surrogate") from None
        return str(value)

    def is_cut(self, row: Any) -> bool:
        """Returns whether a row's text goes on behind its end (see `is_cut`); False of chats."""
        return not self.is_chat and isinstance(row, Mapping) and is_cut(row)

    def sha256(self, text: str) -> str:
        """Returns the hash of a document; of chats whose keys stand in another order, the same."""
        return sha256_of(sorted_json(text) if self.is_chat else text)

    def instead(self, fields: Iterable[str]) -> str:
        """Returns the rest of "has no such field": the fields that it has, and what to set."""
        there = list(fields)
        if not there:
            return ""
        if not self.is_chat and MESSAGES_FIELD in there:
            return f", but {listed(there)}; add --chat to read chats"
        if self.is_chat and TEXT_FIELD in there:
            return f", but {listed(there)}; drop --chat to read texts, or set --messages-field"
        option = "--messages-field" if self.is_chat else "--text-field"
        return f", but {listed(there)}; set {option}"

    def names_in(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Yields the names of a row's fields, those of a chat's messages included."""
        return field_names(row, self.field if self.is_chat else None)

    @property
    def _kind(self) -> str:
        return "messages" if self.is_chat else "text"


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def decoded(data: bytes) -> str:
    """Returns the bytes as text. Raises UnusableError."""
    if b"\0" in data:
        raise UnusableError("not text (it has a NUL byte)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 (byte {error.start})") from None


def json_row(line: bytes, content: Content, columns: dict[str, None] | None = None) -> str:
    """Returns the document of a line, "" for a blank line; adds the line's fields to `columns`.

    Raises:
        UnusableError: the line is not a document.
    """
    if not line.strip():
        return ""
    try:
        row = json.loads(line.decode("utf-8-sig"))  # of bytes it would guess the encoding
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError):
        raise UnusableError("not JSON") from None
    if columns is not None and isinstance(row, dict):
        columns.update(dict.fromkeys(content.names_in(row)))
    return content.of(row)


def json_row_is_cut(line: bytes, content: Content) -> bool:
    """Returns `content.is_cut` of a line that is a document."""
    is_named = not content.is_chat and FINISH.encode() in line
    return is_named and content.is_cut(json.loads(line.decode("utf-8-sig")))


def open_parquet(path: Path, content: Content) -> "ParquetFile":
    """Returns an open Parquet file that has the field as a column.

    Raises:
        Misconfigured: pyarrow is not installed.
        UnusableError: it is not a Parquet file, or has no such column.
    """
    try:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise Misconfigured(
            f"{path.name} is a Parquet file, which needs pyarrow: pip install 'lectern[data]'"
        ) from None
    try:
        file = ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise UnusableError(f"not a Parquet file: {_first_line(error)}") from None
    columns = file.schema_arrow.names
    if content.field not in columns:
        raise UnusableError(f"has no column {content.field!r}{content.instead(columns)}")
    return file


def parquet_values(
    file: "ParquetFile", group: int, content: Content, first: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yields (index in the row group, row or UnusableError) from row `first` of a group on.

    A row holds only what `content` reads.

    Only a few rows are in memory at a time.

    Raises:
        UnusableError: the rest of the group cannot be read.
    """
    import pyarrow as arrow

    index, there = 0, file.schema_arrow.names
    columns = [name for name in content.columns if name in there]
    try:
        for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns):
            for place in range(max(0, first - index), len(batch)):
                yield index + place, _row(batch, columns, place)
            index += len(batch)
    except (arrow.ArrowException, OSError) as error:
        raise UnusableError(f"cannot be read: {_first_line(error)}") from None


def _row(batch: Any, columns: list[str], place: int) -> Any:
    try:
        return {
            name: as_text(batch.column(name)[place].as_py(maps_as_pydicts="strict"))
            for name in columns
        }
    except UnicodeDecodeError as error:
        return UnusableError(f"not UTF-8 (byte {error.start})")
    except KeyError as error:  # a map column
        return UnusableError(f"has a map with two values under {str(error)[:40]}")


def as_text(value: Any) -> Any:
    """Returns the value with bytes, at any depth, decoded: many writers store text as BINARY.

    Raises UnicodeDecodeError.
    """
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [as_text(part) for part in value]
    if isinstance(value, dict):
        return {name: as_text(part) for name, part in value.items()}
    return value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
