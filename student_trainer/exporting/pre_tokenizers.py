r"""How tokenizers cut a text before they merge bytes, under the names that llama.cpp has for that.

llama.cpp does not read the regular expressions of a tokenizer.json: a GGUF file names one of the
ways that are built into it. Each way below was compared with llama.cpp on texts that tokenizers
differ in; a tokenizer that cuts in any other way is refused.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lectern_common.errors import Incompatible

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_ONE_DIGIT = _WORDS + r"|\p{N}" + _REST
_THREE_DIGITS = _WORDS + r"|\p{N}{1,3}" + _REST
# What a trained GPT-2 tokenizer does by itself, spelled out.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Steps of a pre-tokenizer, and whether whole words of the vocabulary skip the merges -> its name.
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_ONE_DIGIT,), False): "qwen2",
    ((_THREE_DIGITS,), True): "llama-bpe",
    ((_THREE_DIGITS,), False): "dbrx",
    (("one digit", _GPT2), False): "smollm",
}


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name for how a byte-level tokenizer.json cuts a text.

    Raises:
        Incompatible: llama.cpp has no name for it.
    """
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    name = _NAMES.get((steps, bool(tokenizer["model"].get("ignore_merges"))))
    if name is None:
        whole = json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=True)
        raise Incompatible(
            "the student's tokenizer cuts texts in a way for which Lectern knows no name of "
            f"llama.cpp ({whole[:300]}, ignore_merges "
            f"{json.dumps(tokenizer['model'].get('ignore_merges', False))}); known are "
            f"{', '.join(_NAMES.values())}: export it with --format safetensors"
        )
    return name


def _steps(node: Any) -> Iterator[str]:
    """Yields what each step cuts by; a step that is not known yields its whole setting."""
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "Sequence":
        for part in node.get("pretokenizers", ()):
            yield from _steps(part)
    elif kind == "ByteLevel" and not node.get("add_prefix_space", True):
        if node.get("use_regex", True):
            yield _GPT2
    elif kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node.get("pattern", {})
        yield str(pattern.get("Regex", f"the text {pattern}"))
    elif kind == "Digits" and node.get("individual_digits"):
        yield "one digit"
    else:
        yield json.dumps(node, sort_keys=True)
