"""The options of `lectern data generate`, with their help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Prompts = Annotated[
    list[Path],
    typer.Argument(
        metavar="PROMPTS",
        help="Files with one prompt per row (.jsonl, .json or Parquet, any but Parquet also as "
        ".gz, .bz2 or .xz), or folders of them: chats under `messages`, whose last answer is left "
        "out, or a text or chat under `prompt`.",
        show_default=False,
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="URL",
        help="Server with the OpenAI interface, such as http://127.0.0.1:8000/v1; without a path, "
        "/v1 is meant. OPENAI_API_KEY holds its key, if it asks for one.",
        show_default=False,
    ),
]
Model = Annotated[
    str, typer.Option(help="The model, by the name that the server gives it.", show_default=False)
]
Output = Annotated[
    str,
    typer.Option(
        help="Name of a dataset under the data root, or its folder (anything with a slash): the "
        "answers go to OUTPUT.jsonl and are prepared at once. A name that ends in .jsonl: a file, "
        "for the answers only.",
        show_default=False,
    ),
]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        help="The model's tokenizer.json, or the folder it is in [default: that of --model, if it "
        "is a folder].",
        show_default=False,
    ),
]
Send = Annotated[
    Literal["auto", "chat", "text"],
    typer.Option(
        help="Send prompts as chats to /chat/completions, or as text to /completions, where the "
        "tokenizer's chat template renders chats; auto: as chats if the server takes the first."
    ),
]
PromptField = Annotated[
    str | None,
    typer.Option(
        help="Field of a row that holds its prompt, a text or a chat [default: prompt, if there is "
        "no field messages].",
        show_default=False,
    ),
]
MessagesField = Annotated[
    str | None,
    typer.Option(
        help="Field of a row that holds its chat [default: messages].", show_default=False
    ),
]
Samples = Annotated[int, typer.Option(help="Answers to each prompt, each with its own seed.")]
Seed = Annotated[int, typer.Option(help="The seed of each request is made of it.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens of an answer; a longer one is cut there.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Temperature of the sampling; 0 is greedy [default: the server's own].",
        show_default=False,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Sample from the likeliest tokens that together have this probability [default: the "
        "server's own].",
        show_default=False,
    ),
]
Cut = Annotated[
    Literal["keep", "drop"],
    typer.Option(help="What becomes of cut answers. The end of a kept one is not learnt."),
]
Concurrency = Annotated[int, typer.Option(help="Requests under way at once.")]
TimeoutSeconds = Annotated[float, typer.Option(help="How long one request may take.")]
OutageSeconds = Annotated[
    float, typer.Option(help="How long the server may be away before the command gives up.")
]
MaxFaultFraction = Annotated[
    float,
    typer.Option(
        help="Share of rows that may be no prompt, and of requests that may fail; above it, "
        "nothing is written. Empty rows and refused requests do not count."
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace an existing output, and discard answers kept from other settings.",
    ),
]
