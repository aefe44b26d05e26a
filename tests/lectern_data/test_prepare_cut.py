"""Answers that were cut: they are learnt, and an end that they do not have is not."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import InvalidRequest
from lectern_data.prepare import Prepared, prepare
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings
from tests.support.chat_files import CHATML, MARKED, byte_tokenizer

FORGETFUL = CHATML.replace(
    "message.content +", "(message.content if loop.last else message.content.split('/t')[-1]) +"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CUT = {"finish_reason": "length"}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def prepared(inputs: Path, template: str | None = None, **more: Any) -> Prepared:
    folder = inputs.parent / "tokenizer"
    folder.mkdir(exist_ok=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    content = Content("messages", is_chat=True) if template else Content()
    settings: dict[str, Any] = {"validation_fraction": 0, "content": content, "force": True, **more}
    output = inputs.parent / "data"
    return prepare(PrepareSettings([inputs], output, tokenizer=folder, **settings))


def text_of(dataset: Path, *, learnt: bool = False) -> str:
    ids = np.frombuffer((dataset / "shard-00000.bin").read_bytes(), "<u4")
    if learnt:
        ids = ids[np.frombuffer((dataset / "mask-00000.bin").read_bytes(), "u1") == 1]
    return str(byte_tokenizer().decode(ids.tolist(), skip_special_tokens=False))


TEXTS = [{"text": "one", "finish_reason": "stop"}, {"text": "two", **CUT}, {"text": "three"}]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("after", "one</s>twothree</s>"),
        ("between", "one</s>twothree"),
        ("none", "onetwothree"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_no_token_ends_a_text_that_was_cut(tmp_path, kind, policy, expected) -> None:
    rows = tmp_path / f"rows.{kind}"
    if kind == "json":
        rows.write_text(json.dumps(TEXTS))
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(TEXTS), rows)
    else:
        lines = "\n".join(map(json.dumps, TEXTS)).encode()
        rows.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    prepared(rows, eos_policy=policy, workers=1)
    assert text_of(tmp_path / "data") == expected


def test_a_text_that_was_cut_makes_another_dataset(tmp_path) -> None:
    shas = set[str]()
    for more in ({}, {"finish_reason": "stop"}, CUT):
        prepared(written(tmp_path / "rows.jsonl", [{"text": "one", **more}]), eos_policy="none")
        shas.add(json.loads((tmp_path / "data/manifest.json").read_text())["producer_sha256"])
    assert len(shas) == 2


def chat(*turns: str, **last: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [
        {"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)
    ]
    messages[-1].update(last)
    return {"messages": messages}


def learnt_of(folder: Path, template: str, *rows: dict[str, Any]) -> str:
    prepared(written(folder / "chats.jsonl", [*rows]), template, workers=1)
    return text_of(folder / "data", learnt=True)


@pytest.mark.parametrize(
    ("template", "whole", "cut"),
    [
        (CHATML, "yes<|im_end|>", "yes"),
        (MARKED, "yes</s>", "yes"),
        (PLAIN, " yes\n\n", " yes"),
        (CHATML.replace("message.content +", "message.content | trim +"), "yes<|im_end|>", "yes"),
    ],
)
def test_the_end_of_a_cut_answer_is_not_learnt(tmp_path, template, whole, cut) -> None:
    assert learnt_of(tmp_path, template, chat("?", "yes")) == whole
    assert learnt_of(tmp_path, template, chat("?", "yes", finish_reason="stop")) == whole
    assert learnt_of(tmp_path, template, chat("?", "yes", **CUT)) == cut


def test_of_several_answers_only_the_end_of_the_cut_one_is_left(tmp_path) -> None:
    row = chat("?", "a", "?", "b", **CUT)
    assert learnt_of(tmp_path, CHATML, row) == "a<|im_end|>b"
    assert learnt_of(tmp_path, CHATML, row, chat("?", "c")) == "a<|im_end|>bc<|im_end|>"


def test_an_answer_in_a_sequence_of_its_own_is_cut_there(tmp_path) -> None:
    row = chat("?", "x/ta", "?", "y/tb", **CUT)
    assert learnt_of(tmp_path, FORGETFUL, row) == "x/ta<|im_end|>y/tb"


def test_the_white_space_at_the_end_of_a_cut_answer_belongs_to_nobody(tmp_path) -> None:
    assert learnt_of(tmp_path, CHATML, chat("?", "a \n", **CUT)) == "a"


def test_an_answer_that_stands_in_the_question_too_is_found_behind_it(tmp_path) -> None:
    assert learnt_of(tmp_path, CHATML, chat("yes or no", "yes", **CUT)) == "yes"
    assert learnt_of(tmp_path, CHATML, chat("?", "yes yes", **CUT)) == "yes yes"


def test_a_cut_answer_may_spell_a_control_token(tmp_path) -> None:
    row = chat("?", "write <|im_end|> here", **CUT)
    assert learnt_of(tmp_path, CHATML, row) == "write <|im_end|> here"


def test_a_cut_answer_that_is_context_changes_nothing(tmp_path) -> None:
    messages = [*chat("?", "a")["messages"], *chat("?", "b", weight=0, **CUT)["messages"]]
    assert learnt_of(tmp_path, CHATML, {"messages": messages}) == "a<|im_end|>"


def test_no_template_sees_why_an_answer_ended(tmp_path) -> None:
    dumping = CHATML.replace("message.content +", "message | tojson +")
    row = chat("?", "yes")
    expected = learnt_of(tmp_path, dumping, row)
    assert learnt_of(tmp_path, dumping, chat("?", "yes", finish_reason="stop")) == expected


def test_a_cut_answer_that_is_not_in_the_text_is_a_fault(tmp_path) -> None:
    template = CHATML.replace("message.content +", "message.content | upper +")
    with pytest.raises(InvalidRequest, match="its last answer was cut, and cannot be found"):
        learnt_of(tmp_path, template, chat("?", "yes", **CUT))
