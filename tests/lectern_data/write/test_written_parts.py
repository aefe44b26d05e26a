"""Document starts and masks beside the shards, and end-of-text tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lectern_common.errors import InvalidRequest
from lectern_common.tokens.shards import read_document_starts, read_manifest
from lectern_data.prepare import prepare
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings
from student_trainer.data.dataset import open_dataset
from tests.support.chat_files import CHATML, byte_tokenizer, chats_with_tokenizer

TEXTS = ["one", "two words", "3", "four", "five of them"]


def ids_of(dataset: Path, kind: str = "shard", dtype: str = "<u4") -> np.ndarray:
    files = sorted(dataset.glob(f"{kind}-*.bin"))
    return np.concatenate([np.frombuffer(file.read_bytes(), dtype) for file in files])


def documents_of(dataset: Path) -> list[str]:
    """The ids between the boundaries, decoded only with the tokenizers library."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    starts = np.frombuffer((dataset / "documents.bin").read_bytes(), "<u8").astype(int)
    parts = np.split(ids_of(dataset), starts[1:])
    return [tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in parts]


def write_texts(folder: Path) -> Path:
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("piece_bytes", [1, 12, 1 << 20])
@pytest.mark.parametrize(
    ("policy", "ends"),
    [
        ("none", [""] * 5),
        ("after", ["<|endoftext|>"] * 5),
        ("between", ["<|endoftext|>"] * 4 + [""]),
    ],
)
def test_boundaries_are_the_document_starts_for_any_policy_and_pieces(
    tmp_path: Path, policy: Any, ends: list[str], piece_bytes: int
) -> None:
    source = write_texts(tmp_path / "texts")
    prepare(
        PrepareSettings(
            [source],
            tmp_path / "data",
            train_vocab_size=300,
            eos_policy=policy,
            validation_fraction=0,
            shard_tokens=7,
            piece_bytes=piece_bytes,
        )
    )
    expected = [text + end for text, end in zip(TEXTS, ends, strict=True)]
    assert documents_of(tmp_path / "data") == expected
    manifest = read_manifest(tmp_path / "data")
    starts = read_document_starts(tmp_path / "data", manifest)
    assert starts is not None and len(starts) == manifest.document_count == 5
    assert manifest.mask_sha256 is None


def prepared_chats(source: Path, tokenizer: Path, output: Path, **settings: Any) -> Any:
    return prepare(
        PrepareSettings(
            [source],
            output,
            tokenizer=tokenizer,
            content=Content("messages", is_chat=True),
            **{"validation_fraction": 0, "max_fault_fraction": 0.1, **settings},
        )
    )


def test_the_mask_beside_the_shards_covers_what_the_assistant_wrote(tmp_path: Path) -> None:
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    told = prepared_chats(source, tokenizer, tmp_path / "data", shard_tokens=100)

    ids, mask = ids_of(tmp_path / "data"), ids_of(tmp_path / "data", "mask", "u1")
    spoken = byte_tokenizer().decode(ids[mask == 1].tolist(), skip_special_tokens=False)
    numbers = [number for number in range(12) if number != 5]
    assert spoken == "".join(f"Answer {number}.<|im_end|>" for number in numbers)
    assert len(ids) == len(mask) and set(mask.tolist()) == {0, 1}
    assert told.training.learnt_tokens == int(mask.sum())
    sizes = [path.stat().st_size for path in sorted((tmp_path / "data").glob("mask-*.bin"))]
    assert sizes[:-1] == [100] * (len(sizes) - 1)
    assert [(entry.name, entry.reason) for entry in told.left_out] == [
        ("chats.jsonl#6", "the chat template does not write the call of 'look_up' in message 2")
    ]
    assert len(documents_of(tmp_path / "data")) == told.training.documents == 11
    assert documents_of(tmp_path / "data")[5].startswith("<|im_start|>user\nQuestion 6.<|im_end|>")


