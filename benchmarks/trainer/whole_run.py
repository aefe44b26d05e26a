"""Whole training steps with a teacher server against TRL's GKDTrainer and a plain loop.

All use the same teacher and student (6.9 M and 1.7 M parameters at V = 8,192; random weights) and
8 x 256 tokens per step. Our server and student have one thread each; the others have two threads in
one process. learners.py says what is kept equal; the losses of the first steps are compared.

Tokens per second leave out the warm-up. Memory is the peak of a process's first turn above its
loaded models; ours is the sum of student and server.
"""

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.memory import MemoryGrowth
from benchmarks.servers import served, write_model
from benchmarks.trainer.learners import Task, Turn, learning
from lectern_common.logs import configure_logs

SEQUENCES, SEQ_LEN = 8, 256
# Steps per turn, by vocabulary size.
STEPS = {8_192: 6, 32_768: 3}
# The first steps of a turn; later losses drift apart by rounding.
COMPARED_STEPS = 4
# Spreads a random teacher's logits as far as a trained one's.
_SHARPNESS = 8.0


def model_config(
    vocab_size: int, hidden_size: int, layers: int, heads: int, intermediate_size: int
) -> dict[str, Any]:
    """Returns the config.json of a Qwen2 model with a tied head."""
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }


def write_teacher(folder: Path, config: dict[str, Any]) -> Path:
    """Writes a teacher with clear preferences; returns its folder."""
    write_model(folder, config, seed=1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(_SHARPNESS)
    model.save_pretrained(folder)
    return folder


def measure(pairs: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row per vocabulary."""
    configure_logs("warning")
    disable_progress_bar()
    for vocab_size, steps in STEPS.items():
        yield _measure_one(vocab_size, steps, pairs)


def _measure_one(vocab_size: int, steps: int, pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        teacher = write_teacher(folder / "teacher", model_config(vocab_size, 256, 6, 4, 704))
        student = write_model(folder / "student", model_config(vocab_size, 128, 3, 4, 352), 2)
        # Each turn scores the same tokens: a cache would make all but the first free.
        server = stack.enter_context(served(teacher, folder, "--cache-bytes", "0"))
        alone = Task(str(teacher), str(student), vocab_size, SEQUENCES, SEQ_LEN, steps, threads=2)
        tasks = {
            "lectern": replace(alone, threads=1, address=server.address),
            "trl": alone,
            "plain": alone,
        }
        learners = {way: stack.enter_context(learning(way, task)) for way, task in tasks.items()}
        server_growth = MemoryGrowth(server.pid)
        first = {way: learner.turn() for way, learner in learners.items()}
        server_bytes = server_growth.peak_bytes()
        turns = [{way: learner.turn() for way, learner in learners.items()} for _ in range(pairs)]
    return _row(alone, first, turns, server_bytes)


def _row(
    task: Task, first: dict[str, Turn], turns: list[dict[str, Turn]], server_bytes: int
) -> dict[str, Any]:
    def speed(way: str) -> float:
        return task.tokens / statistics.median(turn[way].seconds for turn in turns)

    def against(way: str) -> float:
        return statistics.median(turn[way].seconds / turn["lectern"].seconds for turn in turns)

    mib = {way: turn.growth_bytes / 2**20 for way, turn in first.items()}
    server_mib = server_bytes / 2**20
    return {
        "vocab_size": task.vocab_size,
        "loss_difference": loss_difference(first),
        "tokens_per_second": speed("lectern"),
        "trl_tokens_per_second": speed("trl"),
        "plain_tokens_per_second": speed("plain"),
        "speed_against_trl": against("trl"),
        "speed_against_plain": against("plain"),
        "student_mib": mib["lectern"],
        "server_mib": server_mib,
        "trl_mib": mib["trl"],
        "plain_mib": mib["plain"],
        "memory_against_trl": (mib["lectern"] + server_mib) / mib["trl"],
        "pairs": len(turns),
        "goals": {
            "loss_difference": "<= 1e-4",
            "speed_against_trl": ">= 1.5",
            "memory_against_trl": "<= 0.333",
        },
    }


def loss_difference(turns: dict[str, Turn]) -> float:
    """Returns the largest difference between any two learners' losses over the first steps."""
    by_step = zip(*(turn.losses[:COMPARED_STEPS] for turn in turns.values()), strict=True)
    return max(float(max(losses) - min(losses)) for losses in by_step)
