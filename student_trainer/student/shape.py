"""Reads from a model the shape that lectern_common/checks/memory.py needs.

The parameters need no memory: a model on the meta device has the same shape.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lectern_common.checks.memory import ModelShape
from lectern_common.spec.sections import StudentSpec
from lectern_models.layers import layer_lists, layers_of
from lectern_models.loading import build_causal_lm
from student_trainer.student.lora import add_adapters

# Names that configs use for the MLP's width; without one it is 4 times the hidden size.
_MLP_SIZES = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Returns the model's shape, with its current layers and adapters."""
    config: Any = model.config.get_text_config()
    parameters = list(model.parameters())
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    head_size = getattr(config, "head_dim", None) or hidden // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    mlp = next((getattr(config, name) for name in _MLP_SIZES if getattr(config, name, None)), None)
    layers = _layers(model)
    in_layers = [{p: p.numel() for p in layer.parameters()} for layer in layers_of(model)]
    shared_out = {p for layer in in_layers for p in layer}
    dropout = any(getattr(config, name, 0.0) for name in _ATTENTION_DROPOUTS)
    return ModelShape(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        num_layers=int(config.num_hidden_layers) if layers is None else len(layers),
        hidden_size=hidden,
        mlp_size=int(mlp or 4 * hidden) * int(getattr(config, "num_experts_per_tok", None) or 1),
        query_size=heads * head_size,
        key_size=key_heads * head_size,
        num_heads=heads,
        vocab_size=int(config.vocab_size),
        num_outside=sum(p.numel() for p in parameters if p not in shared_out),
        num_largest_layer=max((sum(layer.values()) for layer in in_layers), default=0),
        keeps_scores=model.config._attn_implementation == "eager" or dropout,
    )


def shape_without_weights(origin: StudentSpec, folder: Path) -> ModelShape:
    """Returns the shape of the student that a spec asks for, from its config only.

    Raises:
        NotFound, Misconfigured: as build_causal_lm says.
        InvalidSpec: the model takes no such adapters.
    """
    with torch.device("meta"):
        model = build_causal_lm(folder, seed=0)
        n = origin.keep_every_nth_layer
        layers = _layers(model)
        if n is not None and layers is not None:
            for index in reversed(range(len(layers))):
                if index % n:
                    del layers[index]
        if origin.lora is not None:
            add_adapters(model, origin.lora, seed=0, base=None, revision=None)
    return shape_of(model)


def _layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """Returns the body's list of layers; None unless there is exactly one list."""
    body: nn.Module = model.get_decoder()
    lists = list(layer_lists(body).values())
    return lists[0] if len(lists) == 1 else None
