"""Small tokenizers with special tokens, post-processors and files beside tokenizer.json."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from tests.support.models import write_tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path,
    *,
    special: tuple[str, ...] = (),
    begins_with: str | None = None,
    config: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
) -> Tokenizer:
    """Writes a byte-level BPE of about 300 tokens; returns it.

    Args:
        folder: made where it is missing.
        special: special tokens of its tokenizer.json, besides <|endoftext|> (id 0).
        begins_with: its post-processor puts this token before a text.
        config: tokenizer_config.json; None writes none.
        files: name -> JSON value of further files.
    """
    path = write_tiny_tokenizer(folder, 300)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    if begins_with is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begins_with} $A",
            special_tokens=[(begins_with, tokenizer.token_to_id(begins_with))],
        )
    tokenizer.save(str(path))
    (folder / "tokenizer_config.json").unlink()
    every = {} if config is None else {"tokenizer_config.json": config}
    for name, value in {**every, **(files or {})}.items():
        (folder / name).write_text(json.dumps(value))
    return tokenizer
