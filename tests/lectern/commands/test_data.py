import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from lectern import console
from lectern.commands import data
from lectern_data.settings import PrepareSettings
from tests.support.chat_files import CHATML, chats_with_tokenizer
from tests.support.no_locks import refuse_locks
from tests.support.tokenizer_files import write_tokenizer


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
        "257",
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
    assert len(shared) == 5


def test_a_small_text_gives_fewer_tokens_than_asked_for_and_says_so(lectern, texts, tmp_path):
    small = prepare(lectern, texts, "--output", tmp_path / "small")
    options = ("--train-tokenizer", "2048", "--output", tmp_path / "large")
    large = lectern("data", "prepare", texts, *options)

    assert "vocabulary of" not in small.err
    size = json.loads((tmp_path / "large/manifest.json").read_text())["vocab_size"]
    assert f"the text gave a vocabulary of {size} tokens, not 2,048\n" in large.err


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "\u202egnp"])
def test_a_dataset_has_a_name_that_can_be_shown(lectern, texts, tmp_path, name):
    ended = prepare(lectern, texts, "--output", tmp_path / name)

    assert ended.code == 2
    assert "holds a character that cannot be shown; choose another name" in ended.err
    assert "\x1b" not in ended.err and "\u202e" not in ended.err
    assert not (tmp_path / name).exists()


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


def test_the_report_says_which_tokens_begin_and_end_a_document(lectern, texts, tmp_path):
    write_tokenizer(
        tmp_path / "tokenizer",
        special=("<s>", "<|im_end|>"),
        begins_with="<s>",
        config={"bos_token": "<s>", "eos_token": "<|im_end|>"},
    )
    given = ("data", "prepare", texts, "--tokenizer", tmp_path / "tokenizer", "--home", tmp_path)

    ended = lectern(*given, "--output", "a")
    assert ended.code == 0, ended.err
    assert "a document begins with <s> (id 300): the post-processor in tokenizer.json" in ended.out
    assert "a document ends in <|endoftext|> (id 0): the tokenizer's eos_token" in ended.out

    told = lectern(*given, "--output", "b", "--bos-policy", "row", "--eos-policy", "none", "--json")
    assert {name: told.json[name] for name in ("bos_policy", "bos_token", "eos_token")} == {
        "bos_policy": "row",
        "bos_token": "<s>",
        "eos_token": None,
    }
    ended = lectern(*given, "--output", "c", "--bos-policy", "none", "--eos-policy", "none")
    assert "no token begins a document: --bos-policy none" in ended.out
    assert "no token ends a document" in ended.out


def test_a_beginning_that_the_tokenizer_does_not_know_is_refused(lectern, texts, tmp_path):
    refused = prepare(
        lectern, texts, "--output", "code", "--home", tmp_path, "--bos-policy", "document"
    )

    assert refused.code == 2
    assert "--bos-policy document needs a token that begins a text" in refused.err
    assert not (tmp_path / "data" / "code").exists()


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


def test_a_date_is_for_chats_whose_template_asks_for_it(lectern, tmp_path):
    template = "{{ strftime_now('%B %Y') }}" + CHATML
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats", template)
    options = ("--chat", "--tokenizer", tokenizer, "--max-fault-fraction", "0.1", "--output")
    ended = lectern("data", "prepare", source, *options, tmp_path / "a", "--date", "2031-02-03")
    assert ended.code == 0 and "the chat template is told the date 2031-02-03" in ended.err
    assert json.loads((tmp_path / "a/manifest.json").read_text())["rendered_date"] == "2031-02-03"
    wrong = lectern("data", "prepare", source, *options, tmp_path / "b", "--date", "3.2.2031")
    assert wrong.code == 2 and "--date '3.2.2031' is not a date, YYYY-MM-DD" in wrong.err


def test_without_a_token_of_its_own_a_chat_ends_as_its_template_writes_it(lectern, tmp_path):
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    options = ("--chat", "--tokenizer", tokenizer, "--max-fault-fraction", "0.1", "--output")
    ended = lectern("data", "prepare", source, *options, tmp_path / "a", "--eos-policy", "none")
    assert "no token ends a chat" not in ended.out
    assert (
        "a chat ends as its template writes it; no token is added (--eos-policy none)" in ended.out
    )


