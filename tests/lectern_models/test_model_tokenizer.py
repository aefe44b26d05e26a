"""Tokenizers without a tokenizer.json, converted by transformers, so that they can be compared."""

import base64
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lectern_common.errors import Misconfigured
from lectern_models.loading import tokenizer_map
from lectern_models.model_tokenizer import tokens_before_text
from tests.support.models import write_tiny_tokenizer
from tests.support.tokenizer_files import write_tokenizer


def converted_folder(folder: Path, model_type: str = "qwen2", **config: object) -> Tokenizer:
    """Writes only vocab.json and merges.txt of a tokenizer; returns it."""
    tokenizer = Tokenizer.from_file(str(write_tiny_tokenizer(folder)))
    for path in folder.iterdir():
        path.unlink()
    tokenizer.model.save(str(folder))
    settings = {"eos_token": "<|endoftext|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return tokenizer


@pytest.mark.parametrize("model_type", ["qwen2", "gpt2"])
def test_vocab_and_merges_give_the_tokens_of_the_model(tmp_path: Path, model_type: str) -> None:
    tokenizer = converted_folder(tmp_path, model_type)
    assert tokenizer_map(tmp_path) == tokenizer.get_vocab()
    assert tokens_before_text(tmp_path) == ()


def test_a_vocabulary_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    converted_folder(tmp_path, "llama")
    with pytest.raises(Misconfigured, match=r"has no tokenizer\.json, and its merges\.txt, vocab"):
        tokenizer_map(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "qwen.tiktoken"])
def test_a_broken_vocabulary_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff not a model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(Misconfigured, match=f"its {name} cannot be converted"):
        tokenizer_map(tmp_path)


def test_a_sentencepiece_model_gives_its_pieces(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over a lazy dog"] * 30),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    read = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    pieces = {read.id_to_piece(number): number for number in range(read.get_piece_size())}
    assert tokenizer_map(tmp_path) == pieces


def test_a_tiktoken_file_gives_its_ranks(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    ranks = [bytes([number]) for number in range(256)] + [b"ab", b"abc"]
    lines = (b"%s %d\n" % (base64.b64encode(one), rank) for rank, one in enumerate(ranks))
    (tmp_path / "tiktoken.model").write_bytes(b"".join(lines))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    end = {"content": "<|end|>", "special": True}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"258": end}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokens = tokenizer_map(tmp_path)
    assert tokens is not None
    assert (tokens["abc"], tokens["<|end|>"], tokens["a"]) == (257, 258, ord("a"))


def test_a_folder_without_any_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_map(tmp_path) is None
    assert tokens_before_text(tmp_path) is None


def test_what_a_tokenizer_json_puts_before_a_text_is_known(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, special=("<s>",), begins_with="<s>")
    assert tokens_before_text(tmp_path) == (tokenizer.token_to_id("<s>"),)
