"""S9: rows that are broken, empty, too large or misnamed: each counted, with file and number."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lectern_common.errors import CorruptData, InvalidRequest, LecternError
from lectern_data.prepare import prepare
from lectern_data.read.documents import texts_of
from lectern_data.read.input_files import find_files
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan
from lectern_data.settings import PrepareSettings

TEN_MB = "x" * (10 << 20)
TOO_LARGE = "larger than 8,388,608 bytes; split it, or raise --max-document-bytes"
Reasons = dict[str, tuple[str, int]]


def scanned(path: Path, content: Content | None = None) -> tuple[list[str], Reasons]:
    """The texts of the usable documents, and (reason, documents) of those left out."""
    documents, left_out = scan([(path.name, path)], content=content)
    texts = list(texts_of(documents, content or Content()))
    return texts, {entry.name: (entry.reason, entry.documents) for entry in left_out}


def write_parquet(path: Path, columns: dict[str, Any], row_group_size: int = 3) -> Path:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table(columns), path, row_group_size=row_group_size)
    return path


def test_every_kind_of_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": "half',
        b'{"text": "caf\xe9"}',
        b'{"text": 7}',
        b'{"text": null}',
        b'{"txt": "misnamed"}',
        b'{"text": ""}',
        b"",
        json.dumps({"text": TEN_MB}).encode(),
        b'\xff\xfe{"text": "utf-16"}',
        b'{"text": "last"}',
    ]
    path.write_bytes(b"\n".join(lines))
    texts, reasons = scanned(path)
    assert texts == ["good", "last"]
    assert reasons == {
        "rows.jsonl#2": ("not JSON", 1),
        "rows.jsonl#3": ("not UTF-8 (byte 13)", 1),
        "rows.jsonl#4": ("has no text under 'text'", 1),
        "rows.jsonl#5": ("empty", 1),
        "rows.jsonl#6": ("has no text under 'text', but 'txt'; set --text-field", 1),
        "rows.jsonl#7": ("empty", 1),
        "rows.jsonl#8": ("empty", 1),
        "rows.jsonl#9": (TOO_LARGE, 1),
        "rows.jsonl#10": ("not UTF-8 (byte 0)", 1),
    }


def test_every_kind_of_broken_parquet_row_is_named(tmp_path: Path) -> None:
    import pyarrow as arrow

    values = [b"good", b"caf\xe9", None, b"", TEN_MB.encode(), b"\xff", b"last"]
    column = arrow.array(values, arrow.binary()).view(arrow.string())
    texts, reasons = scanned(write_parquet(tmp_path / "rows.parquet", {"text": column}))
    assert texts == ["good", "last"]
    assert reasons == {
        "rows.parquet#2": ("not UTF-8 (byte 3)", 1),
        "rows.parquet#3": ("empty", 1),
        "rows.parquet#4": ("empty", 1),
        "rows.parquet#5": (TOO_LARGE, 1),
        "rows.parquet#6": ("not UTF-8 (byte 0)", 1),
    }


def test_a_parquet_column_that_is_missing_or_not_text_loses_every_row(tmp_path: Path) -> None:
    numbers = write_parquet(tmp_path / "numbers.parquet", {"text": [1, 2]})
    assert scanned(numbers)[1] == {
        "numbers.parquet#1": ("has no text under 'text'", 1),
        "numbers.parquet#2": ("has no text under 'text'", 1),
    }
    misnamed = write_parquet(tmp_path / "misnamed.parquet", {"body": ["a"] * 7, "id": [1] * 7})
    reason = "has no column 'text', but 'body', 'id'; set --text-field"
    assert scanned(misnamed)[1] == {"misnamed.parquet": (reason, 7)}


def test_rows_of_a_parquet_file_are_read_from_any_row_group(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1000)]
    path = write_parquet(tmp_path / "rows.parquet", {"text": texts}, row_group_size=400)
    documents, _ = scan([("rows.parquet", path)])
    assert list(texts_of(documents, Content())) == texts
    some = documents[3:5] + documents[399:402] + documents[700:]
    assert list(texts_of(some, Content())) == [texts[documents.index(entry)] for entry in some]


def test_a_parquet_file_that_shrank_when_it_is_read_again_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for size, fewer in ((5, 3), (2, 4)):  # fewer rows in a group, fewer groups
        columns = {"text": [f"text {number}" for number in range(5)]}
        write_parquet(path, columns, row_group_size=size)
        documents, _ = scan([("rows.parquet", path)])
        write_parquet(path, {"text": columns["text"][:fewer]}, row_group_size=size)
        with pytest.raises(CorruptData, match=r"rows\.parquet changed while it was being read"):
            list(texts_of(documents, Content()))


def test_a_parquet_file_that_is_damaged_in_the_middle_loses_the_rest(tmp_path: Path) -> None:
    texts = [f"{number:04d}" * 50 for number in range(40)]
    path = write_parquet(tmp_path / "rows.parquet", {"text": texts}, row_group_size=10)
    data = bytearray(path.read_bytes())
    from pyarrow import parquet

    third = parquet.read_metadata(path).row_group(2).column(0)
    first = third.dictionary_page_offset or third.data_page_offset
    data[first : first + third.total_compressed_size] = bytes(third.total_compressed_size)
    path.write_bytes(data)
    good, reasons = scanned(path)
    assert good == texts[:20]
    [(name, (reason, lost))] = reasons.items()
    assert name == "rows.parquet#21" and lost == 20 and "the rows after it are lost" in reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.parquet", b'{"text": "x"}\n', "not a Parquet file"),
        ("rows.parquet", b"PAR1 and no more", "not a Parquet file"),
        ("rows.jsonl", b"PAR1\x00\x01", "a Parquet file; rename it to .parquet"),
        ("rows.txt", b"PAR1\x00\x01", "not text (it has a NUL byte)"),
    ],
)
def test_a_file_with_the_ending_of_another_kind_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    texts, reasons = scanned(path)
    assert not texts and list(reasons) == [name] and reasons[name][0].startswith(reason)


def test_endings_in_capitals_and_ndjson_are_rows_too(tmp_path: Path) -> None:
    for name in ("a.JSONL", "b.ndjson"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
        assert scanned(tmp_path / name) == (["one", "two"], {})


def test_chats_are_only_in_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    content = Content("messages", is_chat=True)
    parquet = write_parquet(tmp_path / "chats.parquet", {"messages": [turns, [], None]})
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}))
    (tmp_path / "chats.txt").write_text("Hi")
    [from_parquet], reasons = scanned(parquet, content)
    [from_json], _ = scanned(tmp_path / "chats.jsonl", content)
    assert json.loads(from_parquet) == turns and from_parquet == from_json
    assert reasons == {
        "chats.parquet#2": ("empty", 1),
        "chats.parquet#3": ("empty", 1),
    }
    assert scanned(tmp_path / "chats.txt", content)[1]["chats.txt"][0] == (
        "not a file of chats; those end in .jsonl, .ndjson, .jsonlines, .json, .parquet; drop "
        "--chat to read it as text"
    )


def test_rows_of_texts_that_are_read_as_chats_advise_to_drop_the_option(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Hi", "id": 1}')
    _, reasons = scanned(tmp_path / "a.jsonl", Content("messages", is_chat=True))
    assert reasons["a.jsonl#1"][0] == (
        "has no messages under 'messages', but 'text', 'id'; drop --chat to read texts, or set "
        "--messages-field"
    )


def test_binary_columns_of_parquet_are_text_at_every_depth(tmp_path: Path) -> None:
    import pyarrow as arrow

    turns = [{"role": b"user", "content": b"caf\xc3\xa9"}, {"role": b"assistant", "content": b"Yo"}]
    kind = arrow.list_(arrow.struct({"role": arrow.binary(), "content": arrow.large_binary()}))
    texts = [b"caf\xc3\xa9", b"caf\xe9", b"", None]
    for binary in (arrow.binary(), arrow.large_binary()):
        column = arrow.array(texts, binary)
        found, reasons = scanned(write_parquet(tmp_path / "rows.parquet", {"text": column}))
        assert found == ["caf\xe9"]
        assert reasons == {
            "rows.parquet#2": ("not UTF-8 (byte 3)", 1),
            "rows.parquet#3": ("empty", 1),
            "rows.parquet#4": ("empty", 1),
        }
    chats = write_parquet(tmp_path / "c.parquet", {"messages": arrow.array([turns], kind)})
    [chat], _ = scanned(chats, Content("messages", is_chat=True))
    assert json.loads(chat)[0] == {"role": "user", "content": "caf\xe9"}


def test_a_column_is_found_by_its_name_among_names_that_begin_alike(tmp_path: Path) -> None:
    columns = {"text.en": ["wrong"], "text": ["right"], "text_2": ["wrong"]}
    assert scanned(write_parquet(tmp_path / "rows.parquet", columns)) == (["right"], {})


def test_empty_values_do_not_count_towards_the_limit(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}"} for number in range(10)] + [
        {"text": None},
        {"text": ""},
    ] * 50
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = prepare(
        PrepareSettings([path], tmp_path / "out/data", train_vocab_size=300, max_fault_fraction=0)
    )
    assert len(made.left_out) == 100 and not any(entry.is_fault for entry in made.left_out)
    assert made.training.documents == 9


def test_names_are_printed_inert(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a\nb", "\x1b[31mred", "[bold]x", "right\u202eleft", "tab\t"):
        (tmp_path / "in" / f"{name}.txt").write_bytes(b"\xff")
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"\xff")
    _, left_out = scan(find_files([tmp_path / "in"], [], []))
    assert sorted(entry.name for entry in left_out) == [
        "in/[bold]x.txt",
        "in/\\x1b[31mred.txt",
        "in/a\\nb.txt",
        "in/caf\\udce9.txt",
        "in/right\\u202eleft.txt",
        "in/tab\\t.txt",
    ]


def test_every_row_of_a_misnamed_column_counts_towards_the_limit(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    write_parquet(tmp_path / "rows.parquet", {"body": ["a"] * 80})
    settings: dict[str, Any] = {"train_vocab_size": 300, "validation_fraction": 0}
    with pytest.raises(InvalidRequest, match=r"80 of 100 documents .*has no column 'text'"):
        prepare(
            PrepareSettings([tmp_path], tmp_path / "out/data", max_fault_fraction=0.79, **settings)
        )
    kept = prepare(
        PrepareSettings([tmp_path], tmp_path / "out/data", max_fault_fraction=0.8, **settings)
    )
    assert kept.training.documents == 20 and kept.left_out[0].documents == 80


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "rows.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LecternError, match=r"rows.parquet .*install .lectern\[data\]"):
        scan([("rows.parquet", path)])