def test_what_is_lost_of_long_chats_is_told_for_each_length(lectern, tmp_path):
    """Nine short chats, and one whose answer has 1,500 tokens."""
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    answers = ["x" * 9] * 9 + ["x" * 1499]
    rows = [
        [{"role": "user", "content": str(index)}, {"role": "assistant", "content": answer}]
        for index, answer in enumerate(answers)
    ]
    source.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    words = ("--chat", "--tokenizer", tokenizer, "--output", "chats", "--home", tmp_path)
    command = ("data", "prepare", source, *words, "--validation-fraction", "0")
    found = lectern(*command, "--json").json["chat_shares"]
    assert [(one["seq_len"], one["rule"]) for one in found] == [
        (seq_len, rule) for rule in ("cut", "drop") for seq_len in (512, 1024, 2048)
    ]
    assert [one["longer"] for one in found] == [1, 1, 0] * 2
    assert [one["cut"] for one in found] == [1, 1, 0, 0, 0, 0]
    assert [one["dropped"] for one in found] == [0, 0, 0, 1, 1, 0]
    learnt = 9 * 10 + 1500
    assert [one["labels_lost"] for one in found[3:]] == [
        pytest.approx(1500 / learnt),
        pytest.approx(1500 / learnt),
        0,
    ]
    assert found[0]["labels_lost"] > found[1]["labels_lost"] > found[2]["labels_lost"] == 0
    again = lectern(*command, "--force").out.splitlines()
    assert [line for line in again if line.startswith("data.seq_len 1,024")] == [
        f"data.seq_len 1,024: {found[1]['rows']} rows, {found[1]['padding']:.1%} padding, "
        f"{found[1]['labels_of_positions']:.1%} of positions learnt; 1 of 10 chats longer: "
        f"data.long_chats cut loses {found[1]['labels_lost']:.1%} of what is learnt, drop 94.3%"
    ]


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
    [tokens] = map(int, re.findall(r"(\d+) tokens from 11 documents", ended.out))
    assert [line for line in ended.out.splitlines() if line.startswith("data.seq_len")] == [
        f"data.seq_len {seq_len:,}: 1 row, {1 - tokens / seq_len:.1%} padding, "
        f"{learnt / seq_len:.1%} of positions learnt"
        for seq_len in (512, 1024, 2048)
    ]
    assert "chats.jsonl#6: the chat template does not write the call" in ended.err


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
    assert ", after " not in ended.out


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


def prompts_of(lectern, tmp_path, rows, *options):
    _, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    common = ("--prompts", "--tokenizer", tokenizer, "--output", tmp_path / "set")
    return lectern("data", "prepare", source, *common, *options)


def test_prompts_are_counted_with_the_longest_and_nothing_is_held_out(lectern, tmp_path):
    ended = prompts_of(lectern, tmp_path, [{"prompt": "abc"}, {"prompt": "abcdefgh"}])

    assert ended.code == 0
    assert ended.out.startswith(
        f"{tmp_path}/set: 2 prompts with 11 tokens, 5.5 on average, the longest 8; 1 shard\n"
        "no token begins a prompt: "
    )
    assert "ends in" not in ended.out and not (tmp_path / "set-validation").exists()
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["content"] == "prompts" and manifest["eos_policy"] == "none"


