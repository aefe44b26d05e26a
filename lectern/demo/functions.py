"""Documents that end, for `lectern demo --on-policy`: short functions of the standard library.

Each function is a document, from its `def` on, without the indentation of the class that it stands
in; its first lines, up to the body, are a prompt. Some are held out, with their prompts. All are of
at most MAX_TOKENS tokens of a tokenizer that is trained on them.
"""

import ast
import json
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lectern import console
from lectern.demo.specs import VOCAB_SIZE, corpus_folder
from lectern_common.files import write_atomic
from lectern_common.tokens.shards import MANIFEST_NAME
from lectern_data.prepare import prepare
from lectern_data.read.rows import Content
from lectern_data.settings import VALIDATION_SUFFIX, PrepareSettings
from lectern_data.tokens.tokenizer import train_tokenizer

FUNCTIONS = "functions"
HELD_OUT = FUNCTIONS + VALIDATION_SUFFIX
PROMPTS, HELD_OUT_PROMPTS = "function-prompts", "held-out-prompts"
MAX_TOKENS = 128
# A longer function has more tokens than that.
_MAX_CHARACTERS = 8 * MAX_TOKENS
_HELD_OUT_IN = 12


class Function(NamedTuple):
    """The source of a function, and how many of its characters come before its body."""

    source: str
    head: int

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32(self.source.encode()) % _HELD_OUT_IN == 0


def prepare_functions(data: Path) -> None:
    """Makes the datasets and prompt sets under the data root, unless they exist."""
    if (data / HELD_OUT_PROMPTS / MANIFEST_NAME).exists():
        console.note(f"functions: kept from before ({data / FUNCTIONS})")
        return
    data.mkdir(parents=True, exist_ok=True)
    corpus = corpus_folder()
    found = sorted(set(_functions_under(corpus)))
    trained = train_tokenizer((one.source for one in found if not one.is_held_out), VOCAB_SIZE)
    folder = data / "function-tokenizer"
    folder.mkdir(exist_ok=True)
    for name, content in trained.files.items():
        write_atomic(folder / name, content)
    encoded = trained.tokenizer.encode_batch([one.source for one in found])
    # The token that ends a function is one more.
    short = [one for one, ids in zip(found, encoded, strict=True) if len(ids) < MAX_TOKENS]
    console.note(f"functions: {len(short):,} short ones of the standard library, {corpus}")
    for held_out, name, prompts in (
        (False, FUNCTIONS, PROMPTS),
        (True, HELD_OUT, HELD_OUT_PROMPTS),
    ):
        chosen = [one for one in short if one.is_held_out == held_out]
        texts = _rows(data / f"{name}.jsonl", "text", [one.source for one in chosen])
        prepare(
            PrepareSettings(
                [texts], data / name, tokenizer=folder, validation_fraction=0, workers=1, force=True
            )
        )
        heads = _rows(
            data / f"{prompts}.jsonl", "prompt", [one.source[: one.head] for one in chosen]
        )
        prepare(
            PrepareSettings(
                [heads],
                data / prompts,
                tokenizer=folder,
                content=Content("prompt", is_prompt=True),
                eos_policy="none",
                validation_fraction=0,
                workers=1,
                force=True,
            )
        )


def _rows(path: Path, field: str, texts: list[str]) -> Path:
    """Writes a line {field: text} for each text; returns the file."""
    lines = "".join(json.dumps({field: text}) + "\n" for text in texts)
    write_atomic(path, lines.encode())
    return path


def _functions_under(corpus: Path) -> Iterator[Function]:
    """Yields those of the modules that are files, without those of packages."""
    for path in sorted(corpus.glob("*.py")):
        yield from functions_of(path.read_text("utf-8", "replace"))


def functions_of(source: str) -> Iterator[Function]:
    """Yields the functions of a file, methods too, that are not inside another function.

    Yields nothing if the file does not parse.
    """
    try:
        left: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines(keepends=True)
    while left:
        node = left.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left.extend(ast.iter_child_nodes(node))
            continue
        first, body = node.lineno - 1, node.body[0].lineno - 1
        if body > first and node.end_lineno is not None:
            text = textwrap.dedent("".join(lines[first : node.end_lineno]))
            head = _without_comments(text.splitlines(keepends=True)[: body - first])
            if len(text) <= _MAX_CHARACTERS and text.startswith(("def ", "async def ")):
                yield Function(text.rstrip() + "\n", len(head))


def _without_comments(head: list[str]) -> str:
    """Returns the lines before a body without those that are not code at their end."""
    while head[-1].strip().startswith("#") or not head[-1].strip():
        head.pop()
    return "".join(head)
