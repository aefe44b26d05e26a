import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest

from lectern import console
from lectern.commands import data
from lectern_data.settings import PrepareSettings
from tests.support.chat_files import chats_with_tokenizer
from tests.support.no_locks import refuse_locks


@pytest.fixture
def texts(tmp_path: Path) -> Path:
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


def test_defaults_are_those_of_the_settings():
    defaults = {field.name: field.default for field in fields(PrepareSettings)}
    declared = inspect.signature(data.prepare).parameters.items()
    set_here = {
        name: entry.default for name, entry in declared if entry.default not in (None, entry.empty)
    }

    shared = set_here.keys() & defaults.keys()
    assert {name: set_here[name] for name in shared} == {name: defaults[name] for name in shared}
    assert len(shared) == 7


def test_counts_of_one_are_singular(lectern, tmp_path):
    (tmp_path / "one.txt").write_text("text")
    options = ("--train-tokenizer", "300", "--validation-fraction", "0", "--eos-policy", "none")

    ended = lectern(
        "data", "prepare", tmp_path / "one.txt", "--output", tmp_path / "data", *options
    )

    assert ": 1 token from 1 document (4.00 bytes" in ended.out and ", 1 shard\n" in ended.out


def test_chats_without_the_option_are_refused_with_a_hint(lectern, tmp_path):
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    common = ("--tokenizer", tokenizer, "--output", tmp_path / "data")

    refused = lectern("data", "prepare", source, *common)

    assert refused.code == 2
    assert "chats.jsonl#1, " in refused.err and " and 7 more: has no text" in refused.err
    assert "under 'text', but 'messages'; add --chat to read chats" in refused.err
    told = lectern("data", "prepare", source, *common, "--chat", "--messages-field", "turns")
    assert "under 'turns', but 'messages'; set --messages-field" in told.err


def test_a_name_is_a_dataset_under_the_data_root(lectern, texts, tmp_path):
    ended = prepare(lectern, texts, "--output", "code", "--home", tmp_path)

    assert ended.code == 0, ended
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "code",
        "code-validation",
    ]
    assert ended.out.splitlines()[0].startswith(f"{tmp_path}/data/code: ")
    assert "from 8 documents" in ended.out and "from 2 documents" in ended.out
    assert ended.err == "left out: 1 document\n  texts/empty.txt: empty\n"


def test_anything_with_a_slash_is_a_folder(lectern, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert prepare(lectern, texts, "--output", "./here").code == 0

    assert (tmp_path / "here/manifest.json").exists()


def test_json_lists_what_was_written_and_what_was_left_out(lectern, texts, tmp_path):
    told = prepare(lectern, texts, "--output", "code", "--home", tmp_path, "--json").json

    assert told["training"]["documents"] == 8
    assert told["validation"]["path"] == f"{tmp_path}/data/code-validation"
    assert told["left_out"] == [
        {"name": "texts/empty.txt", "reason": "empty", "is_fault": False, "documents": 1}
    ]


def test_replacing_a_dataset_needs_force(lectern, texts, tmp_path):
    options = ("--output", "code", "--home", tmp_path)
    prepare(lectern, texts, *options)

    refused = prepare(lectern, texts, *options)

    assert refused.code == 4
    assert "--force to replace it" in refused.err
    assert prepare(lectern, texts, *options, "--force").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--chat", "--text-field", "body"), "--text-field has no effect with --chat"),
        (("--messages-field", "turns"), "--messages-field has no effect without --chat"),
        (("--hub-split", "test"), "--hub-split has no effect without --hub"),
        (("--hub-revision", "main"), "--hub-revision has no effect without --hub"),
        (("--chat",), "set --tokenizer instead of --train-tokenizer"),
        (("--workers", "0"), "--workers must be at least 1"),
        (("--shard-tokens", "0"), "--shard-tokens must be at least 1"),
        (("--seq-length-hint", "0"), "--seq-length-hint must be at least 1"),
        (("--max-document-bytes", "-1"), "--max-document-bytes must be at least 1"),
        (("--max-fault-fraction", "1.5"), "--max-fault-fraction must be from 0 to 1"),
        (("--validation-fraction", "nan"), "--validation-fraction must be at least 0 and below 1"),
    ],
)
def test_an_option_without_effect_or_out_of_range_is_refused(
    lectern, texts, tmp_path, options, message
):
    refused = prepare(lectern, texts, "--output", "code", "--home", tmp_path, *options)

    assert refused.code == 2
    assert message in refused.err


