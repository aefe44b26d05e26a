"""What of a model's config a GGUF file says, for each architecture that is exported.

llama.cpp takes for granted what a file does not say, such as the activation function. So every
setting is either written, or required to be what llama.cpp computes, or refused by its name.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lectern_common.errors import Incompatible

_INSTEAD = "export it with --format safetensors"
# Of rotary embeddings; the others scale positions in ways that llama.cpp computes differently.
_ROPE_TYPES = ("default", "llama3")
# llama.cpp recognises Gemma 2 27B by its layers, and scales its attention in another way.
_GEMMA2_27B_LAYERS = 46


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp makes of models of one type.

    Attributes:
        activation: the name of the only activation function that it computes.
        adds_one_to_norms: its norms multiply by what is stored; transformers' by one more.
        rotates_in_pairs: its rotary embeddings turn neighbouring rows, not those half a head apart.
        has_qkv_bias: it reads biases of queries, keys and values.
        must_be_tied: it has no output head of its own.
        check: refuses what only this architecture can have.
        add: writes what only this architecture has.
    """

    activation: str
    adds_one_to_norms: bool = False
    rotates_in_pairs: bool = False
    has_qkv_bias: bool = False
    must_be_tied: bool = False
    check: Callable[[Any], Iterator[str]] = lambda config: iter(())
    add: Callable[[Any, Any], None] = lambda writer, config: None


def _qwen(config: Any) -> Iterator[str]:
    if "sliding_attention" in (config.layer_types or ()):
        yield "use_sliding_window: true: llama.cpp computes full attention in every layer"


def _gemma2(config: Any) -> Iterator[str]:
    layers = config.num_hidden_layers
    expected = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
    if list(config.layer_types) != expected:
        yield "layer_types: llama.cpp takes every other layer, from the first, for a sliding one"
    scale = head_dim(config)
    if layers == _GEMMA2_27B_LAYERS:
        scale = config.hidden_size / config.num_attention_heads
    if config.query_pre_attn_scalar != scale:
        yield (
            f"query_pre_attn_scalar {config.query_pre_attn_scalar}: llama.cpp scales the attention "
            f"of this shape by {scale:g}"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        if getattr(config, name) is None:
            yield f"{name}: null, where llama.cpp has a value of its own"


def _add_gemma2(writer: Any, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


# By model_type, which is the architecture's name in a GGUF file too.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("silu", rotates_in_pairs=True),
    "qwen2": Architecture("silu", has_qkv_bias=True, check=_qwen),
    "qwen3": Architecture("silu", check=_qwen),
    "gemma2": Architecture(
        "gelu_pytorch_tanh",
        adds_one_to_norms=True,
        must_be_tied=True,
        check=_gemma2,
        add=_add_gemma2,
    ),
}


def architecture_of(config: Any) -> Architecture:
    """Returns the architecture of a model by its config.

    Raises:
        Incompatible: Lectern does not write GGUF files of this type, or llama.cpp would compute
            something else than the model; the message names every setting that is in the way.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise Incompatible(
            f"a student of type {kind} cannot be exported as GGUF, only {', '.join(ARCHITECTURES)}"
            f"; {_INSTEAD}"
        )
    problems = list(_problems(config, ARCHITECTURES[kind]))
    if problems:
        raise Incompatible(
            f"this {kind} student cannot be exported as GGUF, since llama.cpp would compute "
            f"something else: {'; '.join(problems)}; {_INSTEAD}"
        )
    return ARCHITECTURES[kind]


def _problems(config: Any, architecture: Architecture) -> Iterator[str]:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != architecture.activation:
        yield f"activation {activation}: llama.cpp computes {architecture.activation}"
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            yield f"{name}: true: llama.cpp has no such biases"
    if architecture.must_be_tied and not config.tie_word_embeddings:
        yield "tie_word_embeddings: false: llama.cpp has no output head beside the embedding"
    rope = config.rope_parameters or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _ROPE_TYPES or (rope_type == "llama3" and config.model_type != "llama"):
        yield f"rope_type {rope_type}: only {' and '.join(_ROPE_TYPES)} (for llama) are exported"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield "partial_rotary_factor: llama.cpp rotates whole heads"
    yield from architecture.check(config)


def head_dim(config: Any) -> int:
    """Returns the size of an attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def add_settings(writer: Any, config: Any) -> None:
    """Writes the settings of a model into a GGUF file, by a gguf.GGUFWriter."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    ARCHITECTURES[config.model_type].add(writer, config)


def rope_divisors(config: Any) -> np.ndarray | None:
    """Returns by what each rotary frequency is divided, float32 [head_dim / 2]; None if by 1.

    Llama 3.1 stretches long wavelengths by `factor`, leaves short ones, and blends in between.
    """
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "llama3":
        return None
    dimensions = head_dim(config)
    exponents = np.arange(0, dimensions, 2, dtype=np.float64) / dimensions
    wavelengths = 2 * math.pi * float(rope["rope_theta"]) ** exponents
    factor, low, high = (
        float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    turns = float(rope["original_max_position_embeddings"]) / wavelengths
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)  # of the unscaled frequency
    return (1.0 / ((1.0 - share) / factor + share)).astype(np.float32)
