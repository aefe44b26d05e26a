"""The objective against TRL 1.16, Liger 0.8.5 and plain PyTorch: time, memory, error.

Time in rounds of all ways, one thread, the ratio of each round; memory in a process of each way's
own, above what its inputs take; errors of the gradients against float64. Losses are compared first.
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
from benchmarks.objective_ways import WAYS, Case, Inputs, error, exact, inputs, step
from benchmarks.pairs import seconds

SMALL = Case(32_768, 256, 1_024, 512)
LARGE = Case(151_936, 896, 3_584, 256)
PEERS = [way for way in WAYS if way != "ours"]
_ERROR_TOKENS = 32
# Against ours, relative. In bfloat16 plain PyTorch rounds logits, Liger also log-probabilities and
# the loss itself.
_LOSS_TOLERANCE = {("plain", "bfloat16"): 2e-2, ("liger", "bfloat16"): 5e-2}
_FLOAT32_TOLERANCE = 1e-3


def measure(rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Yields times, errors and memory of each size and dtype."""
    torch.set_num_threads(1)
    for case in (SMALL, LARGE):
        for dtype in ("float32", "bfloat16"):
            named = replace(case, dtype=dtype)
            yield {**asdict(named), **_errors(named), **_times(named, rounds)}
    # Plain PyTorch at half the tokens where its [N, V] tensors would not fit a laptop.
    yield _memory(SMALL, tokens=4_096, peer_tokens=4_096)
    yield _memory(replace(SMALL, dtype="bfloat16"), tokens=4_096, peer_tokens=4_096)
    yield _memory(LARGE, tokens=4_096, peer_tokens=2_048)


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
    """Returns the errors of each way's gradients, of hidden states and of weight, by their norm."""
    given = inputs(replace(case, tokens=_ERROR_TOKENS))
    _, hidden_ND, weight_VD = exact(given)
    found = {}
    for way in WAYS:
        step(way, given)
        found[f"{way}_hidden_error"] = error(given.hidden_ND.grad, hidden_ND)
        found[f"{way}_weight_error"] = error(given.weight_VD.grad, weight_VD)
    return found


def _memory(case: Case, tokens: int, peer_tokens: int) -> dict[str, Any]:
    """Returns each way's peak; ours also at a quarter of the tokens, without its [N, D] result."""
    many, few = replace(case, tokens=tokens), replace(case, tokens=tokens // 4)
    ours_bytes, few_bytes = _peak_bytes("ours", many), _peak_bytes("ours", few)
    peers = {way: _peak_bytes(way, replace(case, tokens=peer_tokens)) for way in PEERS}
    result_bytes = case.student_hidden * (2 if case.dtype == "bfloat16" else 4)
    return {
        "vocab_size": case.vocab_size,
        "dtype": case.dtype,
        "tokens": tokens,
        "peer_tokens": peer_tokens,
        "peak_bytes": ours_bytes,
        "growth": (ours_bytes - tokens * result_bytes) / (few_bytes - tokens // 4 * result_bytes),
        **{f"{way}_peak_bytes": peak for way, peak in peers.items()},
        "of_plain": ours_bytes / peers["plain"],
        "goals": {"of_plain": "<= 0.1", "growth": "<= 1.05"},
    }


def _peak_bytes(way: str, case: Case) -> int:
    """Returns how far one step raises the peak memory of a fresh process above its inputs."""
    return peak_bytes_of("benchmarks.objective_peers", way, json.dumps(asdict(case)))


def _print_peak(way: str, case: Case) -> None:
    given: Inputs = inputs(case)
    step(way, inputs(replace(case, vocab_size=64, tokens=2)))  # what is loaded at the first use
    growth = MemoryGrowth()
    step(way, given)
    print(growth.peak_bytes())


if __name__ == "__main__":
    _print_peak(sys.argv[1], Case(**json.loads(sys.argv[2])))
