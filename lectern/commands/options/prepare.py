"""The options of `lectern data prepare`, with their help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Text files, .jsonl, .json or Parquet files (one document per row), any but Parquet "
        "also as .gz, .bz2 or .xz, or folders of them.",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Option(help="Name under the data root, or a folder (anything with a slash)."),
]
Dataset = Annotated[
    str,
    typer.Argument(
        help="Name under the data root, or a folder (anything with a slash).", show_default=False
    ),
]
Documents = Annotated[
    int, typer.Option(min=0, max=1000, help="How many of its first documents to show.")
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(help="The teacher's tokenizer.json, or the folder it is in.", show_default=False),
]
TrainTokenizer = Annotated[
    int | None,
    typer.Option(
        metavar="VOCAB_SIZE",
        help="Instead of --tokenizer: train a byte-level BPE tokenizer of this size.",
        show_default=False,
    ),
]
Prompts = Annotated[
    bool,
    typer.Option(
        "--prompts",
        help="Make a prompt set, for a student to continue: of each row the text under `prompt`, "
        "or with --chat the chat without the assistant's messages at its end, up to where its next "
        "one begins.",
    ),
]
Eos = Annotated[
    Literal["none", "between", "after"] | None,
    typer.Option(
        help="Put the end-of-text token after each document, between them, or nowhere "
        "[default: after; none with --prompts].",
        show_default=False,
    ),
]
EosToken = Annotated[
    str | None,
    typer.Option(
        help="End-of-text token [default: the tokenizer's own, but for text not one that ends the "
        "turns of a chat; <|endoftext|> for a trained one].",
        show_default=False,
    ),
]
BosPolicy = Annotated[
    Literal["auto", "none", "document", "row"],
    typer.Option(
        help="Put the token that begins a text (BOS) before each document, at the start of each "
        "row, or nowhere; auto: before each document if the tokenizer does so. Chats begin as "
        "their template says."
    ),
]
ValidationFraction = Annotated[
    float,
    typer.Option(
        help="Share of the text to hold out in OUTPUT-validation, in whole documents; 0 for none."
    ),
]
HeldOut = Annotated[
    float | None,
    typer.Option(
        help="Share of the text to hold out in OUTPUT-validation, in whole documents; 0 for none "
        "[default: 0.01; 0 with --prompts].",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed for choosing the held-out documents [default: 0].", show_default=False),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="From folders, take only files whose name or path matches; may be repeated "
        "[default: all but hidden ones].",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out files and folders whose name or path matches; may be repeated.",
        show_default=False,
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        help="Field of a row that holds its text [default: text; prompt with --prompts].",
        show_default=False,
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Read rows as chats, [{role, content}, ...], and apply the tokenizer's chat template; "
        "only the assistant's turns are learnt.",
    ),
]
MessagesField = Annotated[
    str | None,
    typer.Option(
        help="Field of a row that holds its chat [default: messages].", show_default=False
    ),
]
Date = Annotated[
    str | None,
    typer.Option(
        metavar="YYYY-MM-DD",
        help="The date that a chat template is told if it asks [default: the day on which the "
        "preparation began].",
        show_default=False,
    ),
]
Hub = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="A hub dataset, streamed, or a folder that the datasets library reads.",
        show_default=False,
    ),
]
HubConfig = Annotated[
    str | None, typer.Option(help="Configuration of the hub dataset.", show_default=False)
]
HubSplit = Annotated[
    str | None, typer.Option(help="Split of the hub dataset [default: train].", show_default=False)
]
HubRevision = Annotated[
    str | None,
    typer.Option(
        help="Commit, tag or branch of the hub dataset; a commit always gives the same text.",
        show_default=False,
    ),
]
ShardTokens = Annotated[int, typer.Option(help="Tokens per shard file.")]
SeqLengthHint = Annotated[
    int | None,
    typer.Option(help="Row length to record in the manifest.", show_default=False),
]
MaxDocumentBytes = Annotated[int, typer.Option(help="Leave out larger documents, and name them.")]
MaxFaultFraction = Annotated[
    float,
    typer.Option(
        help="Share of documents that may be unreadable, not text or too large; above it, nothing "
        "is written. Empty ones do not count."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that tokenise [default: one per core].", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing datasets of this name.")]
