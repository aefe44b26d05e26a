"""The tokenizer of an export gives the ids of training, or the export says which loader does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lectern_data.prepare import prepare
from lectern_data.read.rows import Content
from lectern_data.settings import PrepareSettings
from lectern_models.loading import build_causal_lm
from student_trainer.student.export import export_student
from tests.support.tokenizer_files import CHATML, write_tokenizer

TEXTS = (
    " 1234 and 0x1F, 3.14",
    "x  =  12\n\n\t\tif  a:\r\n    return  a   \n",
    "caf\xe9 \u65e5\u672c\u8a9e \U0001f642",
    "e\u0301 \ufb01",
)
SHAPE = {
    **{"vocab_size": 700, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "intermediate_size": 16, "head_dim": 8},
}


def dataset(folder: Path, **settings: Any) -> Path:
    """Prepares the text of this package's tests; chats if the settings say so."""
    defaults: dict[str, Any] = {"validation_fraction": 0, "workers": 1}
    source = [Path(__file__).with_name(name) for name in ("test_ends.py", "test_export.py")]
    if settings.get("content", Content()).is_chat:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b 12"}]
        source = [folder.parent / "chats.jsonl"]
        source[0].write_text("\n".join([json.dumps({"messages": chat})] * 3))
    prepare(PrepareSettings(source, folder, **{**defaults, **settings}))
    return folder


