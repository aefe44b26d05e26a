"""A warning if the data does not begin a text as the teacher's tokenizer does."""

from pathlib import Path
from typing import Any

import pytest

from lectern_common.checks.beginnings import beginnings_check, beginnings_differ
from lectern_common.checks.check import Outcome
from lectern_common.tokens.shards import ShardManifest, read_manifest
from protos import teacher_pb2
from tests.support.tokenizer_files import write_tokenizer
from tests.support.training.shards import write_shards


def manifest_of(folder: Path, **changes: Any) -> ShardManifest:
    write_shards(folder, [1, 2, 3])
    return read_manifest(folder).model_copy(update=changes)


def teacher(*token_ids: int, is_known: bool = True) -> teacher_pb2.Model:
    beginning = teacher_pb2.TextBeginning(token_ids=token_ids) if is_known else None
    return teacher_pb2.Model(model_id="big", text_beginning=beginning)


AT_DOCUMENTS = {"bos_policy": "document", "bos_token_id": 5}
AT_ROWS = {"bos_policy": "row", "bos_token_id": 5}


@pytest.mark.parametrize(
    ("usual", "changes", "says", "advises"),
    [
        (
            (5,),
            {},
            r"big puts id 5 before each text, but a document in the data begins",
            "document",
        ),
        ((5,), {"content": "chats"}, "but a chat in the data begins with nothing", "document"),
        ((5,), {**AT_DOCUMENTS, "bos_token_id": 7}, "begins with id 7", "document, or row"),
        ((), AT_DOCUMENTS, "document in the data begins with id 5, but", "--bos-policy none"),
        ((), AT_ROWS, "row of the data begins with id 5, but", "--bos-policy none"),
        ((5, 6), AT_DOCUMENTS, "puts id 5 and id 6 before", "document"),
    ],
)
def test_a_difference_is_said_with_what_to_do(
    tmp_path: Path, usual: tuple[int, ...], changes: dict[str, Any], says: str, advises: str
) -> None:
    manifest = manifest_of(tmp_path, **changes)
    (check,) = beginnings_check(teacher(*usual), manifest, tmp_path)
    assert (check.subject, check.outcome, check.error) == ("beginnings", Outcome.WARN, None)
    assert says in check.message
    assert advises in check.advice


@pytest.mark.parametrize(
    ("usual", "changes"),
    [((), {}), ((5,), AT_DOCUMENTS), ((5,), AT_ROWS), ((), {"content": "chats"})],
)
def test_data_that_begins_as_the_teacher_does_is_not_mentioned(
    tmp_path: Path, usual: tuple[int, ...], changes: dict[str, Any]
) -> None:
    assert beginnings_differ(teacher(*usual), manifest_of(tmp_path, **changes), tmp_path) is None


@pytest.mark.parametrize("is_known", [True, False], ids=["said", "by the tokenizer"])
def test_what_chats_of_an_earlier_release_begin_with_is_not_known(
    tmp_path: Path, is_known: bool
) -> None:
    """A mask and no content: their template may have written the token, and nobody counted it."""
    config = {"bos_token": "<s>"}
    write_tokenizer(tmp_path, special=("<s>",), begins_with="<s>", config=config)
    write_shards(tmp_path, [1, 2, 3], documents=[0], mask=[0, 1, 1])
    manifest = read_manifest(tmp_path)
    assert manifest.is_chats and manifest.content is None
    usual = teacher(5) if is_known else teacher(is_known=False)
    assert beginnings_differ(usual, manifest, tmp_path) is None
    differ = beginnings_differ(usual, manifest.model_copy(update={"content": "text"}), tmp_path)
    assert differ is not None and "a document in the data begins with nothing" in differ[0]


def test_a_template_may_begin_chats_with_what_the_tokenizer_does_not(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, **AT_DOCUMENTS, content="chats")
    assert beginnings_differ(teacher(), manifest, tmp_path) is None


def test_the_tokenizer_of_the_data_speaks_for_a_server_that_does_not_say(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    assert beginnings_differ(teacher(is_known=False), manifest, tmp_path) is None
    config = {"bos_token": "<s>"}
    tokenizer = write_tokenizer(tmp_path, special=("<s>",), begins_with="<s>", config=config)
    differ = beginnings_differ(teacher(is_known=False), manifest, tmp_path)
    assert differ is not None
    assert f'big puts "<s>" (id {tokenizer.token_to_id("<s>")}) before each text' in differ[0]


def test_a_broken_tokenizer_is_left_to_the_check_of_the_tokenizer(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert list(beginnings_check(teacher(5), manifest, tmp_path)) == []
