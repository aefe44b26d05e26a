"""The token that a tokenizer puts before a text (BOS): which one, and where that is said. No torch.

Many models have never seen a text without it, and answer nonsense to one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import CONFIG_NAME, named_tokens, tokenizer_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokenizer classes that put bos_token before a text unless their config says otherwise.
_ADDING_CLASSES = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"}


@dataclass(frozen=True)
class Beginning:
    """Tokens before a text, usually one; `why` says where that is written."""

    token_ids: tuple[int, ...]
    why: str


def usual_beginning(tokenizer: "Tokenizer", files: Mapping[str, bytes]) -> Beginning | None:
    """Returns what the tokenizer puts before each text; None means nothing.

    The post-processor of tokenizer.json decides. One that adds nothing is overruled by
    `add_bos_token: true`, and a missing one by a class that adds bos_token by default: the model
    was trained with it, although such a tokenizer.json has lost it.

    Args:
        tokenizer: a complete one, without truncation and padding.
        files: name -> content of its files.

    Raises:
        CorruptData: a file is not a JSON object.
    """
    added = _added_before(tokenizer)
    if added:
        return Beginning(added, f"the post-processor in {TOKENIZER_NAME}")
    config = tokenizer_config(files)
    token_id = named_beginning(tokenizer, files)
    if token_id is None:
        return None
    if config.get("add_bos_token") is True:
        return Beginning((token_id,), f"add_bos_token in {CONFIG_NAME}")
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if "add_bos_token" not in config and kind in _ADDING_CLASSES and not tokenizer.post_processor:
        return Beginning((token_id,), f"tokenizer_class {kind} in {CONFIG_NAME}")
    return None


def named_beginning(tokenizer: "Tokenizer", files: Mapping[str, bytes]) -> int | None:
    """Returns the id of the token that the files name bos_token; None if there is none."""
    named = named_tokens(files).get("bos_token")
    return None if named is None else tokenizer.token_to_id(named.text)


def _added_before(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Returns the ids that the post-processor puts before a text."""
    for text in ("a", "0", "."):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text).ids
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return tuple(whole[:start])
    return ()
