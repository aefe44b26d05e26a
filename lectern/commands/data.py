"""`lectern data`: prepares datasets on this machine, of text or of a model's answers."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lectern import console
from lectern.commands.options import generate as asking
from lectern.commands.options import prepare as options
from lectern.options import Home, Json, command_group, roots_of
from lectern.terminal.generated import generated_lines
from lectern.terminal.prepared import print_left_out, print_prepared
from lectern.terminal.shown import shown_lines
from lectern_common.errors import InvalidRequest

if TYPE_CHECKING:
    from lectern_data.asking.generate import Generated
    from lectern_data.read.hub import HubDataset
    from lectern_data.read.rows import Content
    from lectern_data.settings import Progress

app = command_group("Prepare datasets, have a model write them, or show them.")
# What the stages of a preparation count.
UNITS = {
    "asking": "for answers",
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
    validation_fraction: options.HeldOut = None,
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
    from lectern_data.prepare import prepare as prepare_data
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
    with _shown() as on_progress:
        prepared = prepare_data(settings, on_progress=on_progress, on_event=console.note)
    print_left_out(prepared.left_out)
    if as_json:
        console.print_json(asdict(prepared))
    else:
        print_prepared(prepared, chat=chat)
    if prepared.vocab_size < (train_tokenizer or 0):
        console.note(
            f"the text gave a vocabulary of {prepared.vocab_size:,} tokens, not {train_tokenizer:,}"
        )


@app.command(
    epilog="Example: lectern data generate prompts.jsonl --from http://127.0.0.1:8000/v1 "
    "--model ./qwen --output qwen-answers"
)
def generate(
    prompts: asking.Prompts,
    *,
    server: asking.From,
    model: asking.Model,
    output: asking.Output,
    tokenizer: asking.TokenizerPath = None,
    send: asking.Send = "auto",
    prompt_field: asking.PromptField = None,
    messages_field: asking.MessagesField = None,
    samples: asking.Samples = 1,
    seed: asking.Seed = 0,
    max_tokens: asking.MaxTokens = 1024,
    temperature: asking.Temperature = None,
    top_p: asking.TopP = None,
    cut: asking.Cut = "keep",
    concurrency: asking.Concurrency = 16,
    timeout_seconds: asking.TimeoutSeconds = 600.0,
    outage_seconds: asking.OutageSeconds = 600.0,
    include: options.Include = None,
    exclude: options.Exclude = None,
    validation_fraction: options.ValidationFraction = 0.01,
    max_fault_fraction: asking.MaxFaultFraction = 0.01,
    force: asking.Force = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Ask a model for answers to prompts, and make a dataset of them.

    Any server with the OpenAI interface will do: vLLM, SGLang, llama.cpp, transformers serve. Each
    answer is kept as soon as it is there: if the command is killed, or the server goes away, run it
    again, and it asks only for the others.
    """
    from lectern_data.asking.generate import generate as generate_data
    from lectern_data.asking.settings import ANSWERS_SUFFIX, GenerateSettings

    is_file = output.endswith(ANSWERS_SUFFIX)
    settings = GenerateSettings(
        inputs=prompts,
        server=server,
        model=model,
        output=Path(output) if is_file else _output_folder(output, home),
        tokenizer=tokenizer,
        send=send,
        prompt_field=prompt_field,
        messages_field=messages_field,
        samples=samples,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        keep_cut=cut == "keep",
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        outage_seconds=outage_seconds,
        include=include or (),
        exclude=exclude or (),
        validation_fraction=validation_fraction,
        max_fault_fraction=max_fault_fraction,
        force=force,
    )
    with _shown() as on_progress:
        generated = generate_data(settings, on_progress=on_progress, on_event=console.note)
    _report_generated(generated, as_json=as_json)


@contextmanager
def _shown() -> "Iterator[Progress]":
    """Yields a function that shows how far each stage of a preparation is."""
    with console.progress() as advance:
        yield lambda stage, done, total: advance(f"{stage} {UNITS[stage]}", done, total)


def _report_generated(generated: "Generated", *, as_json: bool) -> None:
    left_out = generated.left_out
    if generated.prepared is not None:
        left_out = left_out + generated.prepared.left_out
    print_left_out(left_out)
    if as_json:
        console.print_json(asdict(generated))
        return
    for line in generated_lines(generated):
        print(line)
    if generated.prepared is not None:
        print_prepared(generated.prepared, chat=generated.prepared.chat_shares != [])


@app.command(epilog="Example: lectern data show my-prompts")
def show(
    dataset: options.Dataset,
    *,
    documents: options.Documents = 3,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what a dataset or a prompt set holds.

    Its counts, its tokenizer, and its first documents as text: the beginning of each, or the end of
    a prompt, after which a student writes.
    """
    from lectern_data.shown import shown_dataset

    found = shown_dataset(_output_folder(dataset, home), documents)
    if as_json:
        console.print_json(asdict(found))
    else:
        print("\n".join(shown_lines(found)))


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
