"""The texts of the tokens of a text."""

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Metaspace, Sequence
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace as MetaspaceSplit

from student_trainer.data.token_texts import token_texts
from tests.support.chat_files import byte_tokenizer

TEXTS = [
    "",
    "plain words",
    "\u00e9t\u00e9 \U0001f600\U0001f600 \u4e2d",
    " a\n\n b ",
    "\ufffd\ufffdx",
]


def sentencepiece_like() -> Tokenizer:
    """Words with their space before, and bytes for all else."""
    words = ["\u2581plain", "\u2581words", "\u2581", "a", "b"]
    pieces = words + [f"<0x{byte:02X}>" for byte in range(256)]
    model = BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = MetaspaceSplit()
    tokenizer.decoder = Sequence([ByteFallback(), Fuse(), Metaspace()])
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_like])
def test_together_they_are_the_text(make, text: str) -> None:
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False).ids

    texts = token_texts(ids, tokenizer.decode)

    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)


def test_a_character_is_at_the_token_that_completes_it() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a\u00e9\U0001f600b").ids

    assert token_texts(ids, tokenizer.decode) == ["a", "", "\u00e9", "", "", "", "\U0001f600", "b"]


@pytest.mark.parametrize("broken", [[0xF0], [0xF0, 0x9F, 0x98, 0xF0], [0x80] * 9, [0xE2, 0x41]])
def test_bytes_that_are_no_character_are_shown_as_decoding_shows_them(broken: list[int]) -> None:
    tokenizer = byte_tokenizer()
    byte_ids = {ord(token): at for token, at in tokenizer.get_vocab().items() if len(token) == 1}
    letters = byte_letters()
    ids = [byte_ids[ord(letters[byte])] for byte in broken]
    ids += tokenizer.encode("\U0001f600x").ids

    texts = token_texts(ids, tokenizer.decode)

    assert "".join(texts) == tokenizer.decode(ids)
    assert texts[-1] == "x"


def byte_letters() -> dict[int, str]:
    """How byte-level tokenizers write each byte, as GPT-2's does."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + at) for at, byte in enumerate(hidden)}


def test_it_takes_a_number_of_decodes_that_grows_with_the_tokens_only() -> None:
    decoded = 0

    def decode(ids) -> str:
        nonlocal decoded
        decoded += len(ids)
        return "\ufffd" * len(ids)

    assert len(token_texts(list(range(2000)), decode)) == 2000
    assert decoded < 2000 * 100
