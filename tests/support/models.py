"""Small random models on disk, written by transformers alone: nothing here is under test."""

import json
from pathlib import Path
from typing import Any

# What an architecture needs on top of the common settings. Heads of size hidden / 4.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"n_inner": 64},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8},
    "cohere": {"num_key_value_heads": 2},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 8.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},  # its head has a bias
    "olmo2": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    # Attention and a state-space layer side by side; its head multiplies.
    "falcon_h1": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
        "lm_head_multiplier": 0.125,
    },
    "hyperclovax": {"num_key_value_heads": 2, "head_dim": 8, "logits_scaling": 8.0},
}

_CORPUS = [
    "def add(first, second):\n    return first + second\n",
    "class Lectern:\n    def __init__(self, teacher):\n        self.teacher = teacher\n",
    "for student in students:\n    student.learn(teacher.logits(student.tokens))\n",
    "import os\nimport sys\n\nif __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n",
    "the quick brown fox jumps over the lazy dog, and the dog does not mind at all\n",
]


def write_tiny_model(
    folder: Path,
    architecture: str = "qwen2",
    *,
    vocab_size: int = 97,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    max_positions: int = 128,
    tied: bool | None = None,
    dtype: str = "float32",
    spread: float = 0.2,
    tokenizer: bool = False,
    weights: bool = True,
    **config: Any,
) -> Path:
    """Writes config.json, model.safetensors and, on request, tokenizer.json; returns the folder.

    Args:
        folder: made where it is missing.
        tied: input and output embeddings are one tensor; None leaves it to the architecture.
        spread: standard deviation of the initial weights; transformers' 0.02 gives nearly flat
            logits, which hide mistakes.
        tokenizer: also write a byte-level BPE tokenizer; vocab_size must then be 257 or more.
        weights: False writes config.json alone (a student from scratch).
        config: further config.json settings, over the architecture's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": max_positions,
        "initializer_range": spread,
        "init_std": spread,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **ARCHITECTURES.get(architecture, {}),
        **config,
    }
    if tied is not None:
        settings["tie_word_embeddings"] = tied
    folder.mkdir(parents=True, exist_ok=True)
    model_config = AutoConfig.for_model(architecture, **settings)
    if weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    else:
        model_config.save_pretrained(folder)
    if tokenizer:
        write_tiny_tokenizer(folder, vocab_size)
    return folder


def write_tiny_tokenizer(folder: Path, vocab_size: int = 300) -> Path:
    """Writes a byte-level BPE tokenizer.json (and tokenizer_config.json); returns its path.

    Id 0 is <|endoftext|>, then the 256 bytes, then merges; it may have fewer than vocab_size
    tokens, as real tokenizers do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    bpe.save(str(path))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return path
