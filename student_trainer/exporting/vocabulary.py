"""A tokenizer.json as a GGUF file holds it, or the reason why llama.cpp would cut texts otherwise.

llama.cpp has two kinds that matter here. `gpt2` merges bytes in the order of a list of merges.
`llama` merges characters, always the pair whose whole has the highest score, and falls back to
bytes; that is what sentencepiece does, and a tokenizer.json that was made from such a vocabulary
lists the same merges, whose order gives the scores back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from lectern_common.errors import Incompatible
from student_trainer.exporting.pre_tokenizers import pre_tokenizer_name

SPACE = "\u2581"  # what sentencepiece writes for a space
_NUM_BYTES = 256
_NUM_ASCII = 128  # characters of one byte
_INSTEAD = "export the student with --format safetensors"
_NFC_NOTE = (
    "the tokenizer composes characters (Unicode NFC) before it cuts a text, llama.cpp does not: "
    "texts in decomposed form get other ids there"
)
_SPACE_NOTE = (
    "texts that contain the character U+2581 itself, which stands for a space in the vocabulary, "
    "get other ids in llama.cpp"
)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: llama.cpp's kind of tokenizer, "gpt2" or "llama".
        pre: its name for how a text is cut first.
        tokens: by id.
        types: gguf.TokenType of each token.
        merges: of kind gpt2, "left right" each.
        scores: of kind llama, one for each token.
        adds_space: of kind llama: whether a text begins with a space that is not there.
        notes: what differs from the original all the same, a sentence each.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    adds_space: bool = False
    notes: list[str] = field(default_factory=list)


def vocabulary_of(tokenizer: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """Returns the vocabulary of a tokenizer.json; ids without a token become unused ones.

    Args:
        tokenizer: its content, with all tokens.
        vocab_size: rows of the model's embedding.

    Raises:
        Incompatible: llama.cpp would cut some text otherwise, or the model lacks rows.
    """
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE":
        raise Incompatible(f"the student's tokenizer is of type {model.get('type')}; {_INSTEAD}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise Incompatible(f"the student's tokenizer has {name} {model[name]!r}; {_INSTEAD}")
    whole = [*model["vocab"].values(), *(entry["id"] for entry in tokenizer["added_tokens"])]
    if max(whole) >= vocab_size:
        raise Incompatible(
            f"the student's tokenizer has the id {max(whole)}, but its embedding has only "
            f"{vocab_size} rows, and llama.cpp reads no file like that; {_INSTEAD}"
        )
    if model.get("byte_fallback"):
        return _sentencepiece(tokenizer, vocab_size)
    return _byte_level(tokenizer, vocab_size)


def _byte_level(tokenizer: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    pre = pre_tokenizer_name(tokenizer)
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    if any(part != {"type": "NFC"} for part in normalizers):
        raise Incompatible(f"the student's tokenizer rewrites texts ({normalizers}); {_INSTEAD}")
    tokens, types = _tokens(tokenizer, vocab_size)
    merges = [" ".join(pair) for pair in _merges(tokenizer)]
    notes = [_NFC_NOTE] if normalizers else []
    return Vocabulary("gpt2", pre, tokens, types, merges, notes=notes)


def _sentencepiece(tokenizer: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    adds_space = _adds_space(tokenizer)
    tokens, types = _tokens(tokenizer, vocab_size)
    vocabulary = tokenizer["model"]["vocab"]
    for byte in range(_NUM_BYTES):
        own = chr(byte) if byte < _NUM_ASCII else ""  # Gemma has a tab itself in the byte's place
        if f"<0x{byte:02X}>" not in vocabulary and own not in vocabulary:
            raise Incompatible(f"the student's tokenizer lacks byte {byte}; {_INSTEAD}")
    scores = _scores(tokenizer)
    added = [entry["content"] for entry in tokenizer["added_tokens"] if not entry["special"]]
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=[scores.get(token, 0.0) for token in tokens],
        adds_space=adds_space,
        notes=[_SPACE_NOTE] if any(SPACE in token for token in added) else [],
    )


def _tokens(tokenizer: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Returns (tokens, types) by id."""
    from gguf import TokenType

    model, falls_back = tokenizer["model"], tokenizer["model"].get("byte_fallback")
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, index in model["vocab"].items():
        is_byte = falls_back and len(token) == 6 and token.startswith("<0x")
        tokens[index] = token
        types[index] = TokenType.BYTE if is_byte else TokenType.NORMAL
    unknown = model.get("unk_token")
    for entry in tokenizer["added_tokens"]:
        index, token = entry["id"], entry["content"]
        # Only these are looked for in the text itself, where a space is a space.
        if entry["special"]:
            types[index] = TokenType.UNKNOWN if token == unknown else TokenType.CONTROL
        else:
            types[index] = TokenType.USER_DEFINED
            token = token.replace(SPACE, " ") if falls_back else token
        tokens[index] = token
    return tokens, [int(kind) for kind in types]


def _merges(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in tokenizer["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Returns whether a text begins with a space that is not there.

    Raises:
        Incompatible: texts are rewritten or cut in another way than sentencepiece does.
    """
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    pre = list(_parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    split = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    # No space is left after the normalizer, so that the split never does anything.
    if pre in ([], [split]) and normalizers == [{"type": "Prepend", "prepend": SPACE}, replaces]:
        return True
    if pre in ([], [split]) and normalizers == [replaces]:
        return False
    if not normalizers and len(pre) == 1 and pre[0].get("type") == "Metaspace":
        scheme = pre[0].get("prepend_scheme", "always")
        is_whole = pre[0].get("split") is False and pre[0].get("replacement") == SPACE
        if is_whole and scheme in ("always", "never"):
            return bool(scheme == "always")
    raise Incompatible(
        f"the student's tokenizer rewrites and cuts texts ({normalizers}, {pre}) otherwise than "
        f"llama.cpp does; {_INSTEAD}"
    )


def _parts(node: Any, key: str) -> Iterator[dict[str, Any]]:
    """Yields the steps of a normalizer or pre-tokenizer, without sequences around them."""
    if node is None:
        return
    if node.get("type") == "Sequence":
        for part in node[key]:
            yield from _parts(part, key)
    else:
        yield node


def _scores(tokenizer: Mapping[str, Any]) -> dict[str, float]:
    """Returns the score of each token that is merged: minus its place in the order of merges.

    Raises:
        Incompatible: the merges are not all that the vocabulary allows, in an order of wholes:
            llama.cpp would merge otherwise.
    """
    # Added tokens are found in the text itself, before anything is merged.
    added = {entry["content"] for entry in tokenizer["added_tokens"]}
    pairs = list(_merges(tokenizer))
    vocabulary, known = tokenizer["model"]["vocab"], set(pairs)
    merged = (left + right for left, right in pairs)
    wholes = [whole for whole, _ in groupby(whole for whole in merged if whole not in added)]
    scores = {whole: -float(place) for place, whole in enumerate(wholes)}
    if len(scores) != len(wholes):
        raise Incompatible(f"the student's tokenizer has merges in no order of tokens; {_INSTEAD}")
    for token in vocabulary.keys() - added:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in known:
                raise Incompatible(
                    f"the student's tokenizer does not merge {left!r} and {right!r}, which "
                    f"llama.cpp would do; {_INSTEAD}"
                )
    return scores
