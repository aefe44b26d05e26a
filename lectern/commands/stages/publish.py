"""`lectern publish`: the student of a run as a repository on the model hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lectern import console
from lectern.options import Home, Json, roots_of
from lectern_common.errors import NotFound
from lectern_common.words import inert_name, size


def publish(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run, which has succeeded.")],
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The repository.")],
    private: Annotated[
        bool, typer.Option("--private", help="Only its owner may see the repository.")
    ] = False,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="Licence of the student, as the hub names it, such as apache-2.0 [default: that "
            "of the model that it starts from].",
            show_default=False,
        ),
    ] = None,
    license_file: Annotated[
        Path | None,
        typer.Option(help="Text of that licence, to publish with it.", show_default=False),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload what the plan lists, and verify it.")
    ] = False,
    plan_sha256: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="SHA256",
            help="With --yes, upload only if the plan still has this hash.",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Publish the student of a run on the model hub.

    Prints the plan: every file, its size and hash, and the card. With --yes, it uploads exactly
    that, downloads it again, and compares and loads it. HF_TOKEN holds the hub's token, and
    HF_ENDPOINT names another hub.
    """
    from lectern.commands.stages.foreground import run_stage
    from lectern_common.stages.requests import parse_request

    text = None
    if license_file is not None:
        if not license_file.is_file():
            raise NotFound(f"no file {inert_name(license_file)}")
        text = license_file.read_text(errors="replace")
    asked: dict[str, Any] = {
        "run": run,
        "to": to,
        "private": private,
        "license": license_id,
        "license_text": text,
        "upload": yes,
        "plan_sha256": plan_sha256,
    }
    result = run_stage("publish", parse_request("publish", asked), roots_of(home), goes_on=True)
    result.pop("markdown", None)
    if as_json:
        console.print_json(result)
        return
    width = max(len(file["name"]) for file in result["files"])
    for file in result["files"]:
        print(f"{file['name']:<{width}}  {size(file['bytes']):>10}  {file['sha256']}")
    if result["uploaded"]:
        print(f"\n{result['url']} at commit {result['commit']}")
        for fact in result["verified"]:
            print(f"  {console.inert(fact)}")
        return
    print(f"\n{console.inert(result['card'])}")
    console.note(
        f"nothing was uploaded; `--yes --plan {result['plan_sha256']}` uploads exactly this to "
        f"{to}{' (private)' if private else ''}"
    )
