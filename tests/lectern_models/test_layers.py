"""Layers are found, and lists inside layers are not mistaken for them."""

from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForCausalLM

from lectern_models.layers import layer_lists, layers_of
from tests.support.models import write_tiny_model


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("qwen2", "model.layers"),
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
        ("mixtral", "model.layers"),
        ("falcon_h1", "model.layers"),
    ],
)
def test_a_models_layers_are_its_one_outermost_list(
    tmp_path: Path, architecture: str, name: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture, layers=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = model.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    assert layer_lists(model) == {name: layers}
    assert layers_of(model) == list(layers)
    assert len(layers_of(model)) == 3


def test_lists_in_lists_are_parts_of_a_layer() -> None:
    experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    first, second = nn.Sequential(experts), nn.Linear(2, 2)
    layers, others = nn.ModuleList([first, second]), nn.ModuleList([nn.Linear(1, 1)])
    root = nn.ModuleDict({"layers": layers, "others": others})
    assert layer_lists(root) == {"layers": layers, "others": others}
    assert layers_of(root) == [first, second, others[0]]
    assert layer_lists(layers) == {"": layers} and layers_of(layers) == [first, second]
    assert layer_lists(nn.Linear(1, 1)) == {}
