"""Whole on-policy steps with a teacher server against TRL's DistillationTrainer.

The same teacher and student (steps.py; random weights). Our server and student have one thread
each; TRL has two threads in one process. learners.py says what is kept equal. Tokens per second are
of the texts, and leave out the warm-up.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from benchmarks.servers import served
from benchmarks.trainer.learners import Task, Turn, learning
from benchmarks.trainer.on_policy.steps import NEW_TOKENS, PROMPTS, VOCABULARIES, write_models
from lectern_common.logs import configure_logs

# Timed steps of a turn.
STEPS = 4
_LEARNERS = "benchmarks.trainer.on_policy.learners"


def measure(
    pairs: int = 5, steps: int = STEPS, vocabularies: Sequence[int] = VOCABULARIES
) -> Iterator[dict[str, Any]]:
    """Yields one row per vocabulary."""
    configure_logs("warning")
    disable_progress_bar()
    for vocab_size in vocabularies:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            folder = Path(scratch)
            teacher, student = write_models(folder, vocab_size)
            server = stack.enter_context(served(teacher, folder))
            alone = Task(
                str(teacher), str(student), vocab_size, PROMPTS, NEW_TOKENS, steps, threads=2
            )
            ours = replace(alone, threads=1, address=server.address)
            learners = {
                way: stack.enter_context(learning(way, task, _LEARNERS))
                for way, task in (("lectern", ours), ("stale", ours), ("trl", alone))
            }
            first = {way: learner.turn() for way, learner in learners.items()}
            turns = [{way: one.turn() for way, one in learners.items()} for _ in range(pairs)]
        yield _row(alone, first, turns)


def _row(task: Task, first: dict[str, Turn], turns: list[dict[str, Turn]]) -> dict[str, Any]:
    def speed(way: str) -> float:
        return task.tokens / statistics.median(turn[way].seconds for turn in turns)

    def against_trl(way: str) -> float:
        return statistics.median(turn["trl"].seconds / turn[way].seconds for turn in turns)

    ours, theirs = first["lectern"].losses[0], first["trl"].losses[0]
    return {
        "figure": "whole step",
        "vocab_size": task.vocab_size,
        # Of the first step: the same weights and divergence, other prompts and texts.
        "first_loss": ours,
        "first_loss_difference": abs(ours - theirs) / theirs,
        "tokens_per_second": speed("lectern"),
        "stale_tokens_per_second": speed("stale"),
        "trl_tokens_per_second": speed("trl"),
        "speed_against_trl": against_trl("lectern"),
        "stale_speed_against_trl": against_trl("stale"),
        "pairs": len(turns),
        "goals": {"speed_against_trl": ">= 2", "first_loss_difference": "<= 0.1"},
    }
