"""GGUF files, compared with the safetensors model they were made from, and refusals."""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lectern_common.errors import CorruptData, Misconfigured
from lectern_common.tokens.tokenizer_map import read_tokenizer_map
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import GgufFile, loaded_weights_sha256
from lectern_models.loading import load_causal_lm
from tests.support.gguf_models import write_gguf
from tests.support.models import write_tiny_model

ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
# What transformers assumes about these architectures when it reads a GGUF file.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
}
# Of gemma2.
SETTINGS: dict[str, Any] = {
    "attention.sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits_SV: torch.Tensor = model(torch.arange(1, 40)[None], use_cache=False).logits[0]
    return logits_SV


def standalone(folder: Path, held: dict[str, np.ndarray]) -> torch.Tensor:
    """Returns the logits of the safetensors model in plain transformers with these weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict({name: torch.from_numpy(data) for name, data in held.items()}, False)
    return logits(model)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "gemma2"])
def test_a_gguf_model_computes_with_the_numbers_of_the_file(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    settings = SETTINGS if architecture == "gemma2" else {}
    folder = write_tiny_model(tmp_path, architecture, **ROPE, **SHAPES.get(architecture, {}))
    held = write_gguf(folder, tmp_path / "model.gguf", kind, settings=settings)
    model = load_causal_lm(folder, "float32", gguf_file="model.gguf")
    torch.testing.assert_close(logits(model), standalone(folder, held), atol=2e-5, rtol=0)
    assert not model.training
    # Not the numbers of the safetensors file in the same folder.
    original = logits(load_causal_lm(folder, "float32"))
    assert torch.allclose(logits(model), original, atol=2e-5, rtol=0) == (kind == "f32")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16"), ("q8_0", "float32")],
)
def test_dtype_auto_is_the_files_own_or_float32_for_blocks(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    folder = write_tiny_model(tmp_path)
    write_gguf(folder, tmp_path / "model.gguf", kind)
    assert GgufFile(tmp_path / "model.gguf").dtype == dtype
    assert load_causal_lm(folder, gguf_file="model.gguf").dtype is getattr(torch, dtype)
    assert load_causal_lm(folder, "bfloat16", gguf_file="model.gguf").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "stored", "equal"),
    [
        ("f32", "float32", True),
        ("bf16", "float32", True),
        ("bf16", "bfloat16", True),
        ("f16", "float16", True),
        ("q8_0", "float32", False),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_equal_weights_have_equal_hashes_unless_they_were_quantised(
    tmp_path: Path, kind: str, stored: str, equal: bool, tied: bool
) -> None:
    folder = write_tiny_model(tmp_path, dtype=stored, tied=tied)
    write_gguf(folder, tmp_path / "model.gguf", kind)
    theirs = weights_sha256(safetensors_files(folder))
    for dtype in ("auto", "bfloat16"):
        model = load_causal_lm(folder, dtype, gguf_file="model.gguf")
        assert (loaded_weights_sha256(model) == theirs) == equal


def test_the_exact_hash_differs_between_files_with_equal_weights(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, dtype="bfloat16")
    digests = set()
    for kind in ("f32", "bf16", "q8_0"):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        write_gguf(folder, tmp_path / f"{kind}-again.gguf", kind)
        first = GgufFile(tmp_path / f"{kind}.gguf").tensors_sha256
        assert first == GgufFile(tmp_path / f"{kind}-again.gguf").tensors_sha256
        digests.add(first)
    assert len(digests) == 3


def test_tokens_are_those_of_the_tokenizer_without_padding_ids(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, tokenizer=True, vocab_size=448)
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    expected = read_tokenizer_map(folder / "tokenizer.json")
    tokens = GgufFile(tmp_path / "model.gguf").tokens
    assert len(expected) < 448
    assert tokens == expected
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").get_vocab()
    assert {token: theirs[token] for token in expected} == tokens


def test_a_file_without_a_tokenizer_has_no_tokens(tmp_path: Path) -> None:
    write_gguf(write_tiny_model(tmp_path), tmp_path / "model.gguf", "f16")
    assert GgufFile(tmp_path / "model.gguf").tokens is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type to yarn"),
        ({"rope.scaling.factor": 4.0}, "rope.scaling.factor to 4.0"),
        ({"logit_scale": 0.5}, "logit_scale to 0.5"),
        ({"attention.sliding_window": 16}, "attention.sliding_window to 16"),
        ({"rope.dimension_count": 4}, "rope.dimension_count to 4"),
    ],
)
def test_an_ignored_setting_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    folder = write_tiny_model(tmp_path)
    write_gguf(folder, tmp_path / "model.gguf", "f16", settings=settings)
    with pytest.raises(Misconfigured, match=re.escape(says)):
        load_causal_lm(folder, gguf_file="model.gguf")


@pytest.mark.parametrize(
    ("architecture", "shape", "settings", "says"),
    [
        ("gemma2", {}, {"final_logit_softcapping": 20.0}, r"softcapping to 20\.0.*uses 30\.0"),
        ("gemma2", {"head_dim": 64}, SETTINGS, "not say how its attention is scaled.*assumes 256"),
        ("qwen3", {"head_dim": 64}, {}, "attention.key_length to 64.*uses 128"),
    ],
)
def test_assumptions_of_transformers_that_contradict_the_file_are_refused(
    tmp_path: Path, architecture: str, shape: dict[str, int], settings: dict[str, Any], says: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture, **{**SHAPES[architecture], **shape})
    write_gguf(folder, tmp_path / "model.gguf", "f16", settings=settings)
    with pytest.raises(Misconfigured, match=says):
        load_causal_lm(folder, gguf_file="model.gguf")


def test_settings_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    neutral = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.dimension_count": 8}
    held = write_gguf(folder, tmp_path / "model.gguf", "f16", settings=neutral)
    model = load_causal_lm(folder, "float32", gguf_file="model.gguf")
    torch.testing.assert_close(logits(model), standalone(folder, held), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "tensors", "says"),
    [
        # Llama 3.1's long-context frequencies; a bias that transformers' llama does not have.
        ("llama", {"rope_freqs.weight": np.ones(4, np.float32)}, r"\(rope_freqs\.weight\)"),
        ("llama", {"blk.0.attn_q.bias": np.ones(32, np.float32)}, "tensors were ignored"),
    ],
)
def test_an_ignored_tensor_is_refused(
    tmp_path: Path, architecture: str, tensors: dict[str, np.ndarray], says: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture)
    write_gguf(folder, tmp_path / "model.gguf", "f16", extra_tensors=tensors)
    with pytest.raises(Misconfigured, match=says):
        load_causal_lm(folder, gguf_file="model.gguf")


def test_an_architecture_that_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "command-r")
    writer.add_context_length(128)
    writer.add_tensor("token_embd.weight", np.ones((97, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Misconfigured, match="command-r is not supported"):
        load_causal_lm(tmp_path, gguf_file="model.gguf")


def test_a_missing_tensor_is_refused_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_tiny_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    with pytest.raises(CorruptData, match=r"lacks 1 .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(folder, gguf_file="model.gguf")


@pytest.mark.parametrize("keep", [0, 3, 100, 1000, -50])
def test_a_truncated_file_is_corrupt_data(tmp_path: Path, keep: int) -> None:
    folder = write_tiny_model(tmp_path)
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, "q8_0")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptData, match=r"model\.gguf"):
        load_causal_lm(folder, gguf_file="model.gguf")


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "m-00001-of-00002.gguf", "qwen2")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("token_embd.weight", np.ones((97, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Misconfigured, match="one of 2 parts"):
        load_causal_lm(folder, gguf_file="m-00001-of-00002.gguf")


def test_a_gguf_file_is_not_quantised_a_second_time(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    with pytest.raises(Misconfigured, match="--quantization int4 is not for a GGUF file"):
        load_causal_lm(folder, quantization="int4", gguf_file="model.gguf")
