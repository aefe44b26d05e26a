"""Reads documents from the rows of .jsonl, .json and Parquet files.

A row that is not a document is named with its number (`UnusableError`), never dropped silently.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lectern_common.errors import Misconfigured

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
JSON_SUFFIXES = (".json",)
PARQUET_SUFFIXES = (".parquet",)
ROW_SUFFIXES = JSON_LINES_SUFFIXES + JSON_SUFFIXES + PARQUET_SUFFIXES
TEXT_FIELD = "text"
MESSAGES_FIELD = "messages"
# Rows of a Parquet row group in memory at a time.
_ROWS_AT_A_TIME = 256
_FIELDS_NAMED = 8


class UnusableError(Exception):
    """Why a file or a row is not a document."""


@dataclass(frozen=True)
class Content:
    """The field of a row that is its document: a text, or a chat ([{role, content}, ...])."""

    field: str = TEXT_FIELD
    is_chat: bool = False

    def of(self, row: Any) -> str:
        """Returns the row's text, or its chat's messages as canonical JSON; "" if it is empty.

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
            value = _canonical_chat(value, self.field)
        elif not isinstance(value, str):
            raise UnusableError(f"has no {self._kind} under {self.field!r}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnusableError("its text has a lone surrogate") from None
        return str(value)

    def instead(self, fields: Iterable[str]) -> str:
        """Returns the rest of "has no such field": the fields that it has, and what to set."""
        there = list(fields)
        if not there:
            return ""
        if not self.is_chat and MESSAGES_FIELD in there:
            return f", but {_listed(there)}; add --chat to read chats"
        if self.is_chat and TEXT_FIELD in there:
            return f", but {_listed(there)}; drop --chat to read texts, or set --messages-field"
        option = "--messages-field" if self.is_chat else "--text-field"
        return f", but {_listed(there)}; set {option}"

    @property
    def _kind(self) -> str:
        return "messages" if self.is_chat else "text"


def decoded(data: bytes) -> str:
    """Returns the bytes as text. Raises UnusableError."""
    if b"\0" in data:
        raise UnusableError("not text (it has a NUL byte)")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 (byte {error.start})") from None


def json_row(line: bytes, content: Content) -> str:
    """Returns the document of a line, "" for a blank line. Raises UnusableError."""
    if not line.strip():
        return ""
    try:
        row = json.loads(line.decode("utf-8-sig"))  # of bytes it would guess the encoding
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError):
        raise UnusableError("not JSON") from None
    return content.of(row)


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
    file: "ParquetFile", group: int, field: str, first: int = 0
) -> Iterator[tuple[int, Any]]:
    """Yields (index in the row group, value or UnusableError) from row `first` of a group on.

    Only a few rows are in memory at a time.

    Raises:
        UnusableError: the rest of the group cannot be read.
    """
    import pyarrow as arrow

    index = 0
    try:
        for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[field]):
            column = batch.column(field)
            for place in range(max(0, first - index), len(column)):
                yield index + place, _value(column[place])
            index += len(column)
    except (arrow.ArrowException, OSError) as error:
        raise UnusableError(f"cannot be read: {_first_line(error)}") from None


def _value(scalar: Any) -> Any:
    try:
        return as_text(scalar.as_py())
    except UnicodeDecodeError as error:
        return UnusableError(f"not UTF-8 (byte {error.start})")


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


def _canonical_chat(value: Any, field: str) -> str:
    if not isinstance(value, list) or not value:
        raise UnusableError(f"has no messages under {field!r}")
    for number, message in enumerate(value, 1):
        for name in ("role", "content"):
            text = message.get(name) if isinstance(message, Mapping) else None
            if not isinstance(text, str):
                is_misnamed = isinstance(message, Mapping) and name not in message
                there = f", but {_listed(message)}" if is_misnamed else ""
                raise UnusableError(f"message {number} has no text under {name!r}{there}")
    # Parquet stores missing fields as null.
    messages = [
        {name: part for name, part in message.items() if part is not None} for message in value
    ]
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableError("has no turn of the assistant, so nothing would be learnt from it")
    try:
        return json.dumps(messages, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise UnusableError("its messages are not plain JSON") from None


def _listed(fields: Iterable[str]) -> str:
    """Returns the first names, escaped for a terminal."""
    names = [repr(field)[:40] for field in fields]
    return ", ".join(names[:_FIELDS_NAMED]) + (", ..." if len(names) > _FIELDS_NAMED else "")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
