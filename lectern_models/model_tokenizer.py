"""A model's tokenizer: what it puts before a text, and its tokens where no tokenizer.json has them.

Then transformers converts the vocabulary that is there: sentencepiece, tiktoken, or vocab.json
with merges.txt.
"""

import json
from pathlib import Path
from typing import Any

from lectern_common.errors import Misconfigured
from lectern_common.tokens.beginning import usual_beginning
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import (
    complete_tokenizer,
    read_tokenizer_files,
    vocabulary_files,
)

# A class that finds none of its files starts with a handful of special tokens.
_FEWEST_TOKENS = 16


def converted_map(folder: Path) -> dict[str, int]:
    """Returns token -> id of a tokenizer without a tokenizer.json.

    Raises:
        Misconfigured: transformers cannot convert the vocabulary.
    """
    return {str(token): int(token_id) for token, token_id in _converted(folder).get_vocab().items()}


def tokens_before_text(folder: Path) -> tuple[int, ...] | None:
    """Returns the ids that a model's tokenizer puts before each text; None without a tokenizer.

    Raises:
        CorruptData: a file cannot be read.
        Misconfigured: transformers cannot convert the vocabulary.
    """
    path = folder / TOKENIZER_NAME
    if path.exists():
        files = read_tokenizer_files(path)
        beginning = usual_beginning(complete_tokenizer(files, str(path))[0], files)
        return () if beginning is None else beginning.token_ids
    if not vocabulary_files(folder):
        return None
    tokenizer = _converted(folder)
    whole, plain = (
        list(tokenizer("a", add_special_tokens=way)["input_ids"]) for way in (True, False)
    )
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return tuple(whole[: next(starts, 0)])


def _converted(folder: Path) -> Any:
    """Returns the tokenizer that transformers' own class of the model makes of the files."""
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    try:
        tokenizer = load(str(folder), trust_remote_code=False, local_files_only=True)
        tokens = tokenizer.get_vocab()
    except Exception as error:  # whatever a tokenizer class raises, there is no vocabulary
        raise _not_converted(folder, " ".join(str(error).split())[:200]) from error
    if len(tokens) < _FEWEST_TOKENS or not _listed_tokens(folder) <= tokens.keys():
        raise _not_converted(folder, f"transformers finds only {len(tokens)} tokens in them")
    return tokenizer


def _not_converted(folder: Path, why: str) -> Misconfigured:
    names = ", ".join(vocabulary_files(folder))
    return Misconfigured(
        f"{folder} has no {TOKENIZER_NAME}, and its {names} cannot be converted, so its tokens "
        f"cannot be compared with those of student and data ({why}); pip install sentencepiece "
        f"tiktoken, or put the model's {TOKENIZER_NAME} there"
    )


def _listed_tokens(folder: Path) -> set[str]:
    """Returns the tokens of a vocab.json, which must all be found again."""
    try:
        found = json.loads((folder / "vocab.json").read_bytes())
    except (OSError, ValueError):
        return set()
    return set(found) if isinstance(found, dict) else set()