def test_prompts_of_chats_are_told_as_json(lectern, tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    ended = prompts_of(lectern, tmp_path, [row], "--chat", "--json")

    told = json.loads(ended.out)
    assert told["longest_prompt"] == told["training"]["tokens"] > len("Hi")
    assert told["training"]["learnt_tokens"] == 0
    assert told["chat_shares"] == [] and told["validation"] is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--seed", "0"), "--seed does not fit --prompts"),
        (("--validation-fraction", "0.1"), "--validation-fraction does not fit --prompts"),
        (("--eos-policy", "after"), "--eos-policy after does not fit --prompts"),
        (("--eos-token", "</s>"), "--eos-token does not fit --prompts"),
        (("--bos-policy", "row"), "--bos-policy row does not fit --prompts"),
        (("--seq-length-hint", "8"), "--seq-length-hint does not fit --prompts"),
        (("--train-tokenizer", "300"), "set exactly one of|does not fit --prompts"),
        (("--messages-field", "prompt"), "--messages-field has no effect without --chat"),
    ],
)
def test_options_that_do_nothing_for_prompts_are_refused(lectern, tmp_path, options, why):
    ended = prompts_of(lectern, tmp_path, [{"prompt": "abc"}], *options)

    assert ended.code == 2 and re.search(why, ended.err)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("row", "options", "why"),
    [
        ({"messages": []}, (), "add --chat to read chats"),
        ({"text": "a"}, (), "set --text-field"),
        ({"prompt": [{"role": "user", "content": "a"}]}, (), "add --chat --messages-field prompt"),
        ({"prompt": "a"}, ("--chat",), "set --messages-field"),
        ({"prompt": "a"}, ("--text-field", "question"), "has no text under 'question'"),
    ],
)
def test_rows_without_the_field_name_what_to_set(lectern, tmp_path, row, options, why):
    ended = prompts_of(lectern, tmp_path, [row], *options)

    assert ended.code == 2 and why in ended.err


def test_a_prompt_set_is_shown_with_where_its_prompts_end(lectern, tmp_path):
    rows = [{"prompt": "x" * 70 + "the end"}, {"prompt": "a\nb\x1b[31m"}, {"prompt": "c"}]
    prompts_of(lectern, tmp_path, rows)

    shown = lectern("data", "show", tmp_path / "set", "--documents", "2")

    assert shown.code == 0
    first, counts, vocabulary, edges, *texts = shown.out.splitlines()
    assert first == f"{tmp_path}/set: a prompt set"
    assert counts == "3 prompts, 28.7 tokens on average, the longest 77; 86 tokens in 1 shard"
    assert vocabulary.startswith("vocabulary of 261 tokens, tokenizer sha256 ")
    assert edges == "no token begins a prompt; no token is put behind a prompt"
    assert texts == [f"   0  '... {'x' * 57}the end'", r"   1  'a\nb\x1b[31m'"]


def test_a_dataset_is_shown_with_how_its_documents_begin(lectern, texts, tmp_path):
    prepare(lectern, texts, "--output", tmp_path / "data", "--shard-tokens", "7")

    told = json.loads(lectern("data", "show", tmp_path / "data", "--json").out)

    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert (told["holds"], told["documents"]) == ("text", manifest["document_count"])
    assert told["tokens"] == manifest["total_tokens"] and told["chats"] is None
    assert told["longest"] == len("text number 0\n") * 20 + 1
    assert len(told["texts"]) == 3
    for text in told["texts"]:
        assert re.fullmatch(r"(text number \d\n){4}text num \.\.\.", text)


def test_chats_are_counted_apart_from_their_sequences(lectern, tmp_path):
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    options = ("--chat", "--tokenizer", tokenizer, "--output", tmp_path / "set")
    rest = ("--validation-fraction", "0", "--max-fault-fraction", "0.2")
    lectern("data", "prepare", source, *options, *rest)

    shown = lectern("data", "show", tmp_path / "set", "--documents", "0")

    assert ": a dataset of chats\n11 sequences of 11 chats, " in shown.out
    assert len(shown.out.splitlines()) == 4


def test_what_is_no_dataset_is_not_shown(lectern, tmp_path):
    missing = lectern("data", "show", tmp_path / "absent")
    assert missing.code == 3 and "no dataset at" in missing.err
    (tmp_path / "record").mkdir()
    (tmp_path / "record/manifest.json").write_text('{"schema": "lectern-record-v1"}')
    refused = lectern("data", "show", tmp_path / "record")
    assert refused.code == 2 and "is a record of a teacher, not a dataset" in refused.err
