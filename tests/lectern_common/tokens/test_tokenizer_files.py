"""Tokens and names that stand beside tokenizer.json, with the ids that transformers gives them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lectern_common.errors import CorruptData, NotFound
from lectern_common.tokens.tokenizer_files import (
    complete_tokenizer,
    named_tokens,
    read_tokenizer_files,
    special_ids,
    tokenizer_files,
    vocabulary_files,
)
from lectern_common.tokens.tokenizer_map import read_dataset_map, read_tokenizer_map
from tests.support.tokenizer_files import write_tokenizer

TEXT = "<|turn|>user says 12<|over|> <|extra|>"
TOKEN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def size(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


def beside(first: int) -> dict[str, dict[str, Any]]:
    """Ways to write down three tokens that tokenizer.json lacks."""
    tokens = {"<|turn|>": first, "<|over|>": first + 1, "<|extra|>": first + 2}
    decoder = {
        str(number): {**TOKEN, "content": text, "special": True} for text, number in tokens.items()
    }
    return {
        "decoder": {"tokenizer_config.json": {"added_tokens_decoder": decoder}},
        "added": {
            "tokenizer_config.json": {},
            "added_tokens.json": tokens,
            "special_tokens_map.json": {
                "eos_token": "<|over|>",
                "additional_special_tokens": ["<|turn|>", "<|extra|>"],
            },
        },
        "map": {
            "tokenizer_config.json": {},
            "special_tokens_map.json": {
                "eos_token": {**TOKEN, "content": "<|over|>"},
                "additional_special_tokens": ["<|turn|>", "<|extra|>"],
            },
        },
        "config": {
            "tokenizer_config.json": {
                "eos_token": "<|over|>",
                "extra_special_tokens": {"turn": "<|turn|>", "extra": "<|extra|>"},
            }
        },
    }


@pytest.mark.parametrize("way", ["decoder", "added", "map", "config"])
def test_tokens_beside_tokenizer_json_have_the_ids_that_transformers_gives_them(
    tmp_path: Path, way: str
) -> None:
    write_tokenizer(tmp_path)
    files = beside(size(tmp_path))[way]
    write_tokenizer(tmp_path, files=files)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer, lacked = complete_tokenizer(
        read_tokenizer_files(tmp_path / "tokenizer.json"), "tokenizer.json"
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert lacked
    assert tokenizer.encode(TEXT).ids == theirs(TEXT)["input_ids"]
    assert read_tokenizer_map(tmp_path / "tokenizer.json") == theirs.get_vocab()
    assert {"<|turn|>", "<|over|>", "<|extra|>"} <= set(special_ids(tokenizer).values())


def test_a_token_of_the_vocabulary_becomes_special_if_only_the_map_says_so(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, special=("<|over|>",))
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    (over,) = (entry for entry in data["added_tokens"] if entry["content"] == "<|over|>")
    data["added_tokens"].remove(over)
    data["model"]["vocab"]["<|over|>"] = over["id"]
    path.write_text(json.dumps(data))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|over|>"}')
    tokenizer, lacked = complete_tokenizer(read_tokenizer_files(path), str(path))
    assert lacked
    assert tokenizer.encode("a<|over|>").ids[-1] == over["id"] == tokenizer.token_to_id("<|over|>")


def test_a_whole_tokenizer_is_left_as_it_is(tmp_path: Path) -> None:
    decoder = {"0": {**TOKEN, "content": "<|endoftext|>", "special": True}}
    config = {"eos_token": "<|endoftext|>", "pad_token": "<pad>", "added_tokens_decoder": decoder}
    alone = write_tokenizer(tmp_path, config=config)
    tokenizer, lacked = complete_tokenizer(
        read_tokenizer_files(tmp_path / "tokenizer.json"), "tokenizer.json"
    )
    assert not lacked  # no text ever contains <pad>
    assert tokenizer.get_vocab() == alone.get_vocab()


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_another_id_than_the_tokenizer_leaves_is_refused(tmp_path: Path, name: str) -> None:
    value: dict[str, Any] = {"<|new|>": 999}
    if name == "tokenizer_config.json":
        value = {"added_tokens_decoder": {"999": {**TOKEN, "content": "<|new|>", "special": True}}}
    write_tokenizer(tmp_path, files={name: value})
    with pytest.raises(CorruptData, match=rf"{name} beside .* '<\|new\|>' the id 999"):
        read_tokenizer_map(tmp_path / "tokenizer.json")


def test_a_token_that_the_tokenizer_has_keeps_its_id_whatever_stands_beside(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, special=("<s>",), files={"added_tokens.json": {"<s>": 7}})
    assert read_tokenizer_map(tmp_path / "tokenizer.json") == tokenizer.get_vocab()


def test_a_dataset_is_read_without_what_stands_beside_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, files={"added_tokens.json": {"<|new|>": 999}})
    assert read_dataset_map(tmp_path / "tokenizer.json") == tokenizer.get_vocab()
    with pytest.raises(CorruptData, match="cannot read"):
        read_dataset_map(tmp_path / "nothing" / "tokenizer.json")


@pytest.mark.parametrize(
    ("config", "listed", "expected"),
    [
        ({"eos_token": "a"}, {}, ("a", "tokenizer_config.json")),
        ({}, {"eos_token": {"content": "b"}}, ("b", "special_tokens_map.json")),
        ({"eos_token": None}, {"eos_token": "b"}, ("b", "special_tokens_map.json")),
        ({"eos_token": "a"}, {"eos_token": "b"}, ("b", "special_tokens_map.json")),
        (
            {"eos_token": "a", "added_tokens_decoder": {}},
            {"eos_token": "b"},
            ("a", "tokenizer_config.json"),
        ),
    ],
)
def test_a_name_is_taken_from_where_transformers_takes_it(
    config: dict[str, Any], listed: dict[str, Any], expected: tuple[str, str]
) -> None:
    files = {
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps(listed).encode(),
    }
    found = named_tokens(files)["eos_token"]
    assert (found.text, found.file) == expected


def test_every_kind_of_tokenizer_file_is_found_and_nothing_else(tmp_path: Path) -> None:
    kept = (
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
        *("spiece.model", "qwen.tiktoken", "tekken.json", "chat_template.jinja"),
        *("chat_template.json", "additional_chat_templates/tool.jinja", "tokenizer.model.v3"),
    )
    left = ("config.json", "model.safetensors", "README.md", "tokenizer.py", "notes.txt")
    for name in (*kept, *left, "original/tokenizer.model"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert tokenizer_files(tmp_path) == sorted(kept)
    assert "tokenizer.model" in vocabulary_files(tmp_path)
    assert "tokenizer.json" not in vocabulary_files(tmp_path)
    assert tokenizer_files(tmp_path / "nothing") == []


def test_a_tokenizer_of_any_file_name_is_read(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    other = (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    assert read_tokenizer_map(other) == tokenizer.get_vocab()
    with pytest.raises(NotFound):
        read_tokenizer_map(tmp_path / "tokenizer.json")


def test_long_texts_are_not_cut_whatever_the_file_says(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    files = read_tokenizer_files(tmp_path / "tokenizer.json")
    assert len(complete_tokenizer(files, "")[0].encode("abcdefghij" * 9).ids) > 9
