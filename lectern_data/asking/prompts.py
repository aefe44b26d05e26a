"""Finds the prompts to ask: rows of files, each once, with where and how it is written."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lectern_common.errors import InvalidRequest
from lectern_common.words import inert_name
from lectern_data.asking.settings import GenerateSettings
from lectern_data.left_out import Faults
from lectern_data.read.chat_rows import chat_json, field_names
from lectern_data.read.compressed import READ_ERRORS, opened, suffix_of
from lectern_data.read.documents import Document, LeftOut, texts_of
from lectern_data.read.input_files import find_files
from lectern_data.read.json_values import json_values
from lectern_data.read.rows import (
    JSON_LINES_SUFFIXES,
    MESSAGES_FIELD,
    PARQUET_SUFFIXES,
    PROMPT_FIELD,
    ROW_SUFFIXES,
    Content,
    open_parquet,
)
from lectern_data.read.scan import MAX_DOCUMENT_BYTES, scan
from lectern_data.read.unusable import UnusableError, listed

_ROWS_LOOKED_AT = 100


@dataclass(frozen=True)
class PromptContent(Content):
    """The field of a row that holds its prompt, as a chat or as a text.

    The document of a row is JSON: a text, or a chat as `chat_json` writes it. A text with tools
    or the like beside it is a chat of one message. With `takes_text` False, a text is a chat's
    JSON.
    """

    field: str = MESSAGES_FIELD
    is_chat: bool = True
    is_prompt: bool = True
    takes_text: bool = False

    def of(self, row: Any, *, columnar: bool = False) -> str:
        """Returns the row's prompt as JSON; "" if it is empty. Raises UnusableError."""
        if not isinstance(row, dict):
            raise UnusableError("is not an object with a prompt")
        if self.field not in row:
            raise UnusableError(f"has no prompt under {self.field!r}{self.instead(row)}")
        value = row[self.field]
        if value is None or value in ("", []):
            return ""
        if isinstance(value, str) and self.takes_text:
            if not any(row.get(name) is not None for name in self.columns[1:]):
                return _checked(json.dumps(value, ensure_ascii=False))
            row = {**row, self.field: [{"role": "user", "content": value}]}
        return _checked(
            chat_json(row, self.field, self.arguments, columnar=columnar, is_prompt=True)
        )

    def instead(self, fields: Iterable[str]) -> str:
        """Returns the fields that a row has, and what to set."""
        there = list(fields)
        return f", but {listed(there)}; set --prompt-field or --messages-field" if there else ""

    def names_in(self, row: Any) -> Iterator[str]:
        """Yields the names of a row's fields."""
        return field_names(row)


_PROMPTS = PromptContent(PROMPT_FIELD, takes_text=True)


def _checked(said: str) -> str:
    try:
        said.encode()
    except UnicodeEncodeError:
        raise UnusableError("its prompt has a lone surrogate") from None
    return said


@dataclass(frozen=True)
class Prompt:
    """A prompt: its JSON (see PromptContent), and the hash by which its answers are kept."""

    key: str
    text: str


@dataclass(frozen=True)
class Prompts:
    """The prompts of the inputs, each once.

    Attributes:
        documents: one for each prompt, in order.
        content: what their rows hold.
        duplicates: rows that ask what another has asked before.
        left_out: what cannot be used.
    """

    documents: list[Document]
    content: PromptContent
    duplicates: int
    left_out: list[LeftOut] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.documents)

    def read(self, documents: Iterable[Document] | None = None) -> Iterator[Prompt]:
        """Yields these prompts, of which few are in memory; None means all.

        Raises CorruptData if a file has changed.
        """
        wanted = self.documents if documents is None else list(documents)
        for document, text in zip(wanted, texts_of(wanted, self.content), strict=True):
            yield Prompt(document.sha256, text)


def found_prompts(
    settings: GenerateSettings,
    on_progress: Callable[[str, int, int], None],
    arguments: Callable[[str], tuple[str, ...]] = lambda field: (),
) -> Prompts:
    """Finds, checks and hashes every prompt of the inputs.

    Args:
        settings: the inputs, and how to read them.
        on_progress: called with ("reading", bytes done, bytes in all).
        arguments: returns, given the field with the prompts, further fields that the chat template
            reads.

    Raises:
        NotFound: an input does not exist.
        InvalidRequest: there is no prompt in them, or too many rows cannot be used.
        Misconfigured: there are Parquet files, but pyarrow is not installed.
    """
    left_out: list[LeftOut] = []
    found = find_files(
        list(settings.inputs), list(settings.include), list(settings.exclude), left_out.append
    )
    files = [entry for entry in found if suffix_of(entry[1]) in ROW_SUFFIXES]
    for name, path in found:
        if suffix_of(path) not in ROW_SUFFIXES:
            why = f"not a file of prompts; those end in {', '.join(ROW_SUFFIXES)}"
            left_out.append(LeftOut(inert_name(name), why))
    content = _content(settings, [path for _, path in files])
    content = replace(content, arguments=arguments(content.field))
    documents, lost = scan(
        files,
        content=content,
        max_document_bytes=MAX_DOCUMENT_BYTES,
        on_progress=partial(on_progress, "reading"),
    )
    left_out += lost
    endings = {document.path.suffix for document in documents}
    Faults(settings.max_fault_fraction, len(documents), left_out, endings).require_few()
    once: dict[str, Document] = {}
    for document in documents:
        once.setdefault(document.sha256, document)
    return Prompts([*once.values()], content, len(documents) - len(once), left_out)


def _content(settings: GenerateSettings, files: list[Path]) -> PromptContent:
    """Returns which field holds the prompts: the given one, or the one that the rows have."""
    if settings.messages_field is not None:
        return PromptContent(settings.messages_field)
    if settings.prompt_field is not None:
        return PromptContent(settings.prompt_field, takes_text=True)
    for path in files:
        names = _first_names(path)
        has_chat, has_prompt = MESSAGES_FIELD in names, PROMPT_FIELD in names
        if has_chat and has_prompt:
            raise InvalidRequest(
                f"the rows of {inert_name(path)} have both {MESSAGES_FIELD!r} and "
                f"{PROMPT_FIELD!r}: set --messages-field {MESSAGES_FIELD} or --prompt-field "
                f"{PROMPT_FIELD}",
                "prompt_field",
            )
        if has_chat or has_prompt:
            return PromptContent(MESSAGES_FIELD) if has_chat else _PROMPTS
    return _PROMPTS


def _first_names(path: Path) -> list[str]:
    """Returns the fields of a file's first row that has any; none if it cannot be read.

    Of a Parquet file, only those in which prompts are looked for.
    """
    try:
        if suffix_of(path) in PARQUET_SUFFIXES:
            return [name for name in (MESSAGES_FIELD, PROMPT_FIELD) if _has_column(path, name)]
        with opened(path) as stream:
            stream.seek(0)
            for data in islice(_rows(path, stream), _ROWS_LOOKED_AT):
                row = json.loads(data.decode("utf-8-sig").strip() or "null")
                if isinstance(row, dict):
                    return list(row)
    except (*READ_ERRORS, UnusableError, ValueError, RecursionError):
        return []  # the scan says what is wrong with it
    return []


def _rows(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    if suffix_of(path) in JSON_LINES_SUFFIXES:
        yield from iter(partial(stream.readline, MAX_DOCUMENT_BYTES), b"")
    else:
        yield from (value.data or b"" for value in json_values(stream, MAX_DOCUMENT_BYTES))


def _has_column(path: Path, name: str) -> bool:
    try:
        open_parquet(path, PromptContent(name)).close()
    except UnusableError:
        return False
    return True
