"""Writing texts: the generator against transformers' `generate` with a dynamic or a static cache.

8 prompts of 64 tokens, random weights, draws at temperature 1, one thread each. `equal`: each text
has 128 tokens. `mixed`: 8 to 120 tokens, 64 in the mean; `generate` computes all rows until the
longest has ended, and we give it that length in advance. `waiting`: four times as many prompts of
mixed lengths, 8 rows at a time; `generate` gets them in batches of 8.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.pairs import seconds
from benchmarks.trainer.on_policy.steps import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    PROMPTS,
    VOCABULARIES,
    write_models,
)
from lectern_models.loading import load_causal_lm
from student_trainer.generating.generator import written
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.sampling import Sampling
from student_trainer.stop import Stop

ROWS, TOKENS = PROMPTS, NEW_TOKENS
SHORTEST, LONGEST = 8, 120
# How long texts are: (prompts, goals).
CASES = {
    "equal": (ROWS, {"speed_against_better": ">= 1.2"}),
    "mixed": (ROWS, {"speed_against_better": ">= 1.5"}),
    "waiting": (4 * ROWS, {}),
}

Ways = dict[str, Callable[[], object]]


def measure(pairs: int = 5, vocabularies: Sequence[int] = VOCABULARIES) -> Iterator[dict[str, Any]]:
    """Yields one row per vocabulary and case."""
    disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for vocab_size in vocabularies:
            with tempfile.TemporaryDirectory() as scratch:
                _, student = write_models(Path(scratch), vocab_size)
                model = load_causal_lm(student, "float32")
            for case, (num_prompts, goals) in CASES.items():
                ways = _ways(model, _lengths(case, num_prompts))
                yield {
                    "figure": "writing",
                    "vocab_size": vocab_size,
                    "lengths": case,
                    **_figures(ways, sum(_lengths(case, num_prompts)), pairs),
                    "pairs": pairs,
                    "goals": goals,
                }
    finally:
        torch.set_num_threads(threads)


def _lengths(case: str, num_prompts: int) -> list[int]:
    if case == "equal":
        return [TOKENS] * num_prompts
    spread = np.linspace(SHORTEST, LONGEST, num_prompts).round().astype(int)
    return [int(one) for one in np.random.default_rng(0).permutation(spread)]


def _ways(model: PreTrainedModel, lengths: Sequence[int]) -> Ways:
    draw = np.random.default_rng(1)
    ids = draw.integers(0, model.config.vocab_size, (len(lengths), PROMPT_TOKENS)).tolist()
    return {
        "ours": partial(_ours, model, ids, lengths),
        "dynamic": partial(_theirs, model, ids, lengths, None),
        "static": partial(_theirs, model, ids, lengths, "static"),
    }


def _ours(model: PreTrainedModel, ids: list[list[int]], lengths: Sequence[int]) -> None:
    numbers = np.random.default_rng(2).random
    texts = written(
        model,
        [Prompt(one, numbers) for one in ids],
        Sampling(1.0, max_new_tokens=TOKENS),
        ends=(),
        stop=Stop(),
        is_over=lambda index, text: len(text) >= lengths[index],
        max_rows=ROWS,
    )
    if sum(len(text.ids) for text in texts) != sum(lengths):
        raise RuntimeError("the texts have other lengths")


@torch.no_grad()
def _theirs(
    model: PreTrainedModel, ids: list[list[int]], lengths: Sequence[int], cache: str | None
) -> None:
    for first in range(0, len(ids), ROWS):
        prompts_BS = torch.tensor(ids[first : first + ROWS])
        generate: Any = model.generate
        generate(
            input_ids=prompts_BS,
            attention_mask=torch.ones_like(prompts_BS),
            max_new_tokens=max(lengths[first : first + ROWS]),
            do_sample=True,
            top_k=0,
            cache_implementation=cache,
            eos_token_id=None,
            pad_token_id=0,
        )


def _figures(ways: Ways, tokens: int, pairs: int) -> dict[str, float]:
    for work in ways.values():
        work()
    turns = [{way: seconds(work) for way, work in ways.items()} for _ in range(pairs)]

    def against(way: str) -> float:
        return statistics.median(turn[way] / turn["ours"] for turn in turns)

    return {
        "tokens_per_second": tokens / statistics.median(turn["ours"] for turn in turns),
        "speed_against_dynamic": against("dynamic"),
        "speed_against_static": against("static"),
        "speed_against_better": min(against("dynamic"), against("static")),
    }
