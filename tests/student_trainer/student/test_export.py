"""The export, as plain transformers loads it."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lectern_common.errors import CorruptData, DiskFull
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import loaded_weights_sha256
from student_trainer.student import export
from student_trainer.student.export import export_student
from student_trainer.student.student import CausalStudent
from tests.support.models import write_tiny_tokenizer
from tests.support.training.parts import tiny_student


def changed_student(folder: Path, **settings: Any) -> CausalStudent:
    """Returns a student whose weights differ from those of its folder."""
    student = tiny_student(folder, **settings)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return student


def exported(model: PreTrainedModel, target: Path, **changes: Any) -> str:
    settings: dict[str, Any] = {
        "student_folder": target.parent / "nowhere",
        "dataset": None,
        "eos_token_id": None,
        "metadata": {"alpha": 0.5},
    }
    return export_student(model, target, **{**settings, **changes})


@pytest.mark.parametrize("tied", [False, True])
def test_the_export_loads_as_the_trained_model(tmp_path: Path, tied: bool) -> None:
    student = changed_student(tmp_path / "student", tied=tied)
    target = tmp_path / "export"
    digest = exported(student.model, target)
    loaded = AutoModelForCausalLM.from_pretrained(target).eval()
    ids = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, student.model.eval()(input_ids=ids).logits)
    assert digest == weights_sha256(safetensors_files(target))
    assert digest != weights_sha256(safetensors_files(tmp_path / "student"))
    metadata = json.loads((target / "distillation_metadata.json").read_text())
    assert metadata == {"alpha": 0.5, "student_weights_sha256": digest}
    assert (target / "generation_config.json").exists()
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o644}


def test_the_students_own_tokenizer_is_exported(tmp_path: Path) -> None:
    student = tiny_student(tmp_path / "student", vocab_size=300, tokenizer=True)
    target = tmp_path / "export"
    other = tmp_path / "dataset"
    write_tiny_tokenizer(other, 260)
    exported(student.model, target, student_folder=tmp_path / "student", dataset=other)
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (target, tmp_path / "student"))
    text = "def add(first, second): return"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.eos_token == theirs.eos_token


def test_the_datasets_tokenizer_is_exported_if_the_student_has_none(tmp_path: Path) -> None:
    student = tiny_student(tmp_path / "student", vocab_size=300)
    dataset = tmp_path / "dataset"
    write_tiny_tokenizer(dataset, 300)
    target = tmp_path / "export"
    exported(
        student.model,
        target,
        student_folder=tmp_path / "student",
        dataset=dataset,
        eos_token_id=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.decode(tokenizer("the quick brown")["input_ids"]) == "the quick brown"
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 0)
    assert (target / "tokenizer.json").read_bytes() == (dataset / "tokenizer.json").read_bytes()


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    student = changed_student(tmp_path / "student")
    for name in ("a", "b"):
        exported(student.model, tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


def test_an_earlier_export_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "export"
    exported(tiny_student(tmp_path / "one").model, target)
    (target / "left-over").touch()
    second = changed_student(tmp_path / "two")
    exported(second.model, target)
    assert not (target / "left-over").exists()
    weights = load_file(target / "model.safetensors")
    assert torch.equal(weights["model.norm.weight"], second.model.model.norm.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "one", "two"]


def test_an_export_that_differs_from_the_trained_model_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requirements, what went wrong there, 5: exporting other weights is never a success."""
    student = changed_student(tmp_path / "student")
    original = PreTrainedModel.save_pretrained

    def stale(model: PreTrainedModel, folder: Path, **settings: Any) -> None:
        original(AutoModelForCausalLM.from_pretrained(tmp_path / "student"), folder, **settings)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", stale)
    with pytest.raises(CorruptData, match="differs from the trained tensor"):
        exported(student.model, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_full_disk_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "export"
    digest = exported(tiny_student(tmp_path / "one").model, target)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_write_tokenizer", full)
    with pytest.raises(DiskFull):
        exported(changed_student(tmp_path / "two").model, target)
    assert weights_sha256(safetensors_files(target)) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "one", "two"]


def test_the_hash_of_random_weights_is_that_of_the_folder_they_would_make(tmp_path: Path) -> None:
    student = changed_student(tmp_path / "student")
    digest = loaded_weights_sha256(student.model)
    assert digest == exported(student.model, tmp_path / "export")
