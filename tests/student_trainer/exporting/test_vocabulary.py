"""Tokenizers in GGUF files: llama.cpp gives the ids that they give, or they are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from lectern_common.errors import Incompatible
from student_trainer.exporting.gguf_export import write_gguf
from student_trainer.exporting.pre_tokenizers import _ONE_DIGIT, _THREE_DIGITS
from student_trainer.exporting.vocabulary import vocabulary_of
from student_trainer.student.same_ids import _PROBES
from tests.support.llama_cpp import Job, asked
from tests.support.models import write_tiny_model

TEXTS = [
    *_PROBES[:4],
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0645\u0631\u062d\u0628",
    "\U0001f642\U0001f469\u200d\U0001f4bb \u2026 \xa0 \u3000 \u2014",
    "   leading, trailing   ",
    "Hello, world!  Two  spaces\n\n\nand\tlines\r\n  indent    four\n",
    "1234567 12 3 I'M you'Re  'll ====----____ <h1>",
    "<|begin|>hi<|end|> there <tool> and on",
    " ",
    "",
]
CORPUS = [*TEXTS, Path(__file__).read_text()]
SPACE = "\u2581"


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bytes_after(*steps: Any, use_regex: bool = False) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*steps, last])


WAYS: dict[str, tuple[Callable[[], Any], bool]] = {
    "gpt-2": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "qwen2": (lambda: bytes_after(split(_ONE_DIGIT)), False),
    "llama-bpe": (lambda: bytes_after(split(_THREE_DIGITS)), True),
    "dbrx": (lambda: bytes_after(split(_THREE_DIGITS)), False),
    "smollm": (lambda: bytes_after(pre_tokenizers.Digits(True), use_regex=True), False),
}


def byte_level(way: str) -> Tokenizer:
    """Returns a tokenizer that is trained on the texts, with control and other added tokens."""
    pre_tokenizer, ignores_merges = WAYS[way]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def sentencepieces(folder: Path, *, adds_space: bool) -> Tokenizer:
    """Returns a tokenizer of the kind that Llama 2 (adds_space) and Gemma have.

    Its merges are all pairs whose whole is a piece, in the order of the pieces, as transformers
    makes them of a sentencepiece vocabulary.
    """
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "pieces"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "pieces.model"))
    vocab = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    replaces = normalizers.Replace(" ", SPACE)
    prepends = [normalizers.Prepend(SPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prepends, replaces]) if prepends else replaces
    if not adds_space:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|begin|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def gguf_of(folder: Path, tokenizer: Tokenizer) -> Path:
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    write_tiny_model(folder, "llama", vocab_size=size + 3, layers=1)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_gguf(folder, folder / "student.gguf", "f16", name="student")
    return folder / "student.gguf"


def test_llama_cpp_gives_the_ids_of_every_way_of_cutting_that_is_exported(tmp_path):
    tokenizers = {way: byte_level(way) for way in WAYS}
    for kind in (True, False):
        folder = tmp_path / f"pieces-{kind}"
        folder.mkdir()
        tokenizers[f"adds a space: {kind}"] = sentencepieces(folder, adds_space=kind)
    jobs = [
        Job(gguf_of(tmp_path / str(number), tokenizer), TEXTS, special=True)
        for number, tokenizer in enumerate(tokenizers.values())
    ]
    for (way, tokenizer), answer in zip(tokenizers.items(), asked(*jobs), strict=True):
        expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        assert answer.ids == expected, way


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_cutting_has_llama_cpps_name(way):
    tokenizer = json.loads(byte_level(way).to_str())
    vocabulary = vocabulary_of(tokenizer, 700)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", way)
    assert vocabulary.tokens[699] == "[PAD699]"


def changed(**changes: Any) -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads(byte_level("qwen2").to_str())
    for name, value in changes.items():
        part = tokenizer if name in tokenizer else tokenizer["model"]
        part[name] = value
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"pre_tokenizer": None}, "null"),
        ({"ignore_merges": True}, "ignore_merges true"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": {"type": "NFKC"}}, "NFKC"),
        ({"dropout": 0.1}, "dropout"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
        ({"type": "Unigram"}, "Unigram"),
        ({"type": "WordPiece"}, "WordPiece"),
    ],
    ids=str,
)
def test_a_tokenizer_that_llama_cpp_would_take_for_another_is_refused(changes, named):
    with pytest.raises(Incompatible, match=named):
        vocabulary_of(changed(**changes), 700)


@pytest.mark.parametrize(
    "pattern", [_ONE_DIGIT.replace(r"\p{N}", r"\p{N}{1,2}"), _ONE_DIGIT + "|x", r"\p{L}+"]
)
def test_an_unknown_regular_expression_is_refused(pattern):
    tokenizer = json.loads(byte_level("qwen2").to_str())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    with pytest.raises(Incompatible, match="no name of llama"):
        vocabulary_of(tokenizer, 700)


def test_a_tokenizer_that_composes_characters_comes_with_a_note():
    [note] = vocabulary_of(changed(normalizer={"type": "NFC"}), 700).notes
    assert "NFC" in note


def test_more_tokens_than_the_embedding_has_rows_are_refused():
    with pytest.raises(Incompatible, match="only 300 rows"):
        vocabulary_of(changed(), 300)


def broken_pieces(folder: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads(sentencepieces(folder, adds_space=True).to_str())
    change(tokenizer)
    return tokenizer


def lose_merge(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].pop(5)


def mix_merges(tokenizer: dict[str, Any]) -> None:
    merges = tokenizer["model"]["merges"]
    wholes = ["".join(pair) for pair in merges]
    second = next(i for i in range(1, len(wholes)) if wholes[i] == wholes[i - 1])
    merges.append(merges.pop(second))


def lose_byte(tokenizer: dict[str, Any]) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["lost"] = vocab.pop("<0xE4>")


def drop_first_spaces(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first",
        "split": False,
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lose_merge, "does not merge"),
        (mix_merges, "no order"),
        (lose_byte, "byte 228"),
        (drop_first_spaces, "Metaspace"),
    ],
)
def test_pieces_that_llama_cpp_would_merge_otherwise_are_refused(tmp_path, change, named):
    with pytest.raises(Incompatible, match=named):
        vocabulary_of(broken_pieces(tmp_path, change), 800)
