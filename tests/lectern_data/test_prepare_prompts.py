"""From rows to a prompt set: the ids that a model would be given, and what cannot be a prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer

from lectern_common.errors import InvalidRequest, NotFound
from lectern_common.tokens.prompt_sets import (
    is_prompt_set,
    prompt_facts,
    prompt_starts,
    read_prompt_manifest,
)
from lectern_common.tokens.shards import read_any_manifest, read_manifest, require_intact
from lectern_data.prepare import Prepared, prepare
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings
from tests.support.chat_files import CHATML, byte_tokenizer

# Thoughts are shown only in the last turn, and the prompt opens them itself.
THINKING = CHATML.replace(
    "message.content +", "(message.content if loop.last else message.content.split('/t')[-1]) +"
).replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
# The system prompt is written only if no answer follows.
SHY = CHATML.replace(
    "messages %}",
    "messages if message.role != 'system' or messages | length < 3 %}",
)
TOOLED = "{{ tools | tojson if tools }}" + CHATML.replace(
    "message.content +",
    "(message.content or (message.tool_calls | tojson)) +",
)
TOOLS = [{"name": "f", "parameters": {"z": {"type": "string"}}}]


def said(*turns: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, Any]]:
    return [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]


def tokenizer_with(folder: Path, template: str | None = CHATML, begins: bool = False) -> Path:
    folder.mkdir(parents=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "add_bos_token": begins,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def prepared(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    tokenizer: Path,
    content: Content,
    events: list[str] | None = None,
    **more: Any,
) -> Prepared:
    source = folder / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    settings = {"validation_fraction": 0, "eos_policy": "none", **more}
    told: list[str] = [] if events is None else events
    wanted = PrepareSettings(
        [source], folder / "set", tokenizer=tokenizer, content=content, **settings
    )
    return prepare(wanted, on_event=told.append)


def prompts_of(folder: Path) -> list[list[int]]:
    manifest = read_prompt_manifest(folder)
    require_intact(folder)
    files = sorted(folder.glob("shard-*.bin"))
    ids = np.concatenate([np.frombuffer(file.read_bytes(), "<u4") for file in files])
    return [part.tolist() for part in np.split(ids, prompt_starts(folder, manifest)[1:])]


def id_of(token: str) -> int:
    found = byte_tokenizer().token_to_id(token)
    assert found is not None
    return found


CHATS = Content("messages", is_chat=True, is_prompt=True)
TEXTS = Content("prompt", is_prompt=True)


@pytest.mark.parametrize("template", [CHATML, THINKING, SHY])
def test_a_chat_ends_where_its_last_answer_begins_with_the_ids_of_transformers(
    tmp_path: Path, template: str
) -> None:
    system = [{"role": "system", "content": "Be brief and be exact."}]
    rows = [
        said("What is one?", "It is 1."),
        said("What is two?", "<think>hm/tIt is 2.", "And three?", "<think>so/tIt is 3."),
        said("What is four?", "It is 4.", "And five, then?"),  # not answered yet: asked as it is
        said("Only a question."),
        [*system, *said("What is six?", "It is 6.")],
        [*system, *said("What is six?", "It is 6.", "And seven?", "It is 7.")],
    ]
    tokenizer = tokenizer_with(tmp_path / "t", template)
    theirs = AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
    expected = [
        theirs.apply_chat_template(
            messages[:-1] if messages[-1]["role"] == "assistant" else messages,
            add_generation_prompt=True,
            return_dict=False,
        )
        for messages in rows
    ]

    lost = 1 if template == SHY else 0  # of the last, the system prompt is written nowhere
    made = prepared(
        tmp_path,
        [{"messages": messages} for messages in rows],
        tokenizer=tokenizer,
        content=CHATS,
        max_fault_fraction=0.5,
    )

    found = prompts_of(tmp_path / "set")
    assert found == expected[: len(expected) - lost]
    assert len(made.left_out) == lost
    assert made.longest_prompt == max(map(len, found))
    assert made.training.documents == len(found)
    assert made.training.tokens == sum(map(len, found))
    facts = prompt_facts(tmp_path / "set")
    assert (facts.count, facts.longest) == (len(found), made.longest_prompt)
    assert made.training.learnt_tokens == 0 and made.validation is None
    assert not (tmp_path / "set-validation").exists()


def test_tools_and_calls_of_earlier_turns_are_part_of_a_prompt(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"z": "y"}}}
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "It is the answer."},
        {"role": "assistant", "content": "As it says."},
    ]
    row = {"messages": messages, "tools": TOOLS}

    prepared(tmp_path, [row], tokenizer=tokenizer_with(tmp_path / "t", TOOLED), content=CHATS)

    [ids] = prompts_of(tmp_path / "set")
    text = byte_tokenizer().decode(ids, skip_special_tokens=False)
    assert text == (
        json.dumps(TOOLS) + "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
        f"{json.dumps([call])}<|im_end|>\n<|im_start|>tool\nIt is the answer.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_what_is_not_learnt_of_a_chat_is_no_concern_of_a_prompt(tmp_path: Path) -> None:
    weighted = said("What is one?", "It is 1.", "Two?", "It is 2.")
    weighted[1]["weight"] = weighted[3]["weight"] = 0
    unsaid = [*said("What is one?"), {"role": "assistant", "content": None}]
    rows = [{"messages": weighted}, {"messages": unsaid}]

    prepared(tmp_path, rows, tokenizer=tokenizer_with(tmp_path / "t"), content=CHATS)

    decoded = [
        byte_tokenizer().decode(ids, skip_special_tokens=False)
        for ids in prompts_of(tmp_path / "set")
    ]
    assert decoded[0].endswith("Two?<|im_end|>\n<|im_start|>assistant\n")
    assert decoded[1] == "<|im_start|>user\nWhat is one?<|im_end|>\n<|im_start|>assistant\n"


def test_all_messages_of_the_assistant_at_the_end_are_the_answer(
    tmp_path: Path,
) -> None:
    messages = said("What is one?", "It is 1.")
    messages.append({"role": "assistant", "content": "Or perhaps not."})

    prepared(
        tmp_path, [{"messages": messages}], tokenizer=tokenizer_with(tmp_path / "t"), content=CHATS
    )

    [ids] = prompts_of(tmp_path / "set")
    assert byte_tokenizer().decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nWhat is one?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_control_tokens_that_a_chat_spells_are_characters(tmp_path: Path) -> None:
    rows = [{"messages": said("Say <|im_end|> to me.", "No.")}]

    prepared(tmp_path, rows, tokenizer=tokenizer_with(tmp_path / "t"), content=CHATS)

    [ids] = prompts_of(tmp_path / "set")
    end = id_of("<|im_end|>")
    assert ids.count(end) == 1
    assert byte_tokenizer().decode(ids, skip_special_tokens=False).count("<|im_end|>") == 2


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "assistant", "content": "Hello."}], "only before anything is asked"),
        ([{"role": "assistant", "content": "Hello."}] * 2, "only before anything is asked"),
        ([{"role": "user", "content": None}], "has no text under 'content'"),
        ("not a chat", "has no messages under 'messages'"),
    ],
)
def test_a_chat_that_asks_for_nothing_is_left_out_with_the_reason(
    tmp_path: Path, messages: Any, why: str
) -> None:
    rows = [{"messages": messages}, {"messages": said("What is one?", "It is 1.")}]

    made = prepared(
        tmp_path,
        rows,
        tokenizer=tokenizer_with(tmp_path / "t"),
        content=CHATS,
        max_fault_fraction=0.5,
    )

    [left_out] = made.left_out
    assert left_out.name == "rows.jsonl#1" and why in left_out.reason and left_out.is_fault
    assert made.training.documents == 1


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_is_a_prompt_that_begins_as_a_document_does_and_has_no_end(
    tmp_path: Path, begins: bool
) -> None:
    texts = ["def f(", "x", " two  spaces\n", "\u00e9t\u00e9 \U0001f600"]
    rows = [{"prompt": text, "id": 7} for text in texts] + [{"prompt": ""}, {"prompt": None}]

    made = prepared(
        tmp_path,
        rows,
        tokenizer=tokenizer_with(tmp_path / "t", None, begins),
        content=TEXTS,
        shard_tokens=5,
    )

    before = [id_of("<s>")] if begins else []
    found = prompts_of(tmp_path / "set")
    assert found == [before + byte_tokenizer().encode(text).ids for text in texts]
    manifest = read_prompt_manifest(tmp_path / "set")
    assert manifest.bos_policy == ("document" if begins else "none")
    assert manifest.eos_policy == "none" and manifest.mask_sha256 is None
    assert manifest.shard_count == -(-manifest.total_tokens // 5)
    assert [entry.is_fault for entry in made.left_out] == [False, False]
    assert {path.name for path in (tmp_path / "set").iterdir()} >= {
        *("manifest.json", "documents.bin", "tokenizer.json", "tokenizer_config.json")
    }


def test_a_text_that_spells_a_control_token_is_told_of(tmp_path: Path) -> None:
    events: list[str] = []
    rows = [{"prompt": "<|im_start|>user\nHi"}, {"prompt": "a <b"}, {"prompt": "no </s>"}]

    tokenizer = tokenizer_with(tmp_path / "t")
    prepared(tmp_path, rows, tokenizer=tokenizer, content=TEXTS, events=events)

    specials = {id_of(text) for text in ("<|im_start|>", "</s>")}
    assert not specials & {one for ids in prompts_of(tmp_path / "set") for one in ids}
    [event] = events
    assert event.startswith("2 prompts have the spelling of a control token")


def test_a_text_without_tokens_is_left_out_with_the_reason(tmp_path: Path) -> None:
    tokenizer = tmp_path / "t"
    tokenizer.mkdir()
    words = Tokenizer(WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens([AddedToken("</s>", special=True)])
    words.save(str(tokenizer / "tokenizer.json"))
    rows = [{"prompt": "one two"}, {"prompt": " \n "}, {"prompt": "two"}]

    made = prepared(tmp_path, rows, tokenizer=tokenizer, content=TEXTS, max_fault_fraction=0.5)

    assert prompts_of(tmp_path / "set") == [[0, 1], [1]]
    [left_out] = made.left_out
    assert (left_out.name, left_out.reason) == ("rows.jsonl#2", "makes no tokens")
    assert made.training.documents == 2
    with pytest.raises(InvalidRequest, match=r"1 of 3 documents cannot be used.*makes no tokens"):
        prepared(tmp_path, rows, tokenizer=tokenizer, content=TEXTS, force=True)


def test_a_list_where_a_text_is_wanted_names_the_options_for_chats(tmp_path: Path) -> None:
    rows = [{"prompt": said("What is one?")}]
    tokenizer = tokenizer_with(tmp_path / "t")

    with pytest.raises(InvalidRequest, match="a list; add --chat --messages-field prompt"):
        prepared(tmp_path, rows, tokenizer=tokenizer, content=TEXTS)

    content = Content("prompt", is_chat=True, is_prompt=True)
    prepared(tmp_path, rows, tokenizer=tokenizer, content=content)
    assert len(prompts_of(tmp_path / "set")) == 1


def test_processes_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    rows = [{"messages": said(f"What is {n}?", "It is." * n, "Why?", "So.")} for n in range(40)]
    tokenizer = tokenizer_with(tmp_path / "t")
    found = []
    for workers in (1, 2):
        prepared(
            tmp_path,
            rows,
            tokenizer=tokenizer,
            content=CHATS,
            workers=workers,
            piece_bytes=500,
            force=True,
        )
        files = sorted((tmp_path / "set").iterdir())
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("eos_policy", "after"),
        ("eos_policy", "between"),
        ("eos_token", "</s>"),
        ("bos_policy", "row"),
        ("validation_fraction", 0.1),
        ("seq_length_hint", 8),
        ("train_vocab_size", 300),
    ],
)
def test_settings_that_do_nothing_for_prompts_are_refused(
    tmp_path: Path, option: str, value: Any
) -> None:
    name = "train-tokenizer" if option == "train_vocab_size" else option.replace("_", "-")
    with pytest.raises(InvalidRequest, match=f"--{name}.* does not fit --prompts: "):
        PrepareSettings(
            [tmp_path],
            tmp_path / "set",
            **{
                "tokenizer": None if option == "train_vocab_size" else tmp_path,
                "content": TEXTS,
                "validation_fraction": 0,
                "eos_policy": "none",
                option: value,
            },
        )


def test_a_prompt_set_and_a_dataset_are_told_apart(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path / "t")
    prepared(tmp_path, [{"prompt": "a b"}], tokenizer=tokenizer, content=TEXTS)
    prompts = tmp_path / "set"
    data = prompts.rename(tmp_path / "prompts").parent / "set"
    prepared(tmp_path, [{"text": "a b"}], tokenizer=tokenizer, content=Content())

    assert is_prompt_set(tmp_path / "prompts") and not is_prompt_set(data)
    assert not is_prompt_set(tmp_path / "absent")
    assert read_any_manifest(tmp_path / "prompts").content == "prompts"
    with pytest.raises(InvalidRequest, match=r"is a prompt set.*name it in rollout\.prompts"):
        read_manifest(tmp_path / "prompts")
    with pytest.raises(InvalidRequest, match=r"is a dataset, not a prompt set; .*--prompts"):
        read_prompt_manifest(data)
    with pytest.raises(NotFound, match=r"no prompt set at .*--prompts"):
        read_prompt_manifest(tmp_path / "absent")
    with pytest.raises(InvalidRequest, match="is already a prepared prompt set"):
        prepare(PrepareSettings([tmp_path / "prompts"], tmp_path / "other", tokenizer=tokenizer))
