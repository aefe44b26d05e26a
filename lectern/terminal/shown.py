"""A dataset or prompt set as plain text: what it holds, and its first documents."""

from typing import TYPE_CHECKING

from lectern_common.words import counted, inert_name

if TYPE_CHECKING:
    from lectern_data.shown import ShownDataset

_KINDS = {"text": "a dataset of text", "chats": "a dataset of chats", "prompts": "a prompt set"}
_UNITS = {"text": "document", "chats": "sequence", "prompts": "prompt"}
_NUMBER_WIDTH = 4


def shown_lines(found: "ShownDataset") -> list[str]:
    """Returns the lines that describe a dataset."""
    unit = _UNITS[found.holds]
    lines = [
        f"{inert_name(found.path)}: {_KINDS[found.holds]}",
        f"{_documents(found, unit)}{counted(found.tokens, 'token')} in "
        f"{counted(found.shards, 'shard')}",
        f"vocabulary of {found.vocab_size:,} tokens, tokenizer sha256 {found.tokenizer_sha256}",
        _edges(found, unit),
    ]
    if found.texts is None:
        return [*lines, "no text can be shown: there is no tokenizer.json, or no document starts"]
    return [*lines, *(f"{at:>{_NUMBER_WIDTH}}  {text!r}" for at, text in enumerate(found.texts))]


def _documents(found: "ShownDataset", unit: str) -> str:
    if found.documents is None or found.longest is None:
        return ""
    chats = "" if found.chats is None else f" of {counted(found.chats, 'chat')}"
    mean = found.tokens / found.documents
    return (
        f"{counted(found.documents, unit)}{chats}, {mean:,.1f} tokens on average, the longest "
        f"{found.longest:,}; "
    )


def _edges(found: "ShownDataset", unit: str) -> str:
    begin = {
        "none": f"no token begins a {unit}",
        "document": f"id {found.bos_token_id} begins each {unit}",
        "row": f"id {found.bos_token_id} begins each row of a run",
    }[found.bos_policy]
    end = {
        "none": f"no token is put behind a {unit}",
        "between": f"id {found.eos_token_id} stands between {unit}s",
        "after": f"id {found.eos_token_id} ends each {unit}",
    }[found.eos_policy]
    return f"{begin}; {end}"
