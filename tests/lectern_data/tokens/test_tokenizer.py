"""A trained tokenizer gives the same ids in transformers, whatever model type it is put beside."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lectern_common.errors import NotFound
from lectern_data.tokens.tokenizer import load_tokenizer, train_tokenizer
from tests.support.tokenizer_files import write_tokenizer

CORPUS = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
TEXTS = (
    " 1234 and 56789, 3.14",
    "x  =  12\n\n\t\tif  a:\r\n        return  a   \n  \n",
    "caf\xe9 na\xefve \u65e5\u672c\u8a9e \u0645\u0631\u062d\u0628\u0627 \U0001f642",
    "I'll DON'T (a_b) [c]{d}:;  ",
)
TYPES = (
    *("qwen2", "qwen3", "qwen2_moe", "llama", "mistral", "gemma2", "phi3", "gpt2", "gpt_neox"),
    *("opt", "olmo2", "mamba", "cohere", "granite", "stablelm", "starcoder2"),
)


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>"])
@pytest.mark.parametrize("model_type", TYPES)
def test_every_model_type_gives_the_ids_of_training(
    tmp_path: Path, model_type: str, end: str
) -> None:
    trained = train_tokenizer(CORPUS, 600, end)
    for name, content in trained.files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == trained.tokenizer.encode(text).ids
    assert loaded.get_vocab() == trained.tokens
    assert (loaded.eos_token, loaded.bos_token, loaded.pad_token) == (end, None, None)


@pytest.mark.parametrize("text", ["e\u0301", "A\u030a \ufb01", "\u1100\u1161"])
def test_text_that_is_not_composed_comes_back_as_it_was(text: str) -> None:
    tokenizer = train_tokenizer(CORPUS, 300).tokenizer
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_folder_with_another_kind_of_tokenizer_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(NotFound, match=r"tokenizer\.model, which transformers converts"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("way", ["list", "json", "files", "one", "none"])
def test_chat_templates_are_found_by_name_wherever_they_stand(tmp_path: Path, way: str) -> None:
    named = {"default": "d", "tool_use": "t"}
    entries = [{"name": name, "template": text} for name, text in named.items()]
    template: Any = {"list": entries, "one": "d"}.get(way)
    config = None if template is None else {"chat_template": template}
    files = {"chat_template.json": {"chat_template": entries}} if way == "json" else {}
    write_tokenizer(tmp_path, config=config, files=files)
    if way == "files":
        (tmp_path / "chat_template.jinja").write_text("d")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    loaded = load_tokenizer(tmp_path)
    expected = {"one": ("d", None), "none": (None, None)}.get(way, ("d", "t"))
    assert (loaded.chat_template, loaded.tool_template) == expected
