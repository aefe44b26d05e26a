"""The rows of .json files: lists and values one after the other, whole, cut and broken."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lectern_data.read import json_values as module
from lectern_data.read.documents import texts_of
from lectern_data.read.json_values import json_values
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan
from lectern_data.read.unusable import UnusableError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def rows(data: bytes, max_bytes: int = 1 << 20) -> list[bytes | None]:
    return [value.data for value in json_values(io.BytesIO(data), max_bytes)]


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 1, 4]), st.integers(1, 7))
def test_the_values_of_any_list_are_found_whatever_the_chunks(
    values: list[Any], indent: int | None, chunk_bytes: int
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    before, module._CHUNK_BYTES = module._CHUNK_BYTES, chunk_bytes
    try:
        found = list(json_values(io.BytesIO(data), 1 << 20))
    finally:
        module._CHUNK_BYTES = before
    raw = [value.data or b"" for value in found]
    assert [json.loads(part.decode("utf-8", "surrogatepass")) for part in raw] == values
    assert [
        data[value.offset :][: len(part)] for value, part in zip(found, raw, strict=True)
    ] == raw


def test_a_row_above_the_limit_is_passed_over_and_the_next_one_found() -> None:
    long = json.dumps({"text": "x[" * 5000})
    assert rows(f'[{{"a": 1}}, {long}, {{"b": 2}}]'.encode(), 100) == [
        b'{"a": 1}',
        None,
        b'{"b": 2}',
    ]


@pytest.mark.parametrize(
    ("data", "found", "reason"),
    [
        (b'[{"a": 1}, {"b": "cu', 1, "ends inside a string"),
        (b'[{"a": 1}, {"b": ', 1, "ends before its brackets are closed"),
        (b'[{"a": 1}]\n[{"b": 1}]', 1, "has more after its list"),
        (b'{"a": 1}} {"b": 1}', 1, "a closing bracket too many"),
        (b'[{"a": 1}}', 0, "a closing bracket too many"),
    ],
)
def test_brackets_that_do_not_match_end_the_rows(data: bytes, found: int, reason: str) -> None:
    seen = []
    with pytest.raises(UnusableError, match=reason):
        for value in json_values(io.BytesIO(data), 100):
            seen.append(value)
    assert len(seen) == found


@pytest.mark.parametrize(
    ("data", "texts", "reasons"),
    [
        (b'[{"text": "one"}, {"text": "two"}]', ["one", "two"], {}),
        (b'\xef\xbb\xbf\n [\n{"text": "bom"}\n]\n', ["bom"], {}),
        (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"], {}),
        (b'{"text": "whole"}', ["whole"], {}),
        (b"[]", [], {"a.json": "empty"}),
        (b"", [], {"a.json": "empty"}),
        (
            b'[{"text": null}, {"text": ""}, {"text": 3}, {"b": {}}, {"text": nan}]',
            [],
            {
                "a.json#1": "empty",
                "a.json#2": "empty",
                "a.json#3": "has no text under 'text'",
                "a.json#4": "has no text under 'text', but 'b'; set --text-field",
                "a.json#5": "not JSON",
            },
        ),
        (
            b'{"name": "an app", "scripts": {}}',
            [],
            {
                "a.json": "has no text under 'text', but 'name', 'scripts'; set --text-field; a "
                ".json file is a list of rows, or one row"
            },
        ),
        (
            b'[{"text": "good"}, {"text": "cut',
            ["good"],
            {"a.json#2": "not JSON (it ends inside a string); it and the rows after it are lost"},
        ),
    ],
)
def test_a_json_file_is_rows_and_never_prose(
    tmp_path: Path, data: bytes, texts: list[str], reasons: dict[str, str]
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    documents, left_out = scan([("a.json", path)])
    assert list(texts_of(documents, Content())) == texts
    assert {entry.name: entry.reason for entry in left_out} == reasons


def test_chats_of_a_json_file_are_those_of_its_lines(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "[{"}]
        for n in range(3)
    ]
    content = Content("messages", is_chat=True)
    lines = "\n".join(json.dumps({"messages": chat}) for chat in chats)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps([{"messages": chat} for chat in chats], indent=2))
    found = [scan([(name, tmp_path / name)], content=content)[0] for name in ("a.jsonl", "b.json")]
    assert [entry.sha256 for entry in found[0]] == [entry.sha256 for entry in found[1]]
    assert list(texts_of(found[0], content)) == list(texts_of(found[1], content))
