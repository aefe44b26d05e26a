"""`lectern data`: prepares datasets on this machine."""

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lectern import console
from lectern.commands.options import prepare as options
from lectern.options import Home, Json, command_group, roots_of
from lectern_common.errors import InvalidRequest
from lectern_common.words import counted, inert_name

if TYPE_CHECKING:
    from lectern_common.tokens.chat_rows import ChatShares
    from lectern_data.prepare import Prepared
    from lectern_data.read.hub import HubDataset
    from lectern_data.read.rows import Content
    from lectern_data.settings import PrepareSettings
    from lectern_data.write.written_parts import Part

app = command_group("Prepare datasets.")
NAMES_SHOWN = 20
# What the stages of a preparation count.
UNITS = {
    "fetching": "rows",
    "reading": "bytes",
    "tokenizer": "training, documents",
    "tokenizing": "documents",
    "writing": "documents",
}


@app.command(
    epilog="Example: lectern data prepare ./src --include '*.py' --train-tokenizer 2048 "
    "--validation-fraction 0.05 --output code"
)
def prepare(
    inputs: options.Inputs = None,
    *,
    output: options.Output,
    tokenizer: options.TokenizerPath = None,
    train_tokenizer: options.TrainTokenizer = None,
    prompts: options.Prompts = False,
    eos_policy: options.Eos = None,
    eos_token: options.EosToken = None,
    bos_policy: options.BosPolicy = "auto",
    validation_fraction: options.ValidationFraction = None,
    seed: options.Seed = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    text_field: options.TextField = None,
    chat: options.Chat = False,
    messages_field: options.MessagesField = None,
    date: options.Date = None,
    hub: options.Hub = None,
    hub_config: options.HubConfig = None,
    hub_split: options.HubSplit = None,
    hub_revision: options.HubRevision = None,
    shard_tokens: options.ShardTokens = 1 << 24,
    seq_length_hint: options.SeqLengthHint = None,
    max_document_bytes: options.MaxDocumentBytes = 8 << 20,
    max_fault_fraction: options.MaxFaultFraction = 0.01,
    workers: options.Workers = None,
    force: options.Force = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Turn text into token shards to train on, or into a prompt set to continue.

    Writes a dataset (shards, manifest, tokenizer) to OUTPUT, and the held-out documents to
    OUTPUT-validation; with --prompts, only a prompt set to OUTPUT. They appear whole or not at all,
    and the same input gives the same bytes. If the command is killed, run it again: it continues
    where it was.
    """
    from lectern_data.settings import PrepareSettings

    if prompts and seed is not None:
        raise InvalidRequest("--seed does not fit --prompts: no prompts are held out", "seed")
    if validation_fraction is None:
        validation_fraction = 0.0 if prompts else PrepareSettings.validation_fraction
    settings = PrepareSettings(
        inputs=inputs or [],
        output=_output_folder(output, home),
        hub_dataset=_hub_dataset(hub, hub_config, hub_split, hub_revision),
        tokenizer=tokenizer,
        train_vocab_size=train_tokenizer,
        eos_policy=eos_policy or ("none" if prompts else PrepareSettings.eos_policy),
        eos_token=eos_token,
        bos_policy=bos_policy,
        validation_fraction=validation_fraction,
        seed=PrepareSettings.seed if seed is None else seed,
        include=include or (),
        exclude=exclude or (),
        content=_content(text_field, messages_field, chat=chat, prompts=prompts),
        date=_date(date),
        shard_tokens=shard_tokens,
        seq_length_hint=seq_length_hint,
        max_document_bytes=max_document_bytes,
        max_fault_fraction=max_fault_fraction,
        workers=workers,
        force=force,
    )
    prepared = _prepared(settings)
    _report(prepared, chat=chat, as_json=as_json)
    if prepared.vocab_size < (train_tokenizer or 0):
        console.note(
            f"the text gave a vocabulary of {prepared.vocab_size:,} tokens, not {train_tokenizer:,}"
        )


def _prepared(settings: "PrepareSettings") -> "Prepared":
    """Prepares the dataset, and shows how far each stage is."""
    from lectern_data.prepare import prepare as prepare_data

    with console.progress() as advance:

        def on_progress(stage: str, done: int, total: int) -> None:
            advance(f"{stage} {UNITS[stage]}", done, total)

        return prepare_data(settings, on_progress=on_progress, on_event=console.note)


def _report(prepared: "Prepared", *, chat: bool, as_json: bool) -> None:
    _report_left_out(prepared)
    if as_json:
        console.print_json(asdict(prepared))
        return
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


def _output_folder(output: str, home: Path | None) -> Path:
    return Path(output) if "/" in output else roots_of(home).data / output


def _content(
    text_field: str | None, messages_field: str | None, *, chat: bool, prompts: bool
) -> "Content":
    from lectern_data.read.rows import MESSAGES_FIELD, PROMPT_FIELD, TEXT_FIELD, Content

    if chat and text_field is not None:
        raise InvalidRequest("--text-field has no effect with --chat", "text_field")
    if not chat and messages_field is not None:
        raise InvalidRequest("--messages-field has no effect without --chat", "messages_field")
    if chat:
        return Content(messages_field or MESSAGES_FIELD, is_chat=True, is_prompt=prompts)
    return Content(text_field or (PROMPT_FIELD if prompts else TEXT_FIELD), is_prompt=prompts)


def _date(text: str | None) -> datetime.date | None:
    if text is None:
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"--date {text!r} is not a date, YYYY-MM-DD", "date") from None


def _hub_dataset(
    name: str | None, config: str | None, split: str | None, revision: str | None
) -> "HubDataset | None":
    from lectern_data.read.hub import HubDataset

    if name is not None:
        return HubDataset(name, config, split or "train", revision)
    for option, value in (("config", config), ("split", split), ("revision", revision)):
        if value is not None:
            raise InvalidRequest(f"--hub-{option} has no effect without --hub", f"hub_{option}")
    return None


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


def _report_left_out(prepared: "Prepared") -> None:
    """Prints how many documents were left out, and names them: faults first, then empty ones."""
    left_out = sorted(prepared.left_out, key=lambda entry: not entry.is_fault)
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
