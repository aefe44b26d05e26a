"""From rows of chats to a dataset: what stands beside the messages, dates, sequences, counts."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import CorruptData, InvalidRequest
from lectern_common.tokens.shards import read_chat_numbers, read_document_starts, read_manifest
from lectern_data.prepare import Prepared, prepare
from lectern_data.read.documents import texts_of as read_again
from lectern_data.read.hub import HubDataset
from lectern_data.read.rows import Content
from lectern_data.read.scan import scan
from lectern_data.settings import PrepareSettings
from tests.support.chat_files import CHATML, byte_tokenizer

TOOLED = "{{ tools | tojson if tools }}{{ '!' if loud }}" + CHATML.replace(
    "message.content + '<|im_end|>\\n' }}",
    "(message.content or '') }}{% for c in message.tool_calls or [] %}"
    "{{ c | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}",
)
DATED = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
# Thoughts are shown only in the last turn.
FORGETFUL = CHATML.replace(
    "message.content +", "(message.content if loop.last else message.content.split('/t')[-1]) +"
)
TOOLS = [{"name": "f", "parameters": {"z": {"type": "string"}, "a": {"enum": ["b", "a"]}}}]


def tokenizer_with(folder: Path, template: Any) -> Path:
    folder.mkdir(parents=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chat(*turns: str, **beside: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return {"messages": messages, **beside}


def calling(**beside: Any) -> dict[str, Any]:
    row = chat("?", "", "5", "!", **beside)
    call = {"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": "x"}}}
    row["messages"][1] = {"role": "assistant", "content": None, "tool_calls": [call]}
    row["messages"][2]["role"] = "tool"
    return row


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def prepared(
    inputs: list[Path], output: Path, tokenizer: Path, events: list[str] | None = None, **more: Any
) -> Prepared:
    content = Content("messages", is_chat=True)
    settings = {"validation_fraction": 0, "eos_policy": "none", "content": content, **more}
    told: list[str] = [] if events is None else events
    return prepare(
        PrepareSettings(inputs, output, tokenizer=tokenizer, **settings), on_event=told.append
    )


def ids_of(dataset: Path, kind: str = "shard", dtype: str = "<u4") -> np.ndarray:
    files = sorted(dataset.glob(f"{kind}-*.bin"))
    return np.concatenate([np.frombuffer(file.read_bytes(), dtype) for file in files])


def texts_of(dataset: Path) -> list[str]:
    """The text of each sequence."""
    manifest = read_manifest(dataset)
    starts = read_document_starts(dataset, manifest)
    assert starts is not None and len(starts) == manifest.document_count
    parts = np.split(ids_of(dataset), starts[1:])
    return [byte_tokenizer().decode(part.tolist(), skip_special_tokens=False) for part in parts]


CALLED = (
    json.dumps(TOOLS) + "!<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    '{"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": "x"}}}<|im_end|>\n'
    "<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n!<|im_end|>\n"
)
PLAIN = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n!<|im_end|>\n"


def test_tools_calls_and_arguments_of_json_rows_are_rendered_as_written(tmp_path: Path) -> None:
    rows = [
        calling(tools=TOOLS, chat_template_kwargs={"loud": True}, id=7),
        calling(tools=json.dumps(TOOLS), loud=True, source="x", chat_template_kwargs={"lowd": 1}),
        chat("?", "!", tools=None, id=8),
    ]
    source = written(tmp_path / "rows.jsonl", rows)
    events: list[str] = []
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", TOOLED), events)
    assert texts_of(tmp_path / "data") == [CALLED, CALLED, PLAIN]
    assert events == ["fields that are not used: 'id', 'source', 'chat_template_kwargs.lowd'"]
    manifest = read_manifest(tmp_path / "data")
    assert manifest.content == "chats" and manifest.rendered_date is None


@pytest.mark.parametrize("read_by", ["parquet", "hub"])
def test_nulls_of_columns_are_not_rendered(tmp_path: Path, read_by: str) -> None:
    """Both rows get every field that any of them has."""
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    other = calling(tools=[{**TOOLS[0], "about": "x"}], id=1, loud=None)
    other["messages"][1]["tool_calls"][0]["function"]["arguments"]["more"] = 5
    other["messages"][0]["name"] = "me"
    rows = [other, calling(tools=TOOLS, id=2, loud=True), chat("?", "!", tools=None, id=3)]
    folder = tmp_path / "rows"
    folder.mkdir()
    table = arrow.Table.from_pylist(rows)
    write_table(table, folder / "rows.parquet")
    struct = table.schema.field("messages").type.value_type
    assert {field.name for field in struct} == {"role", "content", "tool_calls", "name"}
    tokenizer, events = tokenizer_with(tmp_path / "t", TOOLED), list[str]()
    if read_by == "parquet":
        prepared([folder / "rows.parquet"], tmp_path / "data", tokenizer, events)
    else:
        hub = HubDataset(str(folder))
        prepared([], tmp_path / "data", tokenizer, events, hub_dataset=hub)
    found = texts_of(tmp_path / "data")
    assert found[0].count("null") == 0 and '"more": 5' in found[0] and '"about"' in found[0]
    # Arrow sorts nothing: fields keep the order in which the first row has them.
    assert found[1:] == [CALLED, PLAIN]
    assert sorted(events[0].removeprefix("fields that are not used: ").split(", ")) == [
        "'id'",
        "'messages.name'",
    ]


@pytest.mark.parametrize("read_by", ["parquet", "hub"])
def test_a_row_whose_messages_are_null_is_empty_however_it_is_read(
    tmp_path: Path, read_by: str
) -> None:
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    rows = [chat("?", "!", tools=TOOLS), {"messages": None, "tools": TOOLS}]
    (tmp_path / "rows").mkdir()
    write_table(arrow.Table.from_pylist(rows), tmp_path / "rows/rows.parquet")
    is_hub = read_by == "hub"
    done = prepared(
        [] if is_hub else [tmp_path / "rows"],
        tmp_path / "data",
        tokenizer_with(tmp_path / "t", TOOLED),
        hub_dataset=HubDataset(str(tmp_path / "rows")) if is_hub else None,
    )
    assert [(entry.reason, entry.is_fault) for entry in done.left_out] == [("empty", False)]
    assert len(texts_of(tmp_path / "data")) == 1


def test_a_map_column_is_an_object(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    kind = arrow.map_(arrow.string(), arrow.string())
    columns = [
        arrow.field("messages", arrow.list_(kind)),
        arrow.field("chat_template_kwargs", kind),
    ]
    row = chat("?", "!", chat_template_kwargs={"loud": "yes"})
    write_table(arrow.Table.from_pylist([row], arrow.schema(columns)), tmp_path / "rows.parquet")
    prepared([tmp_path / "rows.parquet"], tmp_path / "data", tokenizer_with(tmp_path / "t", TOOLED))
    assert texts_of(tmp_path / "data") == ["!" + PLAIN]


def test_fields_that_only_some_templates_read_are_named_if_these_do_not(tmp_path: Path) -> None:
    rows = [chat("?", "!", tools=TOOLS, documents=[{"text": "x"}], chat_template_kwargs={})]
    events: list[str] = []
    source = written(tmp_path / "rows.jsonl", rows)
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", CHATML), events)
    assert events == ["fields that are not used: 'tools', 'documents'"]


def test_chats_with_tools_use_the_template_that_is_for_them(tmp_path: Path) -> None:
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOLED}]
    rows = [calling(tools=TOOLS, loud=True), chat("?", "!", loud=True)]
    source = written(tmp_path / "rows.jsonl", rows)
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", named))
    assert texts_of(tmp_path / "data") == [CALLED, PLAIN]


def test_each_answer_is_a_sequence_if_history_is_rewritten(tmp_path: Path) -> None:
    refused = chat("a", "b")
    refused["messages"][1]["tool_calls"] = [{"function": {"name": "look_up"}}]
    rows = [
        chat("1", "x/tone", "2", "y/ttwo", "3", "three"),
        refused,
        chat("4", "four", "5", "five"),
        chat("6", "z/tsix", "7", "seven"),
    ]
    source = written(tmp_path / "rows.jsonl", rows)
    tokenizer = tokenizer_with(tmp_path / "t", FORGETFUL)
    told = prepared([source], tmp_path / "data", tokenizer, max_fault_fraction=0.5)
    assert (told.training.documents, told.training.sequences) == (3, 6)
    assert [entry.name for entry in told.left_out] == ["rows.jsonl#2"]
    texts = texts_of(tmp_path / "data")
    assert [text.count("assistant") for text in texts] == [1, 2, 3, 2, 1, 2]
    assert ["/t" in text for text in texts] == [True, True, False, False, True, False]
    ids, mask = ids_of(tmp_path / "data"), ids_of(tmp_path / "data", "mask", "u1")
    learnt = byte_tokenizer().decode(ids[mask == 1].tolist(), skip_special_tokens=False)
    end = "<|im_end|>"
    assert learnt == (f"x/tone{end}y/ttwo{end}three{end}four{end}five{end}z/tsix{end}seven{end}")
    assert told.training.learnt_tokens == int(mask.sum())
    # Which sequences are of one chat, so that a run holds out whole ones.
    manifest = read_manifest(tmp_path / "data")
    numbers = read_chat_numbers(tmp_path / "data", manifest)
    assert numbers is not None and numbers.tolist() == [0, 0, 0, 1, 2, 2]


def test_chats_of_one_sequence_each_need_no_record_of_that(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [chat("4", "four", "5", "five"), chat("6", "7")])
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", CHATML))
    manifest = read_manifest(tmp_path / "data")
    assert (manifest.document_count, manifest.chat_count) == (2, None)
    assert not (tmp_path / "data/chats.bin").exists()
    assert read_chat_numbers(tmp_path / "data", manifest) is None


@pytest.mark.parametrize("policy", ["after", "between"])
def test_every_sequence_gets_its_end_token(tmp_path: Path, policy: str) -> None:
    source = written(tmp_path / "rows.jsonl", [chat("1", "x/tone", "2", "two"), chat("3", "4")])
    tokenizer = tokenizer_with(tmp_path / "t", FORGETFUL)
    for size in (1, 1 << 20):
        output = tmp_path / f"data-{size}"
        prepared([source], output, tokenizer, eos_policy=policy, piece_bytes=size)
        ends = [text.count("</s>") for text in texts_of(output)]
        assert ends == ([1, 1, 1] if policy == "after" else [1, 1, 0])


def test_processes_and_pieces_give_the_same_sequences(tmp_path: Path) -> None:
    rows = [chat(f"{at}", f"x{at}/tone", "2", "<s>" * (at % 2) + "two") for at in range(30)]
    rows[7]["messages"][1]["tool_calls"] = [{"function": {"name": "look_up"}}]
    source = written(tmp_path / "rows.jsonl", rows)
    tokenizer = tokenizer_with(tmp_path / "t", FORGETFUL)
    for name, workers, size in (("one", 1, 1 << 20), ("two", 2, 400)):
        output = tmp_path / name / "data"
        more: dict[str, Any] = {"workers": workers, "piece_bytes": size, "max_fault_fraction": 0.1}
        told = prepared([source], output, tokenizer, validation_fraction=0.2, **more)
        assert told.validation is not None and len(told.left_out) == 1
        assert told.training.documents + told.validation.documents == 29
        assert told.training.sequences + told.validation.sequences == 58
    for path in (tmp_path / "one").rglob("*.*"):
        assert (
            path.is_dir()
            or path.read_bytes()
            == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )


def test_turns_that_nothing_asks_for_are_reported(tmp_path: Path) -> None:
    row = chat("hello", "?", "!")
    for message, role in zip(row["messages"], ("assistant", "user", "assistant"), strict=True):
        message["role"] = role
    source = written(tmp_path / "rows.jsonl", [row, row, chat("?", "!")])
    events: list[str] = []
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", CHATML), events)
    assert events == [
        "2 messages of the assistant, at the beginning of a chat, are context only: nothing asks "
        "for them, so they are not learnt"
    ]


def test_one_turn_that_nothing_asks_for_is_reported_as_one(tmp_path: Path) -> None:
    row = {"messages": [{"role": "assistant", "content": "hello"}, *chat("?", "!")["messages"]]}
    source = written(tmp_path / "rows.jsonl", [row])
    events: list[str] = []
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", CHATML), events)
    assert events == [
        "1 message of the assistant, at the beginning of a chat, is context only: nothing asks "
        "for it, so it is not learnt"
    ]


def test_the_date_is_that_of_the_day_or_the_one_that_is_set(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [chat("?", "!")])
    tokenizer, events = tokenizer_with(tmp_path / "t", DATED), list[str]()
    before = datetime.date.today()
    prepared([source], tmp_path / "today", tokenizer, events)
    told = read_manifest(tmp_path / "today").rendered_date
    assert told in (before.isoformat(), datetime.date.today().isoformat())
    assert texts_of(tmp_path / "today") == [told + PLAIN]
    assert events == [f"the chat template is told the date {told} (--date)"]
    prepared([source], tmp_path / "set", tokenizer, date=datetime.date(2031, 2, 3))
    assert texts_of(tmp_path / "set") == ["2031-02-03" + PLAIN]
    assert read_manifest(tmp_path / "set").rendered_date == "2031-02-03"


def test_a_preparation_that_was_killed_keeps_its_date(tmp_path: Path) -> None:
    """The kill leaves the work folder; here it is one of some days ago."""
    source = written(tmp_path / "rows.jsonl", [chat("?", "!"), chat("?", "yes")])
    tokenizer = tokenizer_with(tmp_path / "t", DATED)
    work = tmp_path / ".data.work"

    class KilledError(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "tokenizing":
            assert (work / "begun").read_text() == datetime.date.today().isoformat()
            (work / "begun").write_text("2030-04-05")
            raise KilledError

    content = Content("messages", is_chat=True)
    settings = PrepareSettings(
        [source], tmp_path / "data", tokenizer=tokenizer, content=content, validation_fraction=0
    )
    with pytest.raises(KilledError):
        prepare(settings, on_progress=kill)
    prepare(settings)
    assert [text[:10] for text in texts_of(tmp_path / "data")] == ["2030-04-05"] * 2
    assert read_manifest(tmp_path / "data").rendered_date == "2030-04-05"
    assert not work.exists()


def test_a_failed_preparation_leaves_no_date_behind(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [{"messages": []}])
    with pytest.raises(InvalidRequest, match="no text in the inputs"):
        prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", DATED))
    assert not (tmp_path / ".data.work").exists()


def test_a_date_that_nothing_asks_for_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [chat("?", "!")])
    date = datetime.date(2031, 2, 3)
    with pytest.raises(InvalidRequest, match="--date has no effect: the tokenizer's chat template"):
        prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", CHATML), date=date)
    with pytest.raises(InvalidRequest, match="--date has no effect without --chat"):
        PrepareSettings([source], tmp_path / "data", train_vocab_size=300, date=date)


def test_equal_chats_stay_on_one_side_whatever_the_order_of_their_keys(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        messages = chat(f"question {number}", "!")["messages"]
        turned = [dict(reversed(list(message.items()))) for message in messages]
        rows += [{"messages": messages}, {"messages": turned}]
    source = written(tmp_path / "rows.jsonl", rows)
    tokenizer = tokenizer_with(tmp_path / "t", CHATML)
    prepared([source], tmp_path / "data", tokenizer, validation_fraction=0.3)
    held_out = texts_of(tmp_path / "data-validation")
    assert held_out and all(held_out.count(text) == 2 for text in held_out)


TURNED = [{"parameters": TOOLS[0]["parameters"], "name": "f"}]


def test_a_new_order_of_keys_is_rendered_after_a_kill(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", [chat("?", "!", tools=TOOLS)])
    settings = PrepareSettings(
        [source],
        tmp_path / "data",
        tokenizer=tokenizer_with(tmp_path / "t", TOOLED),
        content=Content("messages", is_chat=True),
        validation_fraction=0,
        eos_policy="none",
    )

    class KilledError(BaseException):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            raise KilledError

    with pytest.raises(KilledError):
        prepare(settings, on_progress=kill)
    written(source, [chat("?", "!", tools=TURNED)])
    prepare(settings)
    assert texts_of(tmp_path / "data") == [json.dumps(TURNED) + PLAIN]


def test_pieces_that_differ_in_the_order_of_keys_have_their_own_tokens(tmp_path: Path) -> None:
    rows = [chat("?", "!", tools=tools) for tools in (TOOLS, TURNED, TOOLS)]
    tokenizer = tokenizer_with(tmp_path / "t", TOOLED)
    hashes = []
    for output in (tmp_path / "data", tmp_path / "turned"):
        source = written(tmp_path / "rows.jsonl", rows)
        prepared([source], output, tokenizer, piece_bytes=1, workers=1)
        assert texts_of(output) == [json.dumps(row["tools"]) + PLAIN for row in rows]
        hashes.append(read_manifest(output).producer_sha256)
        rows = [rows[1], rows[0], rows[1]]
    assert hashes[0] != hashes[1]


def test_keys_in_another_order_when_it_is_read_again_are_a_change(tmp_path: Path) -> None:
    content = Content("messages", is_chat=True)
    source = written(tmp_path / "rows.jsonl", [chat("?", "!", tools=TOOLS)])
    documents, _ = scan([("rows.jsonl", source)], content=content)
    written(source, [chat("?", "!", tools=TURNED)])
    with pytest.raises(CorruptData, match="changed while it was being read"):
        list(read_again(documents, content))


def test_texts_say_that_they_are_texts(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("some text")
    prepare(
        PrepareSettings(
            [tmp_path / "one.txt"], tmp_path / "data", train_vocab_size=300, validation_fraction=0
        )
    )
    assert read_manifest(tmp_path / "data").content == "text"


@pytest.mark.parametrize("as_text", [False, True])
def test_fields_of_messages_that_the_template_does_not_read_are_named(
    tmp_path: Path, as_text: bool
) -> None:
    row = chat("?", "!", id=1)
    row["messages"][0].update(name="Ann", train=None)
    row["messages"][1].update(weight=1, reasoning_content="hm", thinking="hm")
    if as_text:
        row["messages"] = json.dumps(row["messages"])
    source = written(tmp_path / "rows.jsonl", [row])
    events: list[str] = []
    prepared([source], tmp_path / "data", tokenizer_with(tmp_path / "t", CHATML), events)
    assert events == [
        "fields that are not used: 'id', 'messages.name', 'messages.reasoning_content', "
        "'messages.thinking'"
    ]
    thoughtful = CHATML.replace("message.content", "(message.thinking or '') + message.content", 1)
    prepared([source], tmp_path / "more", tokenizer_with(tmp_path / "u", thoughtful), events)
    assert events[1:] == ["fields that are not used: 'id', 'messages.name'"]
