"""Reads tokenizers without a tokenizer.json (sentencepiece, tiktoken) through transformers."""

import json
from pathlib import Path
from typing import Any

from lectern_common.errors import Misconfigured
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import vocabulary_files

# A class that finds none of its files starts with a handful of special tokens.
_FEWEST_TOKENS = 16


def converted_map(folder: Path) -> dict[str, int]:
    """Returns token -> id as transformers' own tokenizer class of the model has it.

    Raises:
        Misconfigured: no class reads the files, or it needs a package that is not installed.
    """
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    try:
        tokens = load(str(folder), trust_remote_code=False, local_files_only=True).get_vocab()
    except Exception as error:  # whatever a tokenizer class raises, there is no vocabulary
        raise _not_converted(folder, " ".join(str(error).split())[:200]) from error
    listed = _listed_tokens(folder)
    if len(tokens) < _FEWEST_TOKENS or not listed <= tokens.keys():
        raise _not_converted(folder, f"transformers finds only {len(tokens)} tokens in them")
    return {str(token): int(token_id) for token, token_id in tokens.items()}


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
