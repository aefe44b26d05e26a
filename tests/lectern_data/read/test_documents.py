import json
from pathlib import Path

import pytest

from lectern_common.errors import CorruptData, NotFound
from lectern_data.read.documents import texts_of
from lectern_data.read.input_files import find_files
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan


def write(folder: Path, **texts: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def read(document) -> str:
    [text] = texts_of([document], Content())
    return text


def names(files: list[tuple[str, Path]]) -> list[str]:
    return [name for name, _ in files]


def test_files_in_a_folder_are_sorted_and_named_after_it(tmp_path):
    folder = write(tmp_path / "src", b_dot_py="b", a_dot_py="a", sub__c_dot_py="c")

    assert names(find_files([folder], [], [])) == ["src/a.py", "src/b.py", "src/sub/c.py"]


def test_include_and_exclude_match_names_and_paths(tmp_path):
    folder = write(
        tmp_path / "src", a_dot_py="a", a_dot_txt="t", tests__b_dot_py="b", sub__c_dot_py="c"
    )

    assert names(find_files([folder], ["*.py"], ["tests"])) == ["src/a.py", "src/sub/c.py"]
    assert names(find_files([folder], ["sub/*"], [])) == ["src/sub/c.py"]


def test_hidden_files_and_linked_folders_are_skipped(tmp_path):
    outside = write(tmp_path / "outside", x_dot_py="x")
    folder = write(tmp_path / "src", a_dot_py="a", _dot_git__config="c")
    (folder / "loop").symlink_to(outside, target_is_directory=True)

    assert names(find_files([folder], [], [])) == ["src/a.py"]


def test_a_missing_input_is_refused(tmp_path):
    with pytest.raises(NotFound, match=r"no file or folder .*nowhere"):
        find_files([tmp_path / "nowhere"], [], [])


def test_files_that_are_not_text_are_left_out_by_name_and_reason(tmp_path):
    folder = write(
        tmp_path / "src",
        binary_dot_py=b"a\0b",
        empty_dot_py="",
        good_dot_py="x = 1\n",
        huge_dot_py="x" * 101,
        latin_dot_py="caf\xe9".encode("latin-1"),
    )
    (folder / "gone.py").symlink_to(folder / "nowhere.py")

    documents, left_out = scan(find_files([folder], [], []), max_document_bytes=100)

    assert [document.name for document in documents] == ["src/good.py"]
    assert {entry.name: (entry.reason, entry.is_fault) for entry in left_out} == {
        "src/binary.py": ("not text (it has a NUL byte)", True),
        "src/empty.py": ("empty", False),
        "src/gone.py": (f"a link to {folder}/nowhere.py, which cannot be reached", True),
        "src/huge.py": ("larger than 100 bytes; split it, or raise --max-document-bytes", True),
        "src/latin.py": ("not UTF-8 (byte 3)", True),
    }


def test_every_row_of_a_jsonl_file_is_a_document(tmp_path):
    rows = [
        json.dumps({"text": "first\nline"}),
        "not json",
        json.dumps({"other": "x"}),
        json.dumps({"text": ""}),
        json.dumps({"text": "x" * 200}),
        json.dumps({"text": "\ud800"}),
        json.dumps(["text"]),
        "[" * 100,
        json.dumps({"text": "last, without a newline"}),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))

    documents, left_out = scan([("rows.jsonl", path)], max_document_bytes=100)

    assert list(texts_of(documents, Content())) == ["first\nline", "last, without a newline"]
    assert {entry.name: entry.reason for entry in left_out} == {
        "rows.jsonl#2": "not JSON",
        "rows.jsonl#3": "has no text under 'text', but 'other'; set --text-field",
        "rows.jsonl#4": "empty",
        "rows.jsonl#5": "larger than 100 bytes; split it, or raise --max-document-bytes",
        "rows.jsonl#6": "its text has a lone surrogate",
        "rows.jsonl#7": "has no text under 'text'",
        "rows.jsonl#8": "not JSON",
    }


def test_a_file_that_changes_between_finding_and_reading_is_refused(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    [document], _ = scan([("a.py", path)])
    assert read(document) == "x = 1\n"

    path.write_text("x = 2\n")
    with pytest.raises(CorruptData, match="changed while"):
        read(document)
    path.unlink()
    with pytest.raises(CorruptData, match="changed while"):
        read(document)
