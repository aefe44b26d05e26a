"""The estimate of activations, compared with what autograd really keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lectern_common.checks.needs.memory import (
    Computation,
    FreeMemory,
    activation_bytes,
    estimate_memory,
    memory_fit,
)
from student_trainer.student.shape import shape_of
from tests.support.models import write_tiny_model

HIDDEN, LAYERS, SEQUENCES, SEQ_LEN = 32, 3, 2, 64
OPT = {"ffn_dim": 80}


def model(folder: Path, architecture: str, **settings: Any) -> PreTrainedModel:
    """Returns a tiny model to train, with only its config from disk."""
    write_tiny_model(
        folder,
        architecture,
        hidden=HIDDEN,
        layers=LAYERS,
        weights=False,
        **{"intermediate_size": 80, **settings},
    )
    config = AutoConfig.from_pretrained(folder)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.train()
    return made


def kept_bytes(trained: PreTrainedModel, narrow: bool) -> int:
    """Returns the bytes that autograd keeps of the body's forward, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trained.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(SEQUENCES, SEQ_LEN, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=narrow),
    ):
        hidden = trained.get_decoder()(input_ids=ids, use_cache=False)[0]
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    ("architecture", "factor", "settings"),
    [
        ("qwen2", 1.12, {}),
        ("llama", 1.12, {}),
        ("olmo2", 1.13, {}),
        ("gpt2", 1.7, {"n_inner": 80}),
        ("opt", 1.7, OPT),
        ("gemma2", 1.7, {}),
        ("phi", 1.7, {}),
        ("mixtral", 1.7, {}),
        ("falcon_h1", 2.3, {}),
    ],
)
def test_the_estimate_is_within_its_factor_of_what_is_kept(
    tmp_path: Path, architecture: str, factor: float, settings: dict[str, Any], narrow: bool
) -> None:
    trained = model(tmp_path, architecture, **settings)
    computed = Computation(SEQUENCES, SEQ_LEN, compute_bytes=2 if narrow else 4)
    ratio = activation_bytes(shape_of(trained), computed) / kept_bytes(trained, narrow)
    assert 1 / factor < ratio < factor


# Tiny models without attention heads, with other layers beside attention, or with a list per layer.
OTHERS: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "falcon_mamba": {"state_size": 8},
    "rwkv": {"context_length": 96, "attention_hidden_size": 32},
    "qwen3_next": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "attention"],
    },
}
NO_HEADS = ("mamba", "mamba2", "falcon_mamba", "rwkv")


def own_settings(architecture: str, **settings: Any) -> PreTrainedModel:
    """Returns a tiny model whose config has only the settings that its architecture knows."""
    common = {
        "vocab_size": 97,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "intermediate_size": 80,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if architecture not in NO_HEADS:
        common["num_attention_heads"] = 4
    config = AutoConfig.for_model(architecture, **{**common, **settings})
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.train()
    return made


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_layers_than_attention_are_counted_and_said_to_be_unknown(architecture: str) -> None:
    trained = own_settings(architecture, **OTHERS[architecture])
    shape = shape_of(trained)
    assert shape.num_parameters == trained.num_parameters()
    assert (shape.vocab_size, shape.hidden_size, shape.num_layers) == (97, HIDDEN, 2)
    assert (shape.num_heads == 0) == (architecture in ("mamba", "falcon_mamba", "rwkv"))
    estimate = estimate_memory(shape, Computation(SEQUENCES, SEQ_LEN))
    plenty = memory_fit(estimate, FreeMemory("cpu", 1 << 40, 1 << 40))
    assert plenty.problem is None and plenty.warning is None
    assert plenty.note is not None and "is not known for this student" in plenty.note
    assert "activations_known" not in estimate.parts()


def test_a_width_per_layer_counts_as_its_mean() -> None:
    listed = own_settings(
        "gemma3n_text",
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=[64, 128],
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0],
        altup_num_inputs=2,
        laurel_rank=4,
    )
    shape = shape_of(listed)
    assert (shape.mlp_size, shape.query_size, shape.key_size) == (96, 32, 16)
    assert shape.activations_known


def test_a_shape_is_that_of_the_model_as_it_is_now(tmp_path: Path) -> None:
    trained = model(tmp_path, "qwen2", tied=True)
    whole = shape_of(trained)
    assert whole.num_parameters == whole.num_trainable == trained.num_parameters()
    assert (whole.query_size, whole.key_size, whole.mlp_size) == (32, 16, 80)
    assert (whole.num_layers, whole.vocab_size, whole.keeps_scores) == (3, 97, False)
    assert whole.num_outside == 97 * 32 + 32  # the tied embedding once, and the last norm
    assert whole.num_parameters == whole.num_outside + 3 * whole.num_largest_layer

    trained.model.embed_tokens.requires_grad_(False)
    del trained.model.layers[2]
    cut = shape_of(trained)
    layer = sum(parameter.numel() for parameter in trained.model.layers[0].parameters())
    assert cut.num_layers == 2
    assert cut.num_parameters == whole.num_parameters - layer
    assert cut.num_trainable == cut.num_parameters - 97 * 32


def test_eager_attention_and_dropout_on_it_keep_scores(tmp_path: Path) -> None:
    assert shape_of(model(tmp_path / "a", "gpt2", n_inner=80)).keeps_scores
    assert not shape_of(model(tmp_path / "b", "gpt2", n_inner=80, attn_pdrop=0.0)).keeps_scores
    assert shape_of(model(tmp_path / "c", "gemma2")).keeps_scores
