"""The objective against TRL 1.16, Liger 0.8.5 and plain PyTorch: time, memory, error.

Times come from rounds over all of them on one thread, as ratios within a round; memory from one
process for each, above its inputs; gradient errors against float64. Losses are compared first.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.memory import MemoryGrowth, peak_bytes_of
from benchmarks.pairs import seconds
from benchmarks.trainer.objective_ways import WAYS, Case, Inputs, error, exact, inputs, step

SMALL = Case(32_768, 256, 1_024, 512)
LARGE = Case(151_936, 896, 3_584, 256)
PEERS = [way for way in WAYS if way != "ours"]
_ERROR_TOKENS = 32
# Relative to ours. In bfloat16 plain PyTorch rounds logits, Liger also log-probabilities and
# the loss itself.
_LOSS_TOLERANCE = {("plain", "bfloat16"): 2e-2, ("liger", "bfloat16"): 5e-2}
_FLOAT32_TOLERANCE = 1e-3


def measure(rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Yields times and errors of each size and dtype, then memory."""
    torch.set_num_threads(1)
    for case in (SMALL, LARGE):
        for dtype in ("float32", "bfloat16"):
            named = replace(case, dtype=dtype)
            yield {**asdict(named), **_errors(named), **_times(named, rounds)}
    yield _memory(replace(SMALL, tokens=4_096))
    yield _memory(replace(SMALL, tokens=4_096, dtype="bfloat16"))
    yield _memory(replace(LARGE, tokens=4_096))  # Plain PyTorch takes about 20 GB here.


def _times(case: Case, rounds: int) -> dict[str, Any]:
    """Returns our seconds, each peer's over ours in the same round, and how far losses differ."""
    given = inputs(case)
    losses = {way: step(way, given) for way in WAYS}
    apart = {way: abs(losses[way] / losses["ours"] - 1) for way in PEERS}
    for way in PEERS:
        assert apart[way] < _LOSS_TOLERANCE.get((way, case.dtype), _FLOAT32_TOLERANCE), losses
    turns = [{way: seconds(partial(step, way, given)) for way in WAYS} for _ in range(rounds)]
    return {
        "loss": losses["ours"],
        **{f"{way}_loss_apart": apart[way] for way in PEERS},
        "seconds": median(turn["ours"] for turn in turns),
        **{f"{way}_over_ours": median(turn[way] / turn["ours"] for turn in turns) for way in PEERS},
        "goals": {
            "trl_over_ours": ">= 2" if case.dtype == "float32" else ">= 4",
            "liger_over_ours": ">= 1.0",
        },
    }


def _errors(case: Case) -> dict[str, float]:
    """Returns each way's relative gradient errors, for hidden states and weight."""
    given = inputs(replace(case, tokens=_ERROR_TOKENS))
    _, hidden_ND, weight_VD = exact(given)
    found = {}
    for way in WAYS:
        step(way, given)
        found[f"{way}_hidden_error"] = error(given.hidden_ND.grad, hidden_ND)
        found[f"{way}_weight_error"] = error(given.weight_VD.grad, weight_VD)
    return found


def _memory(case: Case) -> dict[str, Any]:
    """Returns each way's peak, and the ratio of ours to ours at a quarter of the tokens.

    The ratio leaves out the [N, D] gradient, which has to be returned.
    """
    few = replace(case, tokens=case.tokens // 4)
    peaks = {way: _peak_bytes(way, case) for way in WAYS}
    result_bytes = case.student_hidden * (2 if case.dtype == "bfloat16" else 4)
    without_result = [peaks["ours"] - case.tokens * result_bytes]
    without_result.append(_peak_bytes("ours", few) - few.tokens * result_bytes)
    return {
        "vocab_size": case.vocab_size,
        "dtype": case.dtype,
        "tokens": case.tokens,
        **{f"{way}_peak_bytes": peak for way, peak in peaks.items()},
        "growth": without_result[0] / without_result[1],
        "of_plain": peaks["ours"] / peaks["plain"],
        "goals": {"of_plain": "<= 0.1", "growth": "<= 1.05"},
    }


def _peak_bytes(way: str, case: Case) -> int:
    """Returns how far one step raises the peak memory of a fresh process above its inputs."""
    return peak_bytes_of("benchmarks.trainer.objective_peers", way, json.dumps(asdict(case)))


def _print_peak(way: str, case: Case) -> None:
    given: Inputs = inputs(case)
    step(way, inputs(replace(case, vocab_size=64, tokens=2)))  # warm-up
    growth = MemoryGrowth()
    step(way, given)
    print(growth.peak_bytes())


if __name__ == "__main__":
    _print_peak(sys.argv[1], Case(**json.loads(sys.argv[2])))
