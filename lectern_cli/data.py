"""`lectern data`: datasets on this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lectern_cli import console
from lectern_cli.options import Home, Json, command_group, roots_of
from lectern_common.errors import InvalidRequest
from lectern_common.words import counted

if TYPE_CHECKING:
    from lectern_data.hub import HubDataset
    from lectern_data.prepare import Prepared
    from lectern_data.rows import Content
    from lectern_data.written_parts import Part

app = command_group("Make datasets.")
NAMES_SHOWN = 20


@app.command(
    epilog="Example: lectern data prepare ./src --include '*.py' --train-tokenizer 2048 "
    "--validation-fraction 0.05 --output code"
)
def prepare(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Text files, .jsonl and Parquet files (a document a row), and folders of them.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[
        str,
        typer.Option(help="Name below the data root, or a folder (anything with a slash)."),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The teacher's tokenizer.json, or its folder.", show_default=False),
    ] = None,
    train_tokenizer: Annotated[
        int | None,
        typer.Option(
            metavar="VOCAB_SIZE",
            help="Train a byte-level BPE of this size instead.",
            show_default=False,
        ),
    ] = None,
    eos_policy: Annotated[
        Literal["none", "between", "after"],
        typer.Option(help="Where the end-of-text token stands among documents."),
    ] = "after",
    eos_token: Annotated[
        str | None,
        typer.Option(
            help="End-of-text token [default: what the tokenizer says; <|endoftext|> for a "
            "trained one].",
            show_default=False,
        ),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(
            help="Share of the text, as whole documents, that goes to OUTPUT-validation; 0: none."
        ),
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Draws the documents held out.")] = 0,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Below folders, only files whose name or path matches; may be repeated "
            "[default: all but hidden ones].",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out files and folders whose name or path matches; may be repeated.",
            show_default=False,
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(help="Where a row holds its text [default: text].", show_default=False),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="A row holds a chat, [{role, content}, ...]: it goes through the tokenizer's chat "
            "template, and the assistant's turns alone are learnt.",
        ),
    ] = False,
    messages_field: Annotated[
        str | None,
        typer.Option(help="Where a row holds its chat [default: messages].", show_default=False),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="A dataset of a hub, streamed; or a folder that `datasets` reads.",
            show_default=False,
        ),
    ] = None,
    hub_config: Annotated[
        str | None, typer.Option(help="Its configuration.", show_default=False)
    ] = None,
    hub_split: Annotated[
        str | None, typer.Option(help="Its split [default: train].", show_default=False)
    ] = None,
    hub_revision: Annotated[
        str | None,
        typer.Option(
            help="Its commit, tag or branch; a commit gives the same text for ever.",
            show_default=False,
        ),
    ] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens of one shard file.")] = 1 << 24,
    seq_length_hint: Annotated[
        int | None,
        typer.Option(help="Row length to note in the manifest.", show_default=False),
    ] = None,
    max_document_bytes: Annotated[
        int, typer.Option(help="A larger document is left out, and named.")
    ] = 8 << 20,
    max_fault_fraction: Annotated[
        float,
        typer.Option(
            help="Share of documents that may be unreadable, no text or too large; above it "
            "nothing is written."
        ),
    ] = 0.01,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that tokenise [default: one a core].", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace datasets of this name.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Turn text into token shards with a manifest and the tokenizer: what runs train on.

    Writes OUTPUT and, of held-out documents, OUTPUT-validation. Both appear whole or not at all,
    and the same input gives the same bytes. Killed at any instant, the same command goes on from
    what is done.
    """
    from lectern_data.prepare import prepare as prepare_data

    with console.progress() as display:
        tasks: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage)
            display.update(tasks[stage], completed=done, total=total)

        prepared = prepare_data(
            inputs or [],
            _output_folder(output, home),
            hub_dataset=_hub_dataset(hub, hub_config, hub_split, hub_revision),
            tokenizer=tokenizer,
            train_vocab_size=train_tokenizer,
            eos_policy=eos_policy,
            eos_token=eos_token,
            validation_fraction=validation_fraction,
            seed=seed,
            include=include or (),
            exclude=exclude or (),
            content=_content(text_field, messages_field, chat=chat),
            shard_tokens=shard_tokens,
            seq_length_hint=seq_length_hint,
            max_document_bytes=max_document_bytes,
            max_fault_fraction=max_fault_fraction,
            workers=workers,
            force=force,
            on_progress=on_progress,
            on_event=console.note,
        )
    _report_left_out(prepared)
    if as_json:
        console.print_json(asdict(prepared))
        return
    for part in (prepared.training, prepared.validation):
        if part is not None:
            print(_told(part, chat=chat))
    print(f"vocabulary of {prepared.vocab_size:,}, {prepared.seconds:,.1f} s")


def _output_folder(output: str, home: Path | None) -> Path:
    return Path(output) if "/" in output else roots_of(home).data / output


def _content(text_field: str | None, messages_field: str | None, *, chat: bool) -> "Content":
    from lectern_data.rows import MESSAGES_FIELD, TEXT_FIELD, Content

    if chat and text_field is not None:
        raise InvalidRequest("--text-field has no effect with --chat", "text_field")
    if not chat and messages_field is not None:
        raise InvalidRequest("--messages-field has no effect without --chat", "messages_field")
    if chat:
        return Content(messages_field or MESSAGES_FIELD, is_chat=True)
    return Content(text_field or TEXT_FIELD)


def _hub_dataset(
    name: str | None, config: str | None, split: str | None, revision: str | None
) -> "HubDataset | None":
    from lectern_data.hub import HubDataset

    if name is not None:
        return HubDataset(name, config, split or "train", revision)
    for option, value in (("config", config), ("split", split), ("revision", revision)):
        if value is not None:
            raise InvalidRequest(f"--hub-{option} has no effect without --hub", f"hub_{option}")
    return None


def _told(part: "Part", *, chat: bool) -> str:
    learnt = f", {counted(part.learnt_tokens, 'token')} of the assistant" if chat else ""
    return (
        f"{part.path}: {counted(part.tokens, 'token')} of {counted(part.documents, 'document')} "
        f"({part.text_bytes / part.tokens:.2f} bytes a token), {counted(part.shards, 'shard')}"
        f"{learnt}"
    )


def _report_left_out(prepared: "Prepared") -> None:
    left_out = prepared.left_out
    if not left_out:
        return
    total = sum(entry.documents for entry in left_out)
    console.note(f"left out: {counted(total, 'document')}")
    for entry in left_out[:NAMES_SHOWN]:
        console.note(f"  {entry.name}: {entry.reason}")
    if len(left_out) > NAMES_SHOWN:
        console.note(f"  and {len(left_out) - NAMES_SHOWN:,} more (--json names all)")
