"""The options of `lectern data prepare`: what each takes, and what its help says."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Text files, .jsonl and Parquet files (a document a row), and folders of them.",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Option(help="Name below the data root, or a folder (anything with a slash)."),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(help="The teacher's tokenizer.json, or its folder.", show_default=False),
]
TrainTokenizer = Annotated[
    int | None,
    typer.Option(
        metavar="VOCAB_SIZE",
        help="Train a byte-level BPE of this size instead.",
        show_default=False,
    ),
]
Eos = Annotated[
    Literal["none", "between", "after"],
    typer.Option(help="Where the end-of-text token stands among documents."),
]
EosToken = Annotated[
    str | None,
    typer.Option(
        help="End-of-text token [default: what the tokenizer says; <|endoftext|> for a "
        "trained one].",
        show_default=False,
    ),
]
ValidationFraction = Annotated[
    float,
    typer.Option(
        help="Share of the text, as whole documents, that goes to OUTPUT-validation; 0: none."
    ),
]
Seed = Annotated[int, typer.Option(help="Draws the documents held out.")]
Include = Annotated[
    list[str] | None,
    typer.Option(
        help="Below folders, only files whose name or path matches; may be repeated "
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
    typer.Option(help="Where a row holds its text [default: text].", show_default=False),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="A row holds a chat, [{role, content}, ...]: it goes through the tokenizer's chat "
        "template, and the assistant's turns alone are learnt.",
    ),
]
MessagesField = Annotated[
    str | None,
    typer.Option(help="Where a row holds its chat [default: messages].", show_default=False),
]
Hub = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="A dataset of a hub, streamed; or a folder that `datasets` reads.",
        show_default=False,
    ),
]
HubConfig = Annotated[str | None, typer.Option(help="Its configuration.", show_default=False)]
HubSplit = Annotated[
    str | None, typer.Option(help="Its split [default: train].", show_default=False)
]
HubRevision = Annotated[
    str | None,
    typer.Option(
        help="Its commit, tag or branch; a commit gives the same text for ever.",
        show_default=False,
    ),
]
ShardTokens = Annotated[int, typer.Option(help="Tokens of one shard file.")]
SeqLengthHint = Annotated[
    int | None,
    typer.Option(help="Row length to note in the manifest.", show_default=False),
]
MaxDocumentBytes = Annotated[int, typer.Option(help="A larger document is left out, and named.")]
MaxFaultFraction = Annotated[
    float,
    typer.Option(
        help="Share of documents that may be unreadable, no text or too large; above it "
        "nothing is written."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that tokenise [default: one a core].", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace datasets of this name.")]
