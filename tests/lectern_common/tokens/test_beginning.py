"""What a tokenizer puts before a text, wherever that is written."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from lectern_common.tokens.beginning import usual_beginning
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files
from tests.support.tokenizer_files import write_tokenizer

LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}


def beginning(folder: Path) -> tuple[int, ...]:
    files = read_tokenizer_files(folder / "tokenizer.json")
    found = usual_beginning(complete_tokenizer(files, str(folder))[0], files)
    return () if found is None else found.token_ids


def with_post_processor(tokenizer: Tokenizer, kind: str) -> None:
    begin, end = ((text, int(tokenizer.token_to_id(text) or 0)) for text in ("<s>", "</s>"))
    byte_level = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[begin, end])
    tokenizer.post_processor = {
        "template": template,
        "sequence": processors.Sequence([byte_level, template]),
        "roberta": processors.RobertaProcessing(end, begin),
        "bert": processors.BertProcessing(end, begin),
        "byte level": byte_level,
        "only an end": processors.TemplateProcessing(single="$A </s>", special_tokens=[end]),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ("template", True),
        ("sequence", True),
        ("roberta", True),
        ("bert", True),
        ("byte level", False),
        ("only an end", False),
    ],
)
def test_the_post_processor_decides(tmp_path: Path, kind: str, begins: bool) -> None:
    tokenizer = write_tokenizer(tmp_path, special=("<s>", "</s>"))
    with_post_processor(tokenizer, kind)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    expected = (tokenizer.token_to_id("<s>"),) if begins else ()
    assert beginning(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "begins"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, True),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, True),
        ({"bos_token": "<s>"}, False),
        ({"bos_token": "<s>", "add_bos_token": False}, False),
        ({"add_bos_token": True}, False),
        (LLAMA, True),
        ({**LLAMA, "tokenizer_class": "LlamaTokenizerFast"}, True),
        ({**LLAMA, "tokenizer_class": "GemmaTokenizer"}, True),
        ({**LLAMA, "add_bos_token": False}, False),
        ({**LLAMA, "tokenizer_class": "Qwen2Tokenizer"}, False),
    ],
)
def test_a_tokenizer_without_post_processor_does_what_its_config_says(
    tmp_path: Path, config: dict[str, Any], begins: bool
) -> None:
    tokenizer = write_tokenizer(tmp_path, special=("<s>",), config=config)
    assert beginning(tmp_path) == ((tokenizer.token_to_id("<s>"),) if begins else ())


def test_the_post_processor_wins_over_a_config_that_says_no(tmp_path: Path) -> None:
    """As in transformers, which reads no add_bos_token beside a tokenizer.json."""
    config = {"bos_token": "<s>", "add_bos_token": False}
    tokenizer = write_tokenizer(tmp_path, special=("<s>",), begins_with="<s>", config=config)
    assert beginning(tmp_path) == (tokenizer.token_to_id("<s>"),)
