"""The chunked objective against plain PyTorch with all logits: time and peak memory.

The baseline is the usual PyTorch: both heads' logits for all tokens,
`cross_entropy` and `kl_div` of log-softmaxes, `backward()`. Same inputs, one thread. Each side's
peak memory is measured in its own process, above its inputs.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.memory import MemoryGrowth, peak_bytes_of
from benchmarks.pairs import paired
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.top_k import log_normalizers, ordered_top_k
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.targets import HiddenTargets, TeacherTargets, TopKTargets

ALPHA, TEMPERATURE, TOP_K = 0.3, 2.0, 64


@dataclass(frozen=True)
class Case:
    """A vocabulary, and few enough tokens for a laptop."""

    vocab_size: int
    tokens: int
    student_hidden: int
    teacher_hidden: int


CASES = (
    Case(2_048, 2_048, 64, 192),
    Case(32_768, 512, 128, 256),
    Case(151_936, 256, 128, 256),
)


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor
    head: OutputHead
    labels: Tensor
    hidden_targets: HiddenTargets
    top_k_targets: TopKTargets


def inputs(case: Case) -> Inputs:
    """Returns random inputs of a case, the same on every call."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    teacher = OutputHead(normal(case.vocab_size, case.teacher_hidden) / case.teacher_hidden**0.5)
    hidden_targets = HiddenTargets(normal(case.tokens, case.teacher_hidden), teacher)
    logits = teacher.logits(hidden_targets.hidden_ND)
    values, ids = ordered_top_k(logits, TOP_K)
    top_k_targets = TopKTargets(
        values,
        ids,
        *log_normalizers(logits, ids, TEMPERATURE),
        TEMPERATURE,
        case.vocab_size,
    )
    weight = normal(case.vocab_size, case.student_hidden) / case.student_hidden**0.5
    return Inputs(
        normal(case.tokens, case.student_hidden).requires_grad_(),
        OutputHead(weight.requires_grad_()),
        torch.randint(case.vocab_size, (case.tokens,), generator=generator),
        hidden_targets,
        top_k_targets,
    )


def chunked(given: Inputs, targets: TeacherTargets) -> float:
    """Returns the loss of the trainer's objective, after its backward pass."""
    given.hidden.grad = given.head.weight_VD.grad = None
    objective = Objective(ALPHA, TEMPERATURE)
    loss = distillation_loss(
        given.hidden, given.head, given.labels, targets, objective, len(given.labels)
    )
    loss.total.backward()
    return loss.total.item()


def plain(given: Inputs) -> float:
    """Returns the same loss from all logits at once, after autograd's backward pass."""
    given.hidden.grad = given.head.weight_VD.grad = None
    student = given.hidden @ given.head.weight_VD.T
    teacher = given.hidden_targets.hidden_ND @ given.hidden_targets.head.weight_VD.T
    divergence = functional.kl_div(
        functional.log_softmax(student / TEMPERATURE, -1),
        functional.log_softmax(teacher / TEMPERATURE, -1),
        log_target=True,
        reduction="batchmean",
    )
    total = ALPHA * functional.cross_entropy(student, given.labels)
    total = total + (1 - ALPHA) * TEMPERATURE**2 * divergence
    total.backward()
    return total.item()


WAYS: dict[str, Callable[[Inputs], float]] = {
    "hidden": lambda given: chunked(given, given.hidden_targets),
    "top_k": lambda given: chunked(given, given.top_k_targets),
    "plain": plain,
}


def peak_bytes(way: str, case: Case) -> int:
    """Returns how far one call raises the peak memory of a fresh process above its inputs."""
    return peak_bytes_of("benchmarks.trainer.objective", way, json.dumps(asdict(case)))


def measure(pairs: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row per vocabulary and representation."""
    torch.set_num_threads(1)
    for case in CASES:
        given = inputs(case)
        baseline_bytes = peak_bytes("plain", case)
        difference = abs(WAYS["hidden"](given) - plain(given))
        for way in ("hidden", "top_k"):
            times = paired(partial(WAYS[way], given), partial(plain, given), pairs)
            yield {
                "vocab_size": case.vocab_size,
                "tokens": case.tokens,
                "targets": way,
                "seconds": times.ours_seconds,
                "plain_seconds": times.baseline_seconds,
                "time_ratio": times.ratio,
                "peak_bytes": (ours := peak_bytes(way, case)),
                "plain_peak_bytes": baseline_bytes,
                "memory_ratio": ours / baseline_bytes,
                "loss_difference": difference if way == "hidden" else None,
            }


def _print_peak() -> None:
    torch.set_num_threads(1)
    given = inputs(Case(**json.loads(sys.argv[2])))
    growth = MemoryGrowth()
    WAYS[sys.argv[1]](given)
    print(growth.peak_bytes())


if __name__ == "__main__":
    _print_peak()
