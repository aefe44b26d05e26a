"""Writes small random models to disk, using only transformers."""

from collections.abc import Sequence
from pathlib import Path

VOCAB_SIZE = 97
MAX_POSITIONS = 512


def write_model(
    folder: Path,
    *,
    vocab_size: int = VOCAB_SIZE,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    dtype: str = "float32",
    bad_tokens: dict[int, float] | None = None,
    weights: bool = True,
    ends: Sequence[int] = (),
) -> Path:
    """Writes config.json and (unless weights is False) model.safetensors; returns the folder.

    bad_tokens: id -> the value that fills its embedding, such as nan.
    ends: ids that end a text.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=list(ends) or None,
        pad_token_id=None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not weights:
        config.save_pretrained(folder)
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    with torch.no_grad():
        for token, value in (bad_tokens or {}).items():
            model.get_input_embeddings().weight[token] = value
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