def exported(
    path: Path, data: Path | None, model_type: str = "llama", student: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Exports a student made from a config; returns the folder and its metadata."""
    folder = student or path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **SHAPE}))
    manifest = {} if data is None else json.loads((data / "manifest.json").read_text())
    target = path / "export"
    export_student(
        build_causal_lm(folder, 0),
        target,
        student_folder=folder,
        dataset=data,
        eos_token_id=manifest.get("eos_token_id"),
        metadata={},
    )
    return target, json.loads((target / "distillation_metadata.json").read_text())


def require_same_ids(loaded: Any, reference: Tokenizer) -> None:
    for text in TEXTS:
        assert loaded(text)["input_ids"] == reference.encode(text).ids


def of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "mistral", "gpt2"])
def test_auto_tokenizer_gives_the_ids_of_a_trained_tokenizer(
    tmp_path: Path, model_type: str
) -> None:
    data = dataset(tmp_path / "data", train_vocab_size=600)
    folder, metadata = exported(tmp_path, data, model_type)
    require_same_ids(AutoTokenizer.from_pretrained(folder), of(data))
    assert metadata["tokenizer_loader"] == "AutoTokenizer.from_pretrained"
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("trains", [True, False], ids=["composed only", "another split"])
def test_an_export_that_auto_tokenizer_rebuilds_names_the_loader(
    tmp_path: Path, trains: bool
) -> None:
    """For `qwen2` transformers reads neither normalizer nor pre-tokenizer from tokenizer.json."""
    given = tmp_path / "given"
    write_tokenizer(given, config={"eos_token": "<|endoftext|>"})
    source = {"train_vocab_size": 600} if trains else {"tokenizer": given}
    data = dataset(tmp_path / "data", **source)
    folder, metadata = exported(tmp_path, data, "qwen2")
    assert metadata["tokenizer_loader"] == "PreTrainedTokenizerFast.from_pretrained"
    readme = (folder / "README.md").read_text()
    assert 'tokenizer = PreTrainedTokenizerFast.from_pretrained("FOLDER")' in readme
    loaded: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    require_same_ids(loaded, of(data))
    assert loaded.eos_token == "<|endoftext|>"
    auto = AutoTokenizer.from_pretrained(folder)
    same = [auto(text)["input_ids"] == of(data).encode(text).ids for text in TEXTS[:3]]
    assert all(same) is trains  # the last text is not composed


def test_a_class_that_rebuilds_the_tokenizer_is_exchanged(tmp_path: Path) -> None:
    given = tmp_path / "given"
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "extra": 1}
    write_tokenizer(given, config=config)
    folder, metadata = exported(tmp_path, dataset(tmp_path / "data", tokenizer=given))
    require_same_ids(AutoTokenizer.from_pretrained(folder), of(given))
    assert metadata["tokenizer_loader"] == "AutoTokenizer.from_pretrained"
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written == {**config, "tokenizer_class": "PreTrainedTokenizerFast"}


def test_a_tokenizer_json_alone_names_its_end_and_adds_nothing(tmp_path: Path) -> None:
    given = tmp_path / "given"
    write_tokenizer(given, special=("<stop>",))
    data = dataset(tmp_path / "data", tokenizer=given, eos_token="<stop>")
    assert not (data / "tokenizer_config.json").exists()
    for model_type in ("llama", "gpt2", "gemma2"):
        folder, _ = exported(tmp_path, data, model_type)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert (loaded.eos_token, loaded.bos_token, loaded.unk_token) == ("<stop>", None, None)
        assert loaded.get_vocab() == of(given).get_vocab()


@pytest.mark.parametrize("is_chat", [False, True], ids=["text before", "chats before"])
def test_an_export_is_a_tokenizer_for_the_next_chats(tmp_path: Path, is_chat: bool) -> None:
    """A student from a config has nothing of its own: all of this comes from the dataset."""
    given = tmp_path / "given"
    config = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    files = {"special_tokens_map.json": {"pad_token": "<|endoftext|>"}}
    special = ("<|im_start|>", "<|im_end|>")
    write_tokenizer(given, special=special, config=config, files=files)
    (given / "chat_template.jinja").write_text(CHATML)
    (given / "additional_chat_templates").mkdir()
    (given / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (given / "tokenizer.model").write_bytes(b"left behind before")
    chats = Content("messages", is_chat=True)
    content = chats if is_chat else Content()
    folder, _ = exported(tmp_path, dataset(tmp_path / "data", tokenizer=given, content=content))
    for path in given.rglob("*.*"):
        assert (folder / path.relative_to(given)).read_bytes() == path.read_bytes()
    again = dataset(tmp_path / "again", tokenizer=folder, content=chats)
    direct = dataset(tmp_path / "direct", tokenizer=given, content=chats)
    for name in ("shard-00000.bin", "mask-00000.bin", "tokenizer.json"):
        assert (again / name).read_bytes() == (direct / name).read_bytes()
    messages = [{"role": "user", "content": "hi"}]
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    text = loaded.apply_chat_template(messages, tokenize=False, chat_template=CHATML)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_student_without_a_template_gets_that_of_its_chats(tmp_path: Path) -> None:
    """Its own tokenizer, of a base model, ends texts in another token than the chats do."""
    special = ("<|im_start|>", "<|im_end|>")
    student, given = tmp_path / "student", tmp_path / "given"
    write_tokenizer(student, special=special, config={"eos_token": "<|endoftext|>"})
    (student / "vocab.json").write_text("{}")
    template = CHATML.replace("<|im_end|>", "{{ eos_token }}")
    config = {"eos_token": "<|im_end|>", "chat_template": template}
    write_tokenizer(given, special=special, config=config)
    chats = Content("messages", is_chat=True)
    data = dataset(tmp_path / "data", tokenizer=given, content=chats)
    folder, _ = exported(tmp_path, data, student=student)
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    text = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"
    assert (folder / "vocab.json").exists()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == of(given).token_to_id("<|im_end|>")


def test_the_template_of_a_student_that_learnt_text_stays(tmp_path: Path) -> None:
    student, given = tmp_path / "student", tmp_path / "given"
    write_tokenizer(student, config={"eos_token": "<|endoftext|>", "chat_template": "own"})
    write_tokenizer(given, config={"eos_token": "<|endoftext|>", "chat_template": "other"})
    folder, _ = exported(tmp_path, dataset(tmp_path / "data", tokenizer=given), student=student)
    assert AutoTokenizer.from_pretrained(folder).chat_template == "own"


def test_a_student_whose_tokenizer_cuts_the_data_otherwise_gets_that_of_the_data(
    tmp_path: Path,
) -> None:
    """The same tokens, but another pre-tokenizer: comparing the maps does not show it."""
    student, given = tmp_path / "student", tmp_path / "given"
    tokenizer = write_tokenizer(student, config={"eos_token": "<|endoftext|>"})
    shutil.copytree(student, given)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.save(str(given / "tokenizer.json"))
    folder, metadata = exported(
        tmp_path, dataset(tmp_path / "data", tokenizer=given), student=student
    )
    require_same_ids(AutoTokenizer.from_pretrained(folder), of(given))
    assert metadata["tokenizer_loader"] == "AutoTokenizer.from_pretrained"


def test_code_of_a_tokenizers_own_is_not_named_where_it_is_not(tmp_path: Path) -> None:
    given = tmp_path / "given"
    config = {"eos_token": "<|endoftext|>", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    write_tokenizer(given, config=config)
    folder, _ = exported(tmp_path, dataset(tmp_path / "data", tokenizer=given))
    require_same_ids(AutoTokenizer.from_pretrained(folder), of(given))


def test_a_vocabulary_of_another_kind_is_carried(tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (student / "tokenizer.model").write_bytes(b"\x0a")
    folder, metadata = exported(tmp_path, None, student=student)
    assert (folder / "tokenizer.model").read_bytes() == b"\x0a"
    assert "tokenizer_loader" not in metadata