ENDS_WITH_EOS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize(
    ("template", "chat"),
    [
        (ENDS_WITH_EOS + PROMPT, "user: Question 0.</s>assistant: Answer 0.</s>"),
        (
            ENDS_WITH_EOS.replace("{% endfor", "\n{% endfor") + PROMPT,
            "user: Question 0.</s>\nassistant: Answer 0.</s>\n",
        ),
    ],
    ids=["at once", "before white space"],
)
@pytest.mark.parametrize("policy", ["after", "between", "none"])
def test_a_chat_that_its_template_ends_gets_one_end_token(
    tmp_path: Path, template: str, chat: str, policy: str, piece_bytes: int
) -> None:
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats", template)
    settings = {"eos_policy": policy, "piece_bytes": piece_bytes}
    prepared_chats(source, tokenizer, tmp_path / "data", **settings)
    numbers = [number for number in range(12) if number != 5]
    expected = [chat.replace("0", str(number)) for number in numbers]
    assert documents_of(tmp_path / "data") == expected


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_only_chats_without_an_end_token_get_one(tmp_path: Path, piece_bytes: int) -> None:
    """The template leaves out the end of every chat with an even number."""
    open_end = ENDS_WITH_EOS.replace(
        "{{ eos_token }}", "{% if m.content[-2] in '13579' %}{{ eos_token }}{% endif %}"
    )
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats", open_end + PROMPT)
    settings: dict[str, Any] = {"piece_bytes": piece_bytes}
    prepared_chats(source, tokenizer, tmp_path / "after", **settings, eos_policy="after")
    prepared_chats(source, tokenizer, tmp_path / "between", **settings, eos_policy="between")
    after = documents_of(tmp_path / "after")
    assert [text.count("</s>") for text in after] == [1, 2, 1, 2, 1, 1, 2, 1, 2, 1, 2]
    assert all(text.endswith(".</s>") for text in after)
    assert documents_of(tmp_path / "between") == after


def test_a_run_counts_the_labels_that_the_assistant_wrote(tmp_path: Path) -> None:
    """Label i counts if token i + 1 is the assistant's."""
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    prepared_chats(source, tokenizer, tmp_path / "data")
    mask = ids_of(tmp_path / "data", "mask", "u1")
    rows = open_dataset(tmp_path / "data", 50, 1000, 0.0).rows
    for index, row in enumerate(rows.indices):
        counted = rows.counted(index)
        assert counted is not None
        assert counted.tolist() == (mask[row * 50 + 1 : row * 50 + 51] == 1).tolist()


def test_any_number_of_processes_gives_the_same_chats(tmp_path: Path) -> None:
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    for workers in (1, 2):
        output = tmp_path / f"{workers}/data"
        settings = {"workers": workers, "piece_bytes": 300, "validation_fraction": 0.2}
        prepared_chats(source, tokenizer, output, **settings)
    for path in (tmp_path / "1").rglob("*.*"):
        other = tmp_path / "2" / path.relative_to(tmp_path / "1")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_chats_that_cannot_be_masked_count_towards_the_cap(tmp_path: Path) -> None:
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats")
    with pytest.raises(InvalidRequest, match=r"1 of 12 documents .*chats\.jsonl#6: the chat"):
        prepared_chats(source, tokenizer, tmp_path / "data", max_fault_fraction=0.01)
    assert not (tmp_path / "data").exists()


def test_chats_need_a_given_tokenizer_with_a_template(tmp_path: Path) -> None:
    source, tokenizer = chats_with_tokenizer(tmp_path / "chats", template=None)
    with pytest.raises(InvalidRequest, match=r"put chat_template\.jinja beside"):
        prepared_chats(source, tokenizer, tmp_path / "data")
    (tokenizer / "chat_template.jinja").write_text(CHATML)
    prepared_chats(source, tokenizer, tmp_path / "data")
    assert (tmp_path / "data/chat_template.jinja").read_text() == CHATML
    with pytest.raises(InvalidRequest, match="set --tokenizer instead of --train-tokenizer"):
        prepare(
            PrepareSettings(
                [source],
                tmp_path / "other",
                train_vocab_size=300,
                content=Content("messages", is_chat=True),
            )
        )
