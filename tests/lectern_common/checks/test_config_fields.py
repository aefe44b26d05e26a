"""Numbers from configs under every name, per layer, and in parts."""

from typing import Any

import pytest

from lectern_common.checks.config_fields import (
    HEAD_SIZE,
    HEADS,
    LAYERS,
    MLP_SIZE,
    POSITIONS,
    VOCAB_SIZE,
    is_all_attention,
    mean,
    number,
    numbers,
)


@pytest.mark.parametrize("name", POSITIONS)
def test_a_length_limit_is_read_under_every_name_and_in_a_text_part(name: str) -> None:
    assert number({name: 96}, POSITIONS) == 96
    assert number({"vision_config": {name: 5}, "text_config": {name: 96}}, POSITIONS) == 96


@pytest.mark.parametrize(
    "value", [None, -1, 0, True, 1e30, "2048", [], {}, [None], {"a": 1}], ids=repr
)
def test_what_is_not_a_positive_whole_number_is_unknown(value: Any) -> None:
    assert number({"max_position_embeddings": value}, POSITIONS) is None
    assert number({"max_position_embeddings": value, "n_positions": 64}, POSITIONS) == 64
    assert numbers({"text_config": value}, POSITIONS) == []


def test_the_name_that_the_architecture_uses_comes_before_the_others() -> None:
    assert number({"n_ctx": 512, "n_positions": 1024, "seq_length": 8}, POSITIONS) == 1024


def test_settings_with_a_value_per_layer_are_lists() -> None:
    config = {"num_hidden_layers": 3, "intermediate_size": [64, 128, 64], "num_heads": [4, 2, 4]}
    assert numbers(config, MLP_SIZE) == [64, 128, 64] and mean([64, 128, 64]) == 86
    assert numbers(config, HEADS) == [4, 2, 4]
    assert number(config, MLP_SIZE) == 128


def test_exceptions_of_single_layers_are_counted() -> None:
    config = {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "per_layer_config": {"01": {"head_dim": 16}, "03": {"head_dim": 16, "num_heads": 2}},
    }
    assert sorted(numbers(config, HEAD_SIZE)) == [8, 8, 16, 16]
    assert numbers(config, HEADS) == [2]
    assert number(config, LAYERS) == 4
    assert number({"text_config": config}, HEAD_SIZE) == 16


def test_a_config_that_says_nothing_gives_nothing() -> None:
    assert number({}, VOCAB_SIZE) is None and numbers({}, HEADS) == [] and mean([]) == 0


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"num_attention_heads": 4}, True),
        ({"n_head": 4}, True),
        ({"num_attention_heads": 4, "layer_types": ["sliding_attention", "full_attention"]}, True),
        ({"text_config": {"num_attention_heads": 4}}, True),
        ({}, False),
        ({"state_size": 16}, False),
        ({"num_heads": 8, "state_size": 16}, False),
        ({"num_attention_heads": 4, "mamba_d_state": 16}, False),
        ({"num_attention_heads": 4, "layer_types": ["linear_attention", "full_attention"]}, False),
        ({"num_attention_heads": 4, "layers_block_type": ["mamba", "attention"]}, False),
        ({"num_attention_heads": 4, "block_types": ["recurrent", "attention"]}, False),
        ({"num_attention_heads": 4, "hybrid_override_pattern": "M*-M"}, False),
        ({"num_attention_heads": 4, "layer_types": ["conv", "full_attention"]}, False),
        ({"text_config": {"num_attention_heads": 4, "ssm_state_size": 8}}, False),
    ],
)
def test_layers_that_are_not_attention_are_known_by_their_settings(
    config: dict[str, Any], known: bool
) -> None:
    assert is_all_attention(config) is known
