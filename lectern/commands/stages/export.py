"""`lectern export`: the student of a run as a model folder or a GGUF file."""

from typing import Annotated, Any

import typer

from lectern import console
from lectern.options import Home, Json, roots_of
from lectern_common.words import inert_name, size


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run, which has succeeded.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="safetensors|gguf",
            help="safetensors: a folder that transformers loads. gguf: one file for llama.cpp.",
        ),
    ] = "safetensors",
    gguf_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="f16|q8_0",
            help="What a GGUF file stores matrices as [default: f16].",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="New folder under the models root [default: in the run's own folder].",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write the student of a run for other programs.

    Without --output, `--format safetensors` checks the run's export and says where it is, and
    `--format gguf` writes the file where `lectern publish` finds it.
    """
    from lectern.commands.stages.foreground import run_stage
    from lectern_common.stages.requests import parse_request

    roots = roots_of(home)
    asked: dict[str, Any] = {
        "run": run,
        "format": format_name,
        "type": gguf_type,
        "output": output,
    }
    result = run_stage("export", parse_request("export", asked), roots)
    if as_json:
        result.pop("markdown", None)
        console.print_json(result)
        return
    folder = getattr(roots, result["root"]) / result["folder"]
    for file in result["files"]:
        print(f"{inert_name(folder / file['name'])}  {size(file['bytes'])}  {file['sha256']}")
    for note in result["gguf"]["notes"] if result["gguf"] else ():
        console.note(f"note: {note}")
