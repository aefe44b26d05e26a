"""What memory_estimate.py needs to know of a model, read off the model itself.

Its parameters need no memory: a model on the meta device has the same shape.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lectern_common.memory_estimate import ModelShape

# An MLP's width, by whoever names it; four times the hidden size where nobody does.
_MLP_SIZES = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Returns the model's shape, with the layers and adapters that it has now."""
    config: Any = model.config.get_text_config()
    parameters = list(model.parameters())
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or hidden // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    mlp = next((getattr(config, name) for name in _MLP_SIZES if getattr(config, name, None)), None)
    dropout = any(getattr(config, name, 0.0) for name in _ATTENTION_DROPOUTS)
    return ModelShape(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        num_layers=_num_layers(model, int(config.num_hidden_layers)),
        hidden_size=hidden,
        mlp_size=int(mlp or 4 * hidden) * int(getattr(config, "num_experts_per_tok", None) or 1),
        query_size=heads * head_size,
        key_size=key_heads * head_size,
        num_heads=heads,
        vocab_size=int(config.vocab_size),
        keeps_scores=model.config._attn_implementation == "eager" or dropout,
    )


def _num_layers(model: PreTrainedModel, configured: int) -> int:
    """Returns the layers that are there: some may have been left out."""
    body: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    return len(layers) if isinstance(layers, nn.ModuleList) else configured
