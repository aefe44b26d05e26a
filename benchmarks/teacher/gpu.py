"""A 7B teacher on one CUDA device: tokens per second, share of the peak FLOP/s, memory.

    score   `hidden` and `top_k` 64 through the server, in both modes: sequences of 1,024 tokens,
            and the file lengths of the standard library (bytes / 4, at most 2,048 tokens)
    plain   dense log-probabilities by plain PyTorch: the whole model, 8 x 1,024 tokens a forward

The model has the shape of Qwen2.5-7B and random weights in bfloat16; it is written to a temporary
folder (15 GB) and loaded like any other. The share of the peak counts the body's matrix products
and attention, and nothing of the head.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.machine import peak_flops
from benchmarks.pairs import seconds
from benchmarks.servers import served
from benchmarks.teacher.serving import Client, Tokens, file_lengths
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import Representation

QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152_064,
    "hidden_size": 3_584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}
STUDENT_VOCAB_SIZE = 151_936


def measure(config: dict[str, Any] = QWEN_7B, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Yields one row per figure.

    Args:
        config: the model's; a small one tries the code out.
        device: "cuda"; "cpu" tries the code out.
    """
    configure_logs("warning")
    disable_progress_bar()
    if device == "cuda" and not torch.cuda.is_available():
        yield {"figure": "none", "reason": "this torch sees no CUDA device"}
        return
    vocab_size = min(STUDENT_VOCAB_SIZE, config["vocab_size"])
    generator = np.random.default_rng(0)
    lengths = {
        "1,024 each": [1024] * 256,
        "file lengths": generator.permutation(file_lengths())[:256].tolist(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = _write(folder / "teacher", config, device)
        for mode in ("throughput", "independent"):
            options = ("--mode", mode, "--device", device, "--cache-bytes", "0")
            with served(model, folder, *options) as server, Client(server.address) as client:
                for name, some in lengths.items():
                    sequences = _random(some, vocab_size, generator)
                    yield from _score(client, sequences, name, mode, vocab_size, config)
                yield {"figure": f"memory, {mode}", "used_gib": _used_gib(device)}
        yield _plain(model, vocab_size, config, device)


def _score(
    client: Client,
    sequences: list[Tokens],
    name: str,
    mode: str,
    vocab_size: int,
    config: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    kinds = {
        "hidden": Representation("hidden"),
        "top_k 64": Representation("top_k", 64),
    }
    for kind, asked in kinds.items():
        score = partial(client.score, asked=asked, vocab=vocab_size)
        score(sequences[:32])  # warm-up: chooses kernels
        before = client.stats()
        took = seconds(partial(score, sequences))
        after = client.stats()
        yield {
            "figure": f"{kind}, {mode}, {name}",
            "tokens_per_second": sum(map(len, sequences)) / took,
            "share_of_peak": _body_flops(sequences, config) / took / peak_flops(),
            "share_of_peak_while_computing": _body_flops(sequences, config)
            / (after.compute_seconds - before.compute_seconds)
            / peak_flops(),
            "padding": (after.padding_tokens - before.padding_tokens)
            / (after.scored_tokens - before.scored_tokens),
            "goals": {"share_of_peak_while_computing": ">= 0.55"},
        }


def _plain(model: Path, vocab_size: int, config: dict[str, Any], device: str) -> dict[str, Any]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    loaded.to(device)
    ids_BS = torch.randint(vocab_size, (8, 1024), device=device)

    @torch.inference_mode()
    def forward() -> None:
        logits = loaded(input_ids=ids_BS, use_cache=False).logits[..., :vocab_size]
        logits.float().log_softmax(-1)
        if device == "cuda":
            torch.cuda.synchronize()

    forward()
    took = min(seconds(forward) for _ in range(5))
    sequences = [np.zeros(1024, np.uint32)] * 8
    return {
        "figure": "plain PyTorch, dense log-probabilities, 8 x 1,024",
        "tokens_per_second": ids_BS.numel() / took,
        "share_of_peak": _body_flops(sequences, config) / took / peak_flops(),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
    }


def _write(folder: Path, config: dict[str, Any], device: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return folder


def _random(lengths: list[int], vocab_size: int, generator: np.random.Generator) -> list[Tokens]:
    return [generator.integers(vocab_size, size=length, dtype=np.uint32) for length in lengths]


def _body_flops(sequences: list[Tokens], config: dict[str, Any]) -> float:
    """Returns 2 FLOPs per weight and token of the linear layers, plus causal attention."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads_share: float = config["num_key_value_heads"] / config["num_attention_heads"]
    intermediate = int(config["intermediate_size"])
    weights = hidden * hidden * (2 + 2 * heads_share) + 3 * hidden * intermediate
    tokens = sum(map(len, sequences))
    pairs = sum(len(ids) * (len(ids) + 1) / 2 for ids in sequences)
    return layers * (2.0 * weights * tokens + 4.0 * hidden * pairs)


def _used_gib(device: str) -> float:
    """Returns the memory in use on the card: weights, workspace and torch's cache."""
    if device != "cuda":
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.check_output(query, text=True).split()[0]) / 1024
