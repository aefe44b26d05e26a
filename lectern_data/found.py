"""Finds the documents of a preparation: files, rows of a hub dataset, and what they hold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lectern_data.read import hub
from lectern_data.read.documents import Document, LeftOut
from lectern_data.read.input_files import find_files
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan
from lectern_data.read.unusable import listed
from lectern_data.settings import PrepareSettings, Progress
from lectern_data.tokens.template_needs import TemplateNeeds
from lectern_data.tokens.tokenizer import DatasetTokenizer
from lectern_data.write.work_folder import Work


@dataclass(frozen=True)
class Found:
    """What there is to tokenise.

    Attributes:
        documents: in a fixed order.
        left_out: what cannot be used, folders included.
        content: what a row holds, with the fields that the chat template reads.
        date: what the chat template is told, as YYYY-MM-DD; None if it asks for none.
    """

    documents: list[Document]
    left_out: list[LeftOut]
    content: Content
    date: str | None


def found_documents(
    settings: PrepareSettings,
    tokenizer: DatasetTokenizer | None,
    work: Work,
    on_progress: Progress,
    on_event: Callable[[str], None],
) -> Found:
    """Finds, checks and hashes every document; reports the fields of rows that are not used.

    Args:
        settings: the inputs.
        tokenizer: None if it is trained later, which no chat needs.
        work: where rows of a hub dataset are kept.
        on_progress, on_event: see prepare.
    """
    needs, date = _template_needs(settings, tokenizer, work, on_event)
    content = needs.content if needs else settings.content
    columns: dict[str, None] = {}
    files, not_walked = _files(settings, content, columns, work, on_progress, on_event)
    documents, left_out = scan(
        files,
        content=content,
        max_document_bytes=settings.max_document_bytes,
        on_progress=partial(on_progress, "reading"),
        columns=columns,
    )
    if needs and needs.unused(columns):
        on_event(f"fields that are not used: {listed(needs.unused(columns))}")
    return Found(documents, not_walked + left_out, content, date)


def _template_needs(
    settings: PrepareSettings,
    tokenizer: DatasetTokenizer | None,
    work: Work,
    on_event: Callable[[str], None],
) -> tuple[TemplateNeeds | None, str | None]:
    """Returns what the chat templates read, and the date to tell them; None, None for texts."""
    if tokenizer is None or not settings.content.is_chat:
        return None, None
    needs = TemplateNeeds.of(tokenizer, settings.content)
    date = needs.date(settings.date, work.begun)
    if date is not None:
        on_event(f"the chat template is told the date {date} (--date)")
    return needs, None if date is None else date.isoformat()


def _files(
    settings: PrepareSettings,
    content: Content,
    columns: dict[str, None],
    work: Work,
    on_progress: Progress,
    on_event: Callable[[str], None],
) -> tuple[list[tuple[str, Path]], list[LeftOut]]:
    """Returns (name, path) of each input file, then of the file with the hub's rows; and the
    folders that were not walked.

    Adds the fields of the hub's rows to `columns`.
    """
    not_walked: list[LeftOut] = []
    files = find_files(
        list(settings.inputs), list(settings.include), list(settings.exclude), not_walked.append
    )
    if settings.hub_dataset is not None:
        fetched = hub.fetch(
            settings.hub_dataset,
            content,
            work.path,
            on_progress=partial(on_progress, "fetching"),
        )
        files.append((fetched.name, fetched.path))
        columns.update(dict.fromkeys(fetched.columns))
        if fetched.revision is not None:
            on_event(f"{settings.hub_dataset.name} at revision {fetched.revision}")
    return files, not_walked
