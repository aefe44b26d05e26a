"""What `lectern data prepare` says at its end: the parts, their edges, and what was left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lectern import console
from lectern_common.words import counted, inert_name

if TYPE_CHECKING:
    from lectern_common.tokens.chat_rows import ChatShares
    from lectern_data.prepare import Prepared
    from lectern_data.read.documents import LeftOut
    from lectern_data.write.written_parts import Part

NAMES_SHOWN = 20


def print_prepared(prepared: "Prepared", *, chat: bool) -> None:
    """Prints what was prepared: its parts, and which tokens begin and end a document."""
    if prepared.longest_prompt is not None:
        print(_prompts_summary(prepared.training, prepared.longest_prompt))
        print(_beginning(prepared, "prompt"))
        print(_took(prepared))
        return
    for part in (prepared.training, prepared.validation):
        if part is not None:
            print(_summary(part, chat=chat))
    print(_edges(prepared, "chat" if chat else "document"))
    for cut in prepared.chat_shares:
        if cut.rule == "cut":
            print(_shares(cut, prepared.chat_shares))
    print(_took(prepared))


def _summary(part: "Part", *, chat: bool) -> str:
    learnt = f", {counted(part.learnt_tokens, 'token')} from the assistant" if chat else ""
    several = ""
    if chat and part.sequences != part.documents:
        several = f" in {counted(part.sequences, 'sequence')}"
    return (
        f"{inert_name(part.path)}: {counted(part.tokens, 'token')} from "
        f"{counted(part.documents, 'document')}{several} "
        f"({part.text_bytes / part.tokens:.2f} bytes per token), {counted(part.shards, 'shard')}"
        f"{learnt}"
    )


def _prompts_summary(part: "Part", longest: int) -> str:
    return (
        f"{inert_name(part.path)}: {counted(part.documents, 'prompt')} with "
        f"{counted(part.tokens, 'token')}, {part.tokens / part.documents:,.1f} on average, "
        f"the longest {longest:,}; {counted(part.shards, 'shard')}"
    )


def _took(prepared: "Prepared") -> str:
    return f"vocabulary of {prepared.vocab_size:,} tokens; took {prepared.seconds:,.1f} s"


def _edges(prepared: "Prepared", what: str) -> str:
    """Returns which tokens begin and end a document, and why these."""
    if prepared.eos_token is None:
        end = f"no token ends a {what} (--eos-policy none)"
        if what == "chat":
            end = "a chat ends as its template writes it; no token is added (--eos-policy none)"
    else:
        end = f"a {what} ends in {prepared.eos_token} (id {prepared.eos_token_id}): "
        end += f"{prepared.eos_from}"
    return f"{_beginning(prepared, what)}\n{end}"


def _beginning(prepared: "Prepared", what: str) -> str:
    """Returns which token begins a document, and why this one."""
    named = f"{prepared.bos_token} (id {prepared.bos_token_id})"
    begin = {
        "none": f"no token begins a {what}",
        "document": f"a {what} begins with {named}",
        "row": f"{named} begins each row of a run",
    }[prepared.bos_policy]
    return f"{begin}: {prepared.bos_from}"


def _shares(cut: "ChatShares", others: "list[ChatShares]") -> str:
    """Returns what rows of one length make of the chats."""
    words = (
        f"data.seq_len {cut.seq_len:,}: {counted(cut.rows, 'row')}, {cut.padding:.1%} padding, "
        f"{cut.labels_of_positions:.1%} of positions learnt"
    )
    if cut.longer:
        [drop] = (one for one in others if one.rule == "drop" and one.seq_len == cut.seq_len)
        words += (
            f"; {cut.longer:,} of {counted(cut.chats, 'chat')} longer: data.long_chats cut loses "
            f"{cut.labels_lost:.1%} of what is learnt, drop {drop.labels_lost:.1%}"
        )
    return words


def print_left_out(entries: "Sequence[LeftOut]") -> None:
    """Prints to standard error how many documents were left out, and names them.

    Faults come first, then empty ones.
    """
    left_out = sorted(entries, key=lambda entry: not entry.is_fault)
    if not left_out:
        return
    total = sum(entry.documents for entry in left_out)
    harmless = sum(entry.documents for entry in left_out if not entry.is_fault)
    apart = f", {harmless:,} of them without a fault" if 0 < harmless < total else ""
    console.note(f"left out: {counted(total, 'document')}{apart}")
    for entry in left_out[:NAMES_SHOWN]:
        console.note(f"  {entry.name}: {entry.reason}")
    if len(left_out) > NAMES_SHOWN:
        console.note(f"  and {len(left_out) - NAMES_SHOWN:,} more (--json lists them all)")
