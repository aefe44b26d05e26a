"""Small GGUF files, written by the gguf package from a folder of tests/support/models.py.

Tensor names, the order of rows that rotary embeddings have in a llama file, and what stays in
float32 are as llama.cpp writes them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

KINDS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def write_gguf(
    folder: Path,
    path: Path,
    kind: str,
    *,
    settings: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Writes the model of a folder (qwen2, qwen3, llama, gemma2) and its tokenizer, if it has one.

    Args:
        kind: what matrices are stored as; norms and biases are float32.
        settings: "uint32"/"float32"/"string" values under the architecture's prefix, to add.
        extra_tensors: to add, by their GGUF name.

    Returns:
        The numbers that the file holds, by the safetensors name of each tensor.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = config["model_type"]
    tensors = {
        name: tensor.float().numpy()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    writer = gguf.GGUFWriter(path, architecture)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add: dict[type, Callable[[str, Any], None]] = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for name, value in (settings or {}).items():
        add[type(value)](f"{architecture}.{name}", value)
    _add_tokenizer(writer, folder, config["vocab_size"])

    identity = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(identity, config["num_hidden_layers"])
    held = {}
    for name, values in tensors.items():
        base, _, suffix = name.rpartition(".")
        stored = KINDS[kind] if values.ndim == 2 else KINDS["f32"]
        data = gguf.quants.quantize(_as_llama_cpp(values, name, config), stored)
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", data, raw_dtype=stored)
        held[name] = gguf.quants.dequantize(gguf.quants.quantize(values, stored), stored)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _as_llama_cpp(values: np.ndarray, name: str, config: Mapping[str, Any]) -> np.ndarray:
    if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    if config["model_type"] == "gemma2" and name.endswith("norm.weight"):
        return values + 1
    return values


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Ids without a token are filled with unused ones, as converters do."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    model = json.loads(path.read_text())
    by_id = {index: token for token, index in model["model"]["vocab"].items()}
    special = {entry["id"] for entry in model["added_tokens"]}
    kinds = [
        gguf.TokenType.UNUSED
        if index not in by_id
        else gguf.TokenType.CONTROL
        if index in special
        else gguf.TokenType.NORMAL
        for index in range(vocab_size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["model"]["merges"]])
