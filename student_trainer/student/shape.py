"""Reads from a model the shape that lectern_common/checks/memory.py needs.

The parameters need no memory: a model on the meta device has the same shape.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lectern_common.checks.config_fields import (
    EXPERTS_PER_TOKEN,
    HEAD_SIZE,
    HEADS,
    HIDDEN_SIZE,
    KEY_HEADS,
    LAYERS,
    MLP_SIZE,
    VOCAB_SIZE,
    is_all_attention,
    mean,
    number,
    numbers,
)
from lectern_common.checks.needs.memory import ModelShape
from lectern_common.spec.sections import StudentSpec
from lectern_models.layers import layer_lists, layers_of
from lectern_models.loading import build_causal_lm
from student_trainer.student.lora import add_adapters

_ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Returns the model's shape, with its current layers and adapters.

    Widths that differ from layer to layer are their mean. A width that the config does not name is
    0, and the activations are then not known.
    """
    config: dict[str, Any] = model.config.to_dict()
    parameters = list(model.parameters())
    vocab_size, hidden = _head_shape(model, config)
    heads = mean(numbers(config, HEADS))
    head_size = mean(numbers(config, HEAD_SIZE)) or (hidden // heads if heads else 0)
    key_heads = mean(numbers(config, KEY_HEADS)) or heads
    mlp = mean(numbers(config, MLP_SIZE)) or 4 * hidden
    layers = _layers(model)
    in_layers = [{p: p.numel() for p in layer.parameters()} for layer in layers_of(model)]
    shared_out = {p for layer in in_layers for p in layer}
    num_layers = number(config, LAYERS) or len(in_layers)
    text: Any = model.config.get_text_config(decoder=True)
    dropout = any(getattr(text, name, 0.0) for name in _ATTENTION_DROPOUTS)
    return ModelShape(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        num_layers=num_layers if layers is None else len(layers),
        hidden_size=hidden,
        mlp_size=mlp * (number(config, EXPERTS_PER_TOKEN) or 1),
        query_size=heads * head_size,
        key_size=key_heads * head_size,
        num_heads=heads,
        vocab_size=vocab_size,
        num_outside=sum(p.numel() for p in parameters if p not in shared_out),
        num_largest_layer=max((sum(layer.values()) for layer in in_layers), default=0),
        keeps_scores=model.config._attn_implementation == "eager" or dropout,
        activations_known=is_all_attention(config) and hidden > 0,
    )


def _head_shape(model: PreTrainedModel, config: dict[str, Any]) -> tuple[int, int]:
    """Returns vocabulary and hidden size: those of the output head, if there is a plain one."""
    head: object = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        vocab_size, hidden = head.weight.shape
        return int(vocab_size), int(hidden)
    return number(config, VOCAB_SIZE) or 0, number(config, HIDDEN_SIZE) or 0


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
