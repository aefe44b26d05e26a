"""Prompts by index: of a set on disk, and the first tokens of rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lectern_common.errors import (
    CorruptData,
    DataUnavailable,
    Incompatible,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    TokenizerMismatch,
)
from lectern_common.roots import Roots
from lectern_common.spec.load import parse_spec
from lectern_common.tokens.prompt_sets import PromptFacts, prompt_facts
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from student_trainer.data.chats import ChatRows, Chats
from student_trainer.data.prompt_set import open_prompt_set, prompts_of_rows
from student_trainer.data.rows import ChosenRows, StreamRows, SyntheticRows
from student_trainer.data.select import open_data
from student_trainer.data.sources import ShardBatchSource
from student_trainer.data.stream import TokenStream
from tests.support.training.shards import write_shards

PROMPTS = [[5, 6, 7], [8], [9, 3, 1, 2, 4], [8]]


def write_prompts(folder: Path, prompts: list[list[int]] = PROMPTS, **more: Any) -> Path:
    starts = np.cumsum([0, *map(len, prompts[:-1])])
    return write_shards(
        folder, np.concatenate(prompts), documents=starts, content="prompts", **more
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_prompts_are_read_by_index_across_shards(tmp_path: Path, shards: int) -> None:
    prompts = open_prompt_set(write_prompts(tmp_path, shards=shards), 10, None)

    assert [prompts.ids(index).tolist() for index in range(len(prompts))] == PROMPTS
    assert prompts.ids(0).dtype == np.uint32
    assert prompts.longest == 5
    assert prompts.manifest is not None and prompts.manifest.vocab_size == 10
    assert prompt_facts(tmp_path) == PromptFacts(4, 10, 5, prompts.manifest)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            prompts.ids(index)


def test_the_hash_is_of_the_prompts_and_where_each_begins(tmp_path: Path) -> None:
    def sha256(name: str, prompts: list[list[int]], **more: Any) -> str:
        return open_prompt_set(write_prompts(tmp_path / name, prompts, **more), 20, None).sha256

    same = {sha256("a", PROMPTS), sha256("b", PROMPTS, shards=2, producer_version="other")}
    others = {
        sha256("c", [[5, 6], [7, 8], *PROMPTS[2:]]),
        sha256("d", [[5, 6, 8], *PROMPTS[1:]]),
        sha256("e", PROMPTS[:3]),
    }
    assert len(same) == 1 and len(same | others) == 4


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("shard-00000.bin", "corpus_sha256 differs"),
        ("documents.bin", "does not match its manifest"),
    ],
)
def test_changed_bytes_are_refused(tmp_path: Path, name: str, why: str) -> None:
    folder = write_prompts(tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[-4] ^= 1
    (folder / name).write_bytes(data)

    with pytest.raises(CorruptData, match=why):
        open_prompt_set(folder, 10, None)


def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    folder = write_prompts(tmp_path)
    prompts = open_prompt_set(folder, 10, None)
    write_prompts(tmp_path, [[1, 1, 1, 1], *PROMPTS])

    with pytest.raises(DataUnavailable, match=r"shard-00000\.bin changed"):
        prompts.ids(0)


def test_ids_beyond_the_manifests_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptData, match=r"token 4 of .* has id 9, .*every id is below 9"):
        open_prompt_set(write_prompts(tmp_path, vocab_size=9), 10, None)


def test_prompts_with_ids_that_the_student_lacks_are_refused_by_number(tmp_path: Path) -> None:
    folder = write_prompts(tmp_path)
    with pytest.raises(Incompatible, match=r"3 of 4 prompts of .* vocabulary of 8; .* 1, 2, 3\."):
        open_prompt_set(folder, 8, None)
    with pytest.raises(Incompatible, match=r"1 of 4 prompts .* the first are prompts 2\."):
        open_prompt_set(folder, 9, None)


def test_the_tokenizer_of_the_student_must_mean_the_same_by_every_id_used(tmp_path: Path) -> None:
    tokens = {f"t{number}": number for number in range(12)}
    folder = write_prompts(tmp_path / "set", tokenizer_sha256=tokenizer_sha256(tokens))
    Tokenizer(WordLevel(tokens, unk_token="t0")).save(str(folder / "tokenizer.json"))

    def swapped(one: int, other: int) -> dict[str, int]:
        return {**tokens, f"t{one}": other, f"t{other}": one}

    assert len(open_prompt_set(folder, 12, tokens)) == 4
    assert len(open_prompt_set(folder, 12, swapped(10, 11))) == 4  # in no prompt
    with pytest.raises(TokenizerMismatch, match="the data uses 9"):
        open_prompt_set(folder, 12, swapped(9, 10))


def test_sets_and_datasets_are_not_taken_for_each_other(tmp_path: Path) -> None:
    roots = Roots.of_home(tmp_path)
    write_prompts(roots.data / "prompts")
    write_shards(roots.data / "text", np.arange(100) % 10)
    spec = {
        "name": "run",
        "student": {"config": "small"},
        "data": {"path": "prompts", "seq_len": 2},
        "objective": {"alpha": 1},
    }

    with pytest.raises(InvalidRequest, match=r"is a dataset, not a prompt set"):
        open_prompt_set(roots.data / "text", 10, None)
    with pytest.raises(NotFound, match="no prompt set at"):
        open_prompt_set(roots.data / "absent", 10, None)
    with pytest.raises(InvalidRequest, match=r"is a prompt set, .*rollout\.prompts"):
        open_data(parse_spec(spec), roots, 10, None)
    spec["data"] = {"path": "text", "seq_len": 2, "validation_path": "prompts"}
    with pytest.raises(InvalidRequest, match=r"is a prompt set, .*rollout\.prompts"):
        open_data(parse_spec(spec), roots, 10, None)
    with pytest.raises(InvalidRequest, match="is a prompt set"):
        ShardBatchSource.open(roots.data / "prompts")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"documents_sha256": None, "document_count": None}, "content prompts needs documents"),
        ({"mask_sha256": "0" * 64}, "content prompts has no mask_sha256"),
        ({"document_count": 3}, "does not hold rising token positions"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    path = write_prompts(tmp_path) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(CorruptData, match=why):
        open_prompt_set(tmp_path, 10, None)


def test_the_first_tokens_of_rows_are_prompts(tmp_path: Path) -> None:
    stream = TokenStream([np.arange(41, dtype=np.uint32)])
    rows = ChosenRows(StreamRows(stream, 10), np.array([3, 0]))

    prompts = prompts_of_rows(rows, 4)

    assert [prompts.ids(index).tolist() for index in range(len(prompts))] == [
        [30, 31, 32, 33],
        [0, 1, 2, 3],
    ]
    assert (prompts.longest, prompts.manifest) == (4, None)
    assert prompts.sha256 == prompts_of_rows(rows, 4).sha256
    assert prompts.sha256 != prompts_of_rows(rows, 5).sha256
    assert prompts.sha256 != prompts_of_rows(StreamRows(stream, 10), 4).sha256
    assert len(prompts_of_rows(SyntheticRows(0, 6, 50), 6).ids(7)) == 6
    with pytest.raises(IndexError):
        prompts.ids(2)


def test_rows_that_begin_with_a_token_of_their_own_give_it_to_the_prompt() -> None:
    stream = TokenStream([np.arange(20, dtype=np.uint32)])
    prompts = prompts_of_rows(StreamRows(stream, 5, bos_token_id=99), 3)
    assert [prompts.ids(index).tolist() for index in (0, 1)] == [[99, 0, 1], [99, 5, 6]]


@pytest.mark.parametrize("prompt_tokens", [0, -1, 11])
def test_more_tokens_than_a_row_has_are_refused(prompt_tokens: int) -> None:
    rows = StreamRows(TokenStream([np.arange(41, dtype=np.uint32)]), 10)
    with pytest.raises(InvalidSpec, match=r"is not from 1 to data\.seq_len 10") as caught:
        prompts_of_rows(rows, prompt_tokens)
    assert caught.value.field == "rollout.prompt_tokens"


def test_rows_of_several_texts_are_refused_with_what_to_do() -> None:
    stream = TokenStream([np.arange(41, dtype=np.uint32)])
    starts = np.array([0, 7, 20])
    chats = Chats(stream, None, starts, np.array([7, 9, 9]))
    packed = ChosenRows(ChatRows.of(chats, 20, apart=False), np.array([0]))
    with pytest.raises(InvalidSpec, match=r"the data holds chats; .* --prompts --chat"):
        prompts_of_rows(packed, 4)
    with pytest.raises(InvalidSpec, match="attention_across_documents false keeps these apart"):
        prompts_of_rows(StreamRows(stream, 10, document_starts=starts), 4)