def test_a_hub_dataset_needs_no_inputs(lectern, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    rows = [json.dumps({"body": f"text number {number}\n" * 20}) for number in range(10)]
    (source / "rows.jsonl").write_text("\n".join(rows))
    common = ("--train-tokenizer", "300", "--home", tmp_path, "--text-field", "body", "--json")

    told = lectern("data", "prepare", "--hub", source, "--output", "hub", *common).json
    files = lectern("data", "prepare", source, "--output", "files", *common).json

    assert told["training"]["tokens"] == files["training"]["tokens"] > 0
    nothing = lectern("data", "prepare", "--output", "none", *common)
    assert nothing.code == 2 and "with --hub" in nothing.err


def test_chats_are_reported_with_the_tokens_that_are_learnt(lectern, tmp_path):
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    ended = lectern(
        "data",
        "prepare",
        source,
        *("--chat", "--tokenizer", tokenizer, "--max-fault-fraction", "0.1"),
        *("--output", "chats", "--home", tmp_path, "--validation-fraction", "0"),
    )

    # A token a byte, and one that ends the turn; numbers 10 and 11 have two digits.
    learnt = 11 * (len("Answer 0.") + 1) + 2
    assert ended.code == 0, ended
    assert f", {learnt} tokens from the assistant" in ended.out
    assert "chats.jsonl#6: contains the control token" in ended.err


def test_a_file_system_without_locks_gets_a_sentence_and_a_way_out(
    lectern, texts, tmp_path, monkeypatch
):
    refuse_locks(monkeypatch, but=tmp_path / "locks")
    options = ("--output", "code", "--home", tmp_path / "home")

    refused = prepare(lectern, texts, *options)

    assert refused.code == 2
    assert "is on a file system without file locks (No locks available)" in refused.err
    assert "LECTERN_LOCKS" in refused.err and refused.err.count("\n") == 1
    assert list((tmp_path / "home/data").iterdir()) == []
    monkeypatch.setenv("LECTERN_LOCKS", str(tmp_path / "locks"))
    assert prepare(lectern, texts, *options).code == 0
    assert not (tmp_path / "home/data/.code.work").exists()


def test_outside_a_terminal_a_line_says_now_and_then_how_far_it_is(
    lectern, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.001)

    ended = prepare(lectern, texts, "--output", "code", "--home", tmp_path)

    lines = ended.err.splitlines()
    assert any(line.startswith("tokenizer training, documents: ") for line in lines), lines
    assert all(", after " in line for line in lines[:-2])
    assert ended.out.count("\n") == 3


def test_a_line_comes_also_while_nothing_moves(monkeypatch, capsys):
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.01)
    with console.progress() as advance:
        advance("tokenizing documents", 3, 12)
        said = ""
        while said.count("\n") < 3:
            said += capsys.readouterr().err

    assert said.splitlines()[-1] == "tokenizing documents: 3 of 12 (25%), after 0 s"


def test_faults_are_named_before_empty_files_and_both_are_counted(lectern, tmp_path):
    rows = ["{}"] + ['{"text": null}'] * 30 + ['{"text": "some text"}'] * 200
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    options = ("--train-tokenizer", "300", "--home", tmp_path, "--output", "rows")

    ended = lectern(
        "data", "prepare", tmp_path / "rows.jsonl", *options, "--validation-fraction", 0
    )

    assert ended.err.splitlines()[:3] == [
        "left out: 31 documents, 30 of them without a fault",
        "  rows.jsonl#1: has no text under 'text'",
        "  rows.jsonl#2: empty",
    ]


def test_names_of_files_cannot_write_on_the_terminal(lectern, texts, tmp_path):
    for name in ("\x1b[2J\nerror: gone", "[red]"):
        (texts / f"{name}.csv").write_text("a,b\n")

    ended = prepare(
        lectern, texts, "--output", "code", "--home", tmp_path, "--max-fault-fraction", "0.5"
    )

    assert "  texts/\\x1b[2J\\nerror: gone.csv: a table" in ended.err
    assert "  texts/[red].csv: a table" in ended.err and "\x1b" not in ended.err
