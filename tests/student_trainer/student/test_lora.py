"""Adapters: what they train, what they leave alone, and the two ways they are exported."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_common.errors import CorruptData, InvalidSpec
from lectern_common.spec.sections import LoraSpec
from lectern_models.loading import load_causal_lm
from student_trainer.data.sources import SyntheticBatchSource
from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.objective.loss import Objective
from student_trainer.pipeline import Pipeline
from student_trainer.run.parts import Parts, Progress
from student_trainer.student.export import export_student
from student_trainer.student.lora import Adapters, add_adapters
from student_trainer.student.student import CausalStudent
from student_trainer.student.tensors import load_model_tensors, load_optimizer_tensors
from tests.support.models import write_tiny_model
from tests.support.training.parts import VOCAB_SIZE, parts_of, settings_of, tiny_teacher, trained

torch.set_num_threads(1)

ASKED: dict[str, Any] = {"rank": 3, "alpha": 12.0}
DISTILLING = {"objective": Objective(alpha=0.5, temperature=2.0)}
ALL_OF_QWEN = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def base_folder(folder: Path, architecture: str = "qwen2", **settings: Any) -> Path:
    tiny = {"vocab_size": VOCAB_SIZE, "hidden": 16, "layers": 2, "spread": 0.1}
    return write_tiny_model(folder, architecture, **{**tiny, **settings})


def put_into(model: PreTrainedModel, seed: int = 5, **asked: Any) -> Adapters:
    lora = LoraSpec(**{**ASKED, **asked})
    return add_adapters(model, lora, seed=seed, base="some/base", revision=None)


def adapted(folder: Path, **asked: Any) -> CausalStudent:
    model = load_causal_lm(folder, "float32")
    return CausalStudent(model, adapters=put_into(model, **asked))


def adapters_of(student: CausalStudent) -> Adapters:
    assert student.adapters is not None
    return student.adapters


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits_BSV: Tensor = model.eval()(input_ids=ids).logits
    return logits_BSV


def copied(student: CausalStudent) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def after_steps(folder: Path, steps: int = 3, **asked: Any) -> CausalStudent:
    student = adapted(folder, **asked)
    trained(parts_of(student), settings_of(steps))
    return student


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2", "phi", "opt", "mixtral"])
def test_new_adapters_change_nothing_and_steps_change_all_of_them_and_nothing_else(
    tmp_path: Path, architecture: str
) -> None:
    folder = base_folder(tmp_path / "base", architecture)
    student = adapted(folder)
    plain = load_causal_lm(folder, "float32")
    assert torch.equal(logits(student.model), logits(plain))

    before = copied(student)
    trained(parts_of(student, teacher=tiny_teacher(tmp_path / "t")), settings_of(3, **DISTILLING))
    adapters = {name for name in before if ".lora_" in name}
    assert len(adapters) == len(adapters_of(student).tensors()) > 0
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in adapters), name
    base = {name.replace(".base_layer", "") for name in before.keys() - adapters}
    assert base == {f"model.{name}" for name in plain.state_dict()}
    for name, tensor in plain.state_dict().items():
        own = before.get(f"model.{name}")
        if own is None:
            layer, _, kind = name.rpartition(".")
            own = before[f"model.{layer}.base_layer.{kind}"]
        assert torch.equal(own, tensor), name


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_merged_weights_are_the_base_plus_b_times_a(tmp_path: Path, architecture: str) -> None:
    """W + alpha / R * B A, bit for bit; GPT-2 stores W transposed."""
    student = after_steps(base_folder(tmp_path / "base", architecture))
    before = copied(student)
    merged = dict(adapters_of(student).merged().named_parameters())
    plain = dict(load_causal_lm(tmp_path / "base", "float32").named_parameters())
    assert merged.keys() == plain.keys()
    changed = set()
    for name, weight in plain.items():
        layer = name.removesuffix(".weight")
        down = before.get(f"model.{layer}.lora_A.default.weight")
        if down is None:
            assert torch.equal(merged[name], weight), name
            continue
        product = before[f"model.{layer}.lora_B.default.weight"] @ down
        delta = (product.T if architecture == "gpt2" else product) * (12.0 / 3)
        assert delta.abs().max() > 0
        assert torch.equal(merged[name], weight + delta), name
        changed.add(name.split(".")[-2])
    assert sorted(changed) == adapters_of(student).targets
    # The student itself is unchanged.
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "tied"), [("qwen2", True), ("qwen2", False), ("gpt2", True)]
)
# peft uses an old name in transformers.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_export_is_merged_for_plain_transformers_and_an_adapter_for_peft(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    folder, target = base_folder(tmp_path / "base", architecture, tied=tied), tmp_path / "export"
    student = after_steps(folder, dropout=0.3)
    export_student(
        student.model,
        target,
        student_folder=folder,
        dataset=None,
        eos_token_id=None,
        metadata={},
        adapters=student.adapters,
    )
    own, base = logits(student.model), logits(load_causal_lm(folder, "float32"))
    assert (own - base).abs().max() > 0.01

    merged = AutoModelForCausalLM.from_pretrained(target)
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(logits(merged), own, rtol=0, atol=1e-5)
    assert set(load_file(target / "model.safetensors")) == set(
        load_file(folder / "model.safetensors")
    )

    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), str(target / "adapter")
    )
    assert torch.equal(logits(loaded), own)
    settings = json.loads((target / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "some/base"
    assert settings["inference_mode"] is True
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 12.0, 0.3)
    assert settings["target_modules"] == adapters_of(student).targets
    modes = {path.stat().st_mode & 0o777 for path in target.rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "export"]


def test_an_adapter_file_that_differs_from_the_trained_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = after_steps(base_folder(tmp_path / "base"), 1)
    held = adapters_of(student).tensors()
    first = min(held)
    changed = {**held, first: held[first] + 1}
    monkeypatch.setattr("safetensors.torch.load_file", lambda _path: changed)
    with pytest.raises(CorruptData, match=r"lora_A\.weight in the adapter file differs"):
        adapters_of(student).save(tmp_path / "adapter")


def test_checkpoints_and_optimizer_hold_only_the_adapters_and_resume_bit_for_bit(
    tmp_path: Path,
) -> None:
    folder = base_folder(tmp_path / "base")
    asked: dict[str, Any] = {"dropout": 0.2}
    straight = after_steps(folder, 5, **asked)

    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1, keep_best=0)
    trained(parts_of(adapted(folder, **asked), checkpoints=store), settings_of(2))
    found = store.newest()
    assert found is not None
    names = {f"model.{name}" for name, p in straight.model.named_parameters() if p.requires_grad}
    assert names == {name for name in straight.state_dict() if ".lora_" in name}
    assert found.model_tensors().keys() == names
    states = {name.rpartition("/")[0] for name in found.optimizer_tensors()}
    assert states == names

    fresh = adapted(folder, **asked)
    parts: Parts = parts_of(fresh)
    load_model_tensors(fresh, found.model_tensors())
    load_optimizer_tensors(parts.optimizer, fresh, found.optimizer_tensors())
    trained(parts, settings_of(5), Progress.of_state(found.state))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_equal_seeds_draw_equal_adapters_and_keep_the_random_state(tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "base")
    state = torch.random.get_rng_state()
    one, again, other = (adapters_of(adapted(folder, seed=seed)).tensors() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == ("lora_B" in name)
        assert bool(tensor.any()) == ("lora_A" in name)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (None, ALL_OF_QWEN),
        (["v_proj", "q_proj"], ["q_proj", "v_proj"]),
        (["mlp.up_proj"], ["mlp.up_proj"]),
        (["model.layers.1.self_attn.q_proj"], ["model.layers.1.self_attn.q_proj"]),
    ],
)
def test_adapters_sit_on_the_named_layers(
    tmp_path: Path, targets: list[str] | None, named: list[str]
) -> None:
    student = adapted(base_folder(tmp_path / "base"), targets=targets)
    adapters = adapters_of(student)
    on = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for name in adapters.tensors()
        if "lora_A" in name
    }
    plain = load_causal_lm(tmp_path / "base", "float32")
    assert adapters.targets == named
    assert on == {
        name
        for name, _ in plain.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in named)
    }
    sizes = [tensor.shape for tensor in adapters.tensors().values()]
    assert all(3 in shape for shape in sizes)
    assert adapters.facts() == {
        "rank": 3,
        "alpha": 12.0,
        "dropout": 0.0,
        "targets": named,
        "parameters": sum(shape.numel() for shape in sizes),
    }


@pytest.mark.parametrize(
    ("architecture", "targets", "why"),
    [
        ("qwen2", ["q_proj", "query"], "Qwen2ForCausalLM has no layer query; there are: down_proj"),
        ("qwen2", ["proj"], "has no layer proj"),
        ("qwen2", ["lm_head"], "lm_head is the output head"),
        ("qwen2", ["embed_tokens"], r"model\.embed_tokens is the embedding"),
        ("qwen2", ["self_attn"], r"layers\.0\.self_attn is not a linear layer \(Qwen2Attention\)"),
        ("gpt2", ["wpe"], r"transformer\.wpe is not a linear layer \(Embedding\)"),
        ("falcon_h1", None, r"out_proj.*incompatible with Mamba.*there are: .*q_proj"),
    ],
)
def test_targets_that_take_no_adapter_are_refused_by_name(
    tmp_path: Path, architecture: str, targets: list[str] | None, why: str
) -> None:
    model = load_causal_lm(base_folder(tmp_path / "base", architecture, hidden=32), "float32")
    with pytest.raises(InvalidSpec, match=why) as refusal:
        put_into(model, targets=targets)
    assert refusal.value.field == "student.lora.targets"


def test_matrices_that_are_not_linear_layers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted(base_folder(tmp_path / "dense"))
    assert "lora_leaves_out" not in capsys.readouterr().err
    adapted(base_folder(tmp_path / "experts", "mixtral"))
    said = capsys.readouterr().err
    assert "experts.down_proj" in said and "experts.gate_up_proj" in said


def test_recomputed_activations_change_no_bit_and_leave_frozen_embeddings_alone(
    tmp_path: Path,
) -> None:
    folder = base_folder(tmp_path / "base")
    plain, recomputing = adapted(folder, dropout=0.2), adapted(folder, dropout=0.2)
    recomputing.checkpoint_activations()
    for student in (plain, recomputing):
        trained(parts_of(student), settings_of(3))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(recomputing.state_dict()[name], tensor), name
    embedding = recomputing.model.get_input_embeddings()
    assert not embedding(torch.tensor([1])).requires_grad


# torch's own warning, on importing its compiler.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_adapters_work_with_a_compiled_body_and_recomputed_activations(tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "base", layers=1)
    plain, both = adapted(folder, dropout=0.1), adapted(folder, dropout=0.1)
    both.checkpoint_activations()
    both.compile_body("aot_eager")
    one, other = (trained(parts_of(student), settings_of(3)) for student in (plain, both))
    assert other.curve("loss/total") == pytest.approx(one.curve("loss/total"), rel=1e-5)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(both.state_dict()[name], tensor, rtol=0, atol=1e-5)
    merged = adapters_of(both).merged()
    torch.testing.assert_close(logits(merged), logits(plain.model), rtol=0, atol=1e-5)


def test_a_pipeline_trains_and_writes_adapters_too(tmp_path: Path) -> None:
    student = adapted(base_folder(tmp_path / "base"))
    result = (
        Pipeline(batches_per_epoch=2, alpha=1.0, output_path=tmp_path / "out")
        .with_student(student)
        .with_batch_source(SyntheticBatchSource(VOCAB_SIZE))
        .execute()
    )
    assert result.output_path is not None
    loaded = AutoModelForCausalLM.from_pretrained(result.output_path)
    torch.testing.assert_close(logits(loaded), logits(student.model), rtol=0, atol=1e-5)
    written = load_file(result.output_path / "adapter" / "adapter_model.safetensors")
    for name, tensor in adapters_of(student).tensors().items():
        assert torch.equal(written[name], tensor), name
