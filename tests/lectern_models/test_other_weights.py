"""Adapters and other weights beside a model: refused by name, for teachers and students."""

import json
import warnings
from pathlib import Path

import pytest

from lectern_common.checks.student import student_facts
from lectern_common.errors import InvalidSpec, Misconfigured, NotFound
from lectern_common.roots import Roots
from lectern_common.spec.load import parse_spec
from lectern_models.loading import load_causal_lm
from lectern_models.model_folder import find_model
from teacher_server.engine import transformers as transformers_engine
from tests.support.models import write_tiny_model


def write_adapter(folder: Path, base: Path) -> None:
    """Writes an adapter that changes the base model, as peft does."""
    peft = pytest.importorskip("peft")
    model = load_causal_lm(base, "float32")
    settings = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers
        peft.get_peft_model(model, settings).save_pretrained(folder)


def preflight(models: Path, name: str) -> None:
    spec = parse_spec(
        {
            "name": "adapters",
            "student": {"init": name},
            "data": {"kind": "synthetic", "seq_len": 8, "validation_fraction": 0.1},
            "objective": {"alpha": 1.0},
            "schedule": {"steps": 1, "warmup_steps": 0},
        }
    )
    student_facts(spec, Roots(models, models, models, models, models))


def test_a_leftover_adapter_is_refused_for_teacher_and_student(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    before = transformers_engine.load(str(folder)).facts
    write_adapter(folder, write_tiny_model(tmp_path / "base"))
    for load in (load_causal_lm, lambda path: transformers_engine.load(str(path))):
        with pytest.raises(Misconfigured, match=r"adapter_config\.json, adapter_model.*Merge it"):
            load(folder)
    with pytest.raises(InvalidSpec, match=r"student\.init: .*adapter_config\.json, adapter_model"):
        preflight(tmp_path, "model")

    aside = folder / "adapter"  # where an export keeps its own
    aside.mkdir()
    for file in folder.glob("adapter_*"):
        file.rename(aside / file.name)
    after = transformers_engine.load(str(folder)).facts
    assert after.fingerprint == before.fingerprint
    preflight(tmp_path, "model")


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "adapter_model.safetensors.index.json",
        "adapters.safetensors",
        "pytorch_adapter.bin",
    ],
)
def test_a_part_of_an_adapter_is_refused_under_any_name(tmp_path: Path, name: str) -> None:
    folder = write_tiny_model(tmp_path / "model")
    (folder / name).write_text("{}")
    with pytest.raises(Misconfigured, match=f"an adapter beside the model \\({name}\\)"):
        load_causal_lm(folder)
    with pytest.raises(InvalidSpec, match=name):
        preflight(tmp_path, "model")


def test_an_adapter_beside_a_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Misconfigured, match="an adapter beside the model"):
        transformers_engine.load(str(tmp_path / "model.gguf"))


def test_an_adapter_alone_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only/adapter_config.json").write_text("{}")
    with pytest.raises(NotFound, match=r"is an adapter without its model .*merge it into its base"):
        find_model(str(tmp_path / "only"))
    with pytest.raises(InvalidSpec, match="only is an adapter without its model"):
        preflight(tmp_path, "only")


def test_a_config_that_names_other_weights_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    path = folder / "config.json"
    named = {**json.loads(path.read_text()), "transformers_weights": "other.safetensors"}
    path.write_text(json.dumps(named))
    with pytest.raises(Misconfigured, match=r"transformers_weights: 'other\.safetensors'"):
        load_causal_lm(folder)
    with pytest.raises(InvalidSpec, match="transformers_weights"):
        preflight(tmp_path, "model")


@pytest.mark.parametrize("part", [None, "text_config"])
def test_quantised_weights_are_known_wherever_the_config_says_so(
    tmp_path: Path, part: str | None
) -> None:
    folder = write_tiny_model(tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config |= quantised if part is None else {part: quantised}
    path.write_text(json.dumps(config))
    with pytest.raises(Misconfigured, match=r"stored quantised \(gptq\)"):
        load_causal_lm(folder)
