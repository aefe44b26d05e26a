"""Makes datasets of this repository's own pages with `lectern data prepare`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from faults.processes import PATIENCE_SECONDS, ROOT, environment
from lectern_common.tokens.shards import TOKENIZER_NAME

# Tokens of the trained tokenizer: every byte, some merges, and the end of a text.
NUM_TOKENS = 300
_CONFIG_NAME = "tokenizer_config.json"  # says which token ends a text


def prepare(
    home: Path, inputs: Sequence[Path], output: str, *options: str, sabotage: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs `lectern data prepare` to its end, successful or not."""
    launched = [sys.executable, "-m", "faults.launcher", "lectern"]
    words = ["data", "prepare", *map(str, inputs), "--output", output, "--home", str(home)]
    if sabotage is not None:
        launched += ["--sabotage", sabotage]
    return subprocess.run(
        [*launched, "--", *words, "--json", *options],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def prepared(home: Path, name: str, tokenizer: Path | None = None) -> Path:
    """Returns the folder of a dataset of these pages; None trains a tokenizer.

    Raises:
        RuntimeError: the dataset could not be made.
    """
    pages = [ROOT / "README.md", ROOT / "docs"]
    chosen = (
        ("--train-tokenizer", str(NUM_TOKENS))
        if tokenizer is None
        else ("--tokenizer", str(tokenizer))
    )
    done = prepare(home, pages, name, *chosen, "--include", "*.md", "--validation-fraction", "0")
    if done.returncode:
        raise RuntimeError(f"no dataset was made: {done.stderr[-1000:]}")
    return home / "data" / name


def swapped(tokenizer: Path, folder: Path, first: int, second: int) -> Path:
    """Writes a tokenizer.json with two ids exchanged; returns its path."""
    data = json.loads(tokenizer.read_bytes())
    vocabulary: dict[str, int] = data["model"]["vocab"]
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    vocabulary[tokens[first]], vocabulary[tokens[second]] = second, first
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer.with_name(_CONFIG_NAME), folder / _CONFIG_NAME)
    path = folder / TOKENIZER_NAME
    path.write_text(json.dumps(data))
    return path


def give(tokenizer: Path, model: Path) -> None:
    """Puts a tokenizer into a model's folder."""
    shutil.copyfile(tokenizer, model / TOKENIZER_NAME)
