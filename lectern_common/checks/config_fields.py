"""Reads numbers from a model's config.json, whatever its architecture calls them, without torch.

Architectures name the same thing differently, some put a value per layer (a list, or exceptions in
`per_layer_config`), and models of several parts keep the text model's config in a part of its own.
What is not found is unknown: an empty result, never a guess.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Names = Sequence[str]

# The longest sequence. Learnt positions end there; rotary ones were never trained beyond.
POSITIONS: Names = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "max_target_positions",
    "n_ctx",
    "context_length",
    "model_max_length",
    "seq_length",
)
LAYERS: Names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
VOCAB_SIZE: Names = ("vocab_size", "padded_vocab_size")
HIDDEN_SIZE: Names = ("hidden_size", "n_embd", "d_model", "model_dim", "embedding_dim")
HEADS: Names = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "attention_heads",
    "decoder_attention_heads",
)
KEY_HEADS: Names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
HEAD_SIZE: Names = ("head_dim", "kv_channels", "attention_head_dim")
MLP_SIZE: Names = (
    "moe_intermediate_size",
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "decoder_ffn_dim",
    "dff",
    "d_inner",
    "ffn_hidden_size",
    "block_ff_dim",
)
EXPERTS_PER_TOKEN: Names = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k")

# What only configs with other layers than attention have: state-space, recurrent, convolution, or
# linear attention, in all layers or in some.
_NOT_ATTENTION: Names = (
    "state_size",
    "ssm_state_size",
    "mamba_d_state",
    "lru_width",
    "attention_hidden_size",
    "conv_L_cache",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_attn_config",
    "short_conv_kernel_size",
    "qk_dim_factor",
)
_LAYER_KINDS = ("layer_types", "block_types", "layers_block_type", "hybrid_override_pattern")
_OTHER_KINDS = ("mamba", "linear", "recurrent", "conv", "ssm")

# Where models of several parts keep the config of the text model.
_TEXT_PARTS = ("text_config", "language_config", "llm_config", "decoder")


def number(config: Mapping[str, Any], names: Names) -> int | None:
    """Returns the largest value of the first of these settings that the config has, above 0.

    A setting without a positive whole number counts as absent: -1 and null mean "no limit".
    """
    return max(numbers(config, names), default=None)


def numbers(config: Mapping[str, Any], names: Names) -> list[int]:
    """Returns the values of the first of these settings that has any, above 0.

    One value if it is the same in all layers, else one for each layer that has one; [] if unknown.
    """
    for part in (config, *text_parts(config)):
        for name in names:
            found = _values(part, name)
            if found:
                return found
    return []


def is_all_attention(config: Mapping[str, Any]) -> bool:
    """Returns whether the config names attention heads, and no layer of another kind."""
    for part in (config, *text_parts(config)):
        if any(part.get(name) is not None for name in _NOT_ATTENTION):
            return False
        for name in _LAYER_KINDS:
            kinds = {str(kind).lower() for kind in part.get(name) or ()}
            if any(kind == "m" or kind.startswith(_OTHER_KINDS) for kind in kinds):
                return False
    return bool(numbers(config, HEADS))


def mean(values: Sequence[int]) -> int:
    """Returns the mean over the layers, rounded up; 0 for no values."""
    return -(-sum(values) // len(values)) if values else 0


def text_parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the configs of the text model within the config of a model of several parts."""
    parts = (config.get(name) for name in _TEXT_PARTS)
    return [part for part in parts if isinstance(part, Mapping)]


def _values(part: Mapping[str, Any], name: str) -> list[int]:
    value = part.get(name)
    exceptions = part.get("per_layer_config")
    if isinstance(exceptions, Mapping) and any(
        isinstance(layer, Mapping) and name in layer for layer in exceptions.values()
    ):
        value = _by_layer(value, exceptions, name, number(part, LAYERS) or len(exceptions))
    listed = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in listed if type(one) is int and one > 0]


def _by_layer(value: Any, exceptions: Mapping[str, Any], name: str, layers: int) -> list[Any]:
    """Returns the value of each layer; those without an exception have the common one."""
    own = [layer[name] for layer in exceptions.values() if name in layer]
    return own + [value] * max(0, layers - len(own))
