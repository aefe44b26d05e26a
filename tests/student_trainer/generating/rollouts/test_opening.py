"""How many rows are written at a time: so many that their keys and values fit into memory."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from lectern_models.loading import load_causal_lm
from student_trainer.generating.cache import bytes_per_token, new_cache
from student_trainer.generating.rollouts.opening import rows_in_hand
from tests.support.models import write_tiny_model


def test_a_small_student_writes_as_many_rows_as_tokens_allow() -> None:
    # 24 layers, 2 heads of 64 for keys and values: in bfloat16, then in float32.
    assert rows_in_hand(512, 2 * 24 * 2 * 64 * 2) == rows_in_hand(512, 2 * 24 * 2 * 64 * 4) == 256
    assert rows_in_hand(512, 0) == 256
    assert rows_in_hand(1 << 18, 0) == 1


def test_a_large_student_writes_as_many_rows_as_bytes_allow() -> None:
    # 32 layers, 32 heads of 128: half a MiB a token in bfloat16.
    assert rows_in_hand(512, 2 * 32 * 32 * 128 * 2) == 16
    assert rows_in_hand(8192, 2 * 32 * 32 * 128 * 2) == 1
    assert rows_in_hand(8193, 2 * 32 * 32 * 128 * 2) == 1


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gpt2", "bloom", "mamba"])
def test_bytes_of_a_token_are_those_of_the_cache(tmp_path: Any, architecture: str) -> None:
    folder = write_tiny_model(tmp_path / "model", architecture, max_positions=64)
    model = load_causal_lm(folder, "float32")
    cache = new_cache(model.config)
    name = "cache_params" if architecture == "mamba" else "past_key_values"
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), use_cache=True, **{name: cache})
    held: list[Any] = [layer.keys for layer in cache.layers if hasattr(layer, "keys")]
    expected = sum(2 * keys[:, :, 0].numel() * keys.element_size() for keys in held)
    assert bytes_per_token(model.config, torch.float32) == expected
    assert bytes_per_token(model.config, torch.bfloat16) == expected // 2


def test_keys_of_latent_attention_count_whole() -> None:
    settings: dict[str, Any] = {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_size": 64,
        "head_dim": 8,
        "qk_head_dim": 24,
    }
    config = PreTrainedConfig.from_dict(settings)
    assert bytes_per_token(config, torch.bfloat16) == 2 * 3 * 4 * 24 * 2
