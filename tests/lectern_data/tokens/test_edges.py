"""Where documents begin and end: the tokens that `data prepare` chooses, and where it puts them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lectern_common.errors import InvalidRequest
from lectern_common.tokens.shards import read_document_starts, read_manifest
from lectern_data.prepare import Prepared, prepare
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings
from lectern_data.tokens.tokenizer import load_tokenizer
from tests.support.tokenizer_files import CHATML, write_tokenizer

TEXTS = ["one", "two and <s> or <|endoftext|>", "three 12345"]
BOS_CHAT = "{{ bos_token }}" + CHATML
CONTROL = ("<s>", "<|im_start|>", "<|im_end|>")


def prepared(folder: Path, *, chats: bool = False, **settings: Any) -> Prepared:
    """Prepares TEXTS, or a chat of each, with the tokenizer in folder/tokenizer."""
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        if chats
        else {"text": text}
        for text in ([text[:3] for text in TEXTS] if chats else TEXTS)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = Content("messages", is_chat=True) if chats else Content()
    options: dict[str, Any] = {"validation_fraction": 0, "workers": 1, "content": content}
    return prepare(
        PrepareSettings(
            [folder / "rows.jsonl"],
            folder / "data",
            tokenizer=folder / "tokenizer",
            **{**options, **settings},
        )
    )


def ids_of(dataset: Path, name: str = "shard", dtype: str = "<u4") -> list[int]:
    files = sorted(dataset.glob(f"{name}-*.bin"))
    return [int(one) for file in files for one in np.frombuffer(file.read_bytes(), dtype)]


def documents_of(dataset: Path) -> list[list[int]]:
    starts = read_document_starts(dataset, read_manifest(dataset))
    assert starts is not None
    return [part.tolist() for part in np.split(np.array(ids_of(dataset)), starts[1:])]


def begins_texts(folder: Path, **config: Any) -> Tokenizer:
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    return write_tokenizer(
        folder / "tokenizer", special=CONTROL, begins_with="<s>", config={**named, **config}
    )


@pytest.mark.parametrize("choice", ["auto", "document"])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize("eos_policy", ["after", "between", "none"])
def test_each_document_begins_with_the_token_and_does_not_learn_it(
    tmp_path: Path, choice: str, piece_bytes: int, eos_policy: str
) -> None:
    tokenizer = begins_texts(tmp_path)
    bos = tokenizer.token_to_id("<s>")
    told = prepared(
        tmp_path, bos_policy=choice, piece_bytes=piece_bytes, eos_policy=eos_policy, shard_tokens=9
    )
    tokenizer.encode_special_tokens = True
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    ends: dict[str, list[list[int]]] = {
        "after": [[0], [0], [0]],
        "between": [[0], [0], []],
        "none": [[], [], []],
    }
    expected = [[bos, *ids, *end] for ids, end in zip(plain, ends[eos_policy], strict=True)]
    assert ids_of(tmp_path / "data") == [one for ids in expected for one in ids]
    starts = np.cumsum([0, *map(len, expected)])[:-1].tolist()
    found = read_document_starts(tmp_path / "data", read_manifest(tmp_path / "data"))
    assert found is not None and found.tolist() == starts
    mask = ids_of(tmp_path / "data", "mask", "u1")
    assert mask == [int(one != bos) for one in ids_of(tmp_path / "data")]
    manifest = read_manifest(tmp_path / "data")
    assert (manifest.bos_policy, manifest.bos_token_id) == ("document", bos)
    assert manifest.content == "text"
    assert (told.bos_policy, told.bos_token, told.bos_token_id) == ("document", "<s>", bos)
    assert told.training.learnt_tokens == sum(mask)


@pytest.mark.parametrize(("choice", "token"), [("none", None), ("row", "<s>")])
def test_no_document_has_the_token_if_rows_begin_with_it_or_nothing_does(
    tmp_path: Path, choice: str, token: str | None
) -> None:
    tokenizer = begins_texts(tmp_path)
    told = prepared(tmp_path, bos_policy=choice)
    assert tokenizer.token_to_id("<s>") not in ids_of(tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    assert manifest.mask_sha256 is None
    assert (manifest.bos_policy, told.bos_policy, told.bos_token) == (choice, choice, token)
    expected = None if token is None else tokenizer.token_to_id(token)
    assert manifest.bos_token_id == told.bos_token_id == expected


def test_the_validation_set_begins_alike(tmp_path: Path) -> None:
    begins_texts(tmp_path)
    prepared(tmp_path, validation_fraction=0.3)
    for name in ("data", "data-validation"):
        manifest = read_manifest(tmp_path / name)
        assert (manifest.bos_policy, manifest.content) == ("document", "text")
        assert all(ids[0] == manifest.bos_token_id for ids in documents_of(tmp_path / name))


def test_a_tokenizer_that_puts_nothing_before_a_text_has_no_such_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", config={"eos_token": "<|endoftext|>"})
    assert prepared(tmp_path).bos_policy == "none"
    for choice in ("document", "row"):
        with pytest.raises(InvalidRequest, match="set --bos-policy none") as caught:
            prepared(tmp_path, bos_policy=choice, force=True)
        assert caught.value.field == "bos_policy"


def test_a_named_token_is_enough_if_it_is_asked_for(tmp_path: Path) -> None:
    config = {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
    tokenizer = write_tokenizer(tmp_path / "tokenizer", special=("<s>",), config=config)
    assert prepared(tmp_path).bos_policy == "none"
    assert prepared(tmp_path, bos_policy="document", force=True).bos_policy == "document"
    assert documents_of(tmp_path / "data")[1][0] == tokenizer.token_to_id("<s>")


@pytest.mark.parametrize("choice", ["auto", "none", "document"])
@pytest.mark.parametrize("template", [BOS_CHAT, CHATML], ids=["own", "without"])
def test_a_chat_never_begins_with_the_token_twice(
    tmp_path: Path, choice: str, template: str
) -> None:
    tokenizer = begins_texts(tmp_path, chat_template=template)
    bos = tokenizer.token_to_id("<s>")
    told = prepared(tmp_path, chats=True, bos_policy=choice)
    has_it = template == BOS_CHAT or choice == "document"
    for ids in documents_of(tmp_path / "data"):
        assert [number for number, one in enumerate(ids) if one == bos] == [0] * has_it
    assert told.bos_policy == ("document" if has_it else "none")
    mask, ids = ids_of(tmp_path / "data", "mask", "u1"), ids_of(tmp_path / "data")
    assert {one for one, learnt in zip(ids, mask, strict=True) if learnt}.isdisjoint({bos})
    assert read_manifest(tmp_path / "data").content == "chats"


def test_rows_of_chats_cannot_begin_with_the_token(tmp_path: Path) -> None:
    begins_texts(tmp_path, chat_template=CHATML)
    with pytest.raises(InvalidRequest, match="set --bos-policy auto"):
        prepared(tmp_path, chats=True, bos_policy="row")


INSTRUCT = ("<|im_start|>", "<|im_end|>", "<|eot_id|>")
USER_END = "{% for m in messages %}{{ m.role }}:{{ m.content }}<stop>{% endfor %}"
ANSWER_END = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% if m.role == 'assistant' %}<stop>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("special", "config", "text", "is_certain"),
    [
        (INSTRUCT, {"eos_token": "<|im_end|>"}, "<|endoftext|>", True),
        (INSTRUCT, {"eos_token": {"content": "<|eot_id|>"}}, "<|endoftext|>", True),
        ((), {"eos_token": "<|endoftext|>"}, "<|endoftext|>", True),
        (("</s>",), {"eos_token": "</s>"}, "</s>", True),
        (("<stop>",), {"eos_token": "<stop>"}, "<stop>", True),
        (("<stop>",), {"eos_token": "<stop>", "chat_template": ANSWER_END}, "<stop>", True),
        (("<stop>",), {"eos_token": "<stop>", "chat_template": USER_END}, "<|endoftext|>", True),
        ((*INSTRUCT, "</s>"), {"eos_token": "<|im_end|>"}, "<|im_end|>", False),
    ],
)
def test_text_ends_in_the_token_that_ended_documents(
    tmp_path: Path, special: tuple[str, ...], config: dict[str, Any], text: str, is_certain: bool
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", special=special, config=config)
    end = load_tokenizer(tmp_path / "tokenizer").end
    assert end is not None
    assert (end.text, end.token_id) == (text, tokenizer.token_to_id(text))
    assert end.is_certain is is_certain
    assert is_certain or "set --eos-token" in end.why
    told = prepared(tmp_path)
    assert (told.eos_token, told.eos_token_id, told.eos_from) == (text, end.token_id, end.why)
    assert [ids[-1] for ids in documents_of(tmp_path / "data")] == [end.token_id] * 3


def test_a_given_token_ends_text_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    config = {"eos_token": "<|im_end|>"}
    write_tokenizer(tmp_path / "tokenizer", special=INSTRUCT, config=config)
    told = prepared(tmp_path, eos_token="<|im_end|>")
    assert (told.eos_token, told.eos_from) == ("<|im_end|>", "--eos-token")


def test_a_chat_ends_in_the_turn_end_of_its_tokenizer(tmp_path: Path) -> None:
    config = {"eos_token": "<|im_end|>", "chat_template": CHATML}
    write_tokenizer(tmp_path / "tokenizer", special=INSTRUCT, config=config)
    told = prepared(tmp_path, chats=True)
    assert told.eos_token == "<|im_end|>"
    assert 0 not in ids_of(tmp_path / "data")


def test_an_uncertain_end_is_said_while_the_data_is_prepared(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    write_tokenizer(tokenizer, special=(*INSTRUCT, "</s>"), config={"eos_token": "<|im_end|>"})
    (tmp_path / "a.txt").write_text("text")
    said: list[str] = []
    settings = PrepareSettings(
        [tmp_path / "a.txt"], tmp_path / "data", tokenizer=tokenizer, validation_fraction=0
    )
    prepare(settings, on_event=said.append)
    assert any("documents end in <|im_end|>" in one and "--eos-token" in one for one in said)


def test_all_files_of_the_tokenizer_are_beside_the_shards(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    files = {"special_tokens_map.json": {"eos_token": "<|endoftext|>"}, "vocab.json": {"a": 0}}
    write_tokenizer(tokenizer, files=files)
    (tokenizer / "chat_template.jinja").write_text(CHATML)
    (tokenizer / "additional_chat_templates").mkdir()
    (tokenizer / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (tokenizer / "tokenizer.model").write_bytes(b"\x00model")
    prepared(tmp_path)
    for path in tokenizer.rglob("*.*"):
        assert (tmp_path / "data" / path.relative_to(tokenizer)).read_bytes() == path.read_bytes()


def test_names_that_only_the_map_has_reach_template_and_end(tmp_path: Path) -> None:
    files = {"special_tokens_map.json": {"eos_token": "</s>", "bos_token": {"content": "<s>"}}}
    write_tokenizer(tmp_path, special=("<s>", "</s>"), files=files)
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}
    assert loaded.eos_token_id == loaded.tokenizer.token_to_id("</s>")


def test_tokens_that_only_stand_beside_are_in_the_written_tokenizer(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    plain = write_tokenizer(tokenizer)
    new = {"<|over|>": plain.get_vocab_size()}
    write_tokenizer(
        tokenizer,
        files={"added_tokens.json": new, "special_tokens_map.json": {"eos_token": "<|over|>"}},
    )
    told = prepared(tmp_path)
    assert told.eos_token_id == new["<|over|>"]
    written = Tokenizer.from_file(str(tmp_path / "data" / "tokenizer.json"))
    assert written.token_to_id("<|over|>") == new["<|over|>"]
    assert told.vocab_size == new["<|over|>"] + 1
