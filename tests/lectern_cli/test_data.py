from pathlib import Path

import pytest


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text(f"text number {number}\n" * 20)
    (folder / "empty.txt").touch()
    return folder


def prepare(lectern, texts, *options):
    return lectern(
        "data",
        "prepare",
        texts,
        "--train-tokenizer",
        "300",
        "--validation-fraction",
        "0.2",
        *options,
    )


def test_a_name_is_a_dataset_under_the_data_root(lectern, texts, tmp_path):
    ended = prepare(lectern, texts, "--output", "code", "--home", tmp_path)

    assert ended.code == 0, ended
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "code",
        "code-validation",
    ]
    assert ended.out.splitlines()[0].startswith(f"{tmp_path}/data/code: ")
    assert "of 8 documents" in ended.out and "of 2 documents" in ended.out
    assert ended.err == "left out: 1 documents\n  texts/empty.txt: empty\n"


def test_anything_with_a_slash_is_a_folder(lectern, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert prepare(lectern, texts, "--output", "./here").code == 0

    assert (tmp_path / "here/manifest.json").exists()


def test_json_says_what_was_written_and_what_was_not(lectern, texts, tmp_path):
    told = prepare(lectern, texts, "--output", "code", "--home", tmp_path, "--json").json

    assert told["training"]["documents"] == 8
    assert told["validation"]["path"] == f"{tmp_path}/data/code-validation"
    assert told["left_out"] == [
        {"name": "texts/empty.txt", "reason": "empty", "is_fault": False, "documents": 1}
    ]


def test_a_second_time_needs_force(lectern, texts, tmp_path):
    options = ("--output", "code", "--home", tmp_path)
    prepare(lectern, texts, *options)

    refused = prepare(lectern, texts, *options)

    assert refused.code == 4
    assert "--force to replace it" in refused.err
    assert prepare(lectern, texts, *options, "--force").code == 0
