"""A student shaped like Qwen2.5-0.5B on one CUDA device: whole steps, and only the objective.

    step       the trainer's loop, bfloat16 autocast, AdamW, no activation checkpointing, with and
               without torch.compile: cross entropy only (alpha 1) against exact distillation
               (alpha 0, T = 1) from hidden states, 3,584 wide, and their head held in memory
    objective  forward and backward of the loss of 8,192 tokens in bfloat16, with and without
               torch.compile, against plain PyTorch with all logits, TRL's
               ChunkedDivergenceFunction and Liger's chunked JSD, if installed

FLOPs per token, for the share of the card's peak. P: weights of the body's linear layers, L: its
layers, D: its width, V: vocabulary, S: sequence length.

    6 P + 6 V D + 6 L D (S + 1)      body, head and causal attention, forward and backward
    + 2 V 3,584                      the teacher's head, if there is one

Nothing else is counted: norms, softmax and the optimizer take time but add nothing to the share.

    python -m benchmarks gpu_student --json > benchmarks/gpu_student.json
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.machine import peak_flops
from benchmarks.pairs import paired
from benchmarks.trainer.loops import RandomBatches, train_noted
from benchmarks.trainer.objective_ways import Case, Inputs, inputs, step
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.run.parts import Teaching
from student_trainer.student.student import CausalStudent
from student_trainer.targets import HiddenTargets, TeacherTargets

QWEN_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4_864,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
# The package of each peer, and the goal for our speed against it.
PACKAGES = {"trl": "trl", "liger": "liger_kernel"}
GOALS = {"plain": ">= 3.3", "trl": ">= 1.5"}


@dataclass(frozen=True)
class Sizes:
    """What is measured; small sizes try the code out."""

    config: dict[str, Any]
    teacher_width: int
    lengths: Sequence[int]
    step_tokens: int
    objective_tokens: int
    warm_up_steps: int
    steps: int
    pairs: int
    compiled: Sequence[bool] = (False, True)
    peers: Sequence[str] = ("plain", "trl", "liger")


WHOLE = Sizes(
    QWEN_05B,
    teacher_width=3_584,
    lengths=(1_024, 2_048, 4_096),
    step_tokens=16_384,
    objective_tokens=8_192,
    warm_up_steps=3,
    steps=6,
    pairs=5,
)


@dataclass(frozen=True)
class HeldTeacher:
    """Answers every micro-batch with the same hidden states, held in memory."""

    targets: HiddenTargets

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider."""
        return self.targets


def measure(sizes: Sizes = WHOLE, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Yields one row per length, then one per peer of the objective, both also compiled.

    Args:
        sizes: of models and batches.
        device: "cuda"; "cpu" tries the code out.
    """
    configure_logs("warning")
    disable_progress_bar()
    if device == "cuda" and not torch.cuda.is_available():
        yield {"figure": "none", "reason": "this torch sees no CUDA device"}
        return
    teacher = HeldTeacher(held_targets(sizes, sizes.step_tokens, device))
    for compiled in sizes.compiled:
        student = _student(sizes.config, device)
        if compiled:
            student.compile_body()
        for length in sizes.lengths:
            yield _steps(sizes, student, teacher, length, compiled, device)
        del student
    del teacher
    yield from _objectives(sizes, device)


def held_targets(sizes: Sizes, tokens: int, device: str) -> HiddenTargets:
    """Returns random hidden states of `tokens` tokens, and a head, in bfloat16 on the device."""
    generator = torch.Generator(device).manual_seed(0)
    width, vocab_size = sizes.teacher_width, sizes.config["vocab_size"]
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.bfloat16}
    weight_VD = torch.randn(vocab_size, width, **options) * (2 / width**0.5)
    return HiddenTargets(torch.randn(tokens, width, **options), OutputHead(weight_VD))


def flops_of_a_token(config: dict[str, Any], seq_len: int, teacher_width: int) -> float:
    """Returns FLOPs per token, as defined above; a teacher_width of 0 means no teacher."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    groups = config["num_key_value_heads"] / config["num_attention_heads"]
    weights = hidden * hidden * (2 + 2 * groups) + 3 * hidden * config["intermediate_size"]
    student = 6 * (layers * weights + config["vocab_size"] * hidden)
    attention = 6 * layers * hidden * (seq_len + 1)
    return float(student + attention + 2 * config["vocab_size"] * teacher_width)


def _student(config: dict[str, Any], device: str) -> CausalStudent:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        return CausalStudent.from_config(Path(scratch), 0, torch.device(device), "bfloat16")


def _steps(
    sizes: Sizes,
    student: CausalStudent,
    teacher: HeldTeacher,
    length: int,
    compiled: bool,
    device: str,
) -> dict[str, Any]:
    batches = RandomBatches(sizes.config["vocab_size"], sizes.step_tokens // length, length)

    def step_seconds(alpha: float) -> float:
        notes = train_noted(
            student,
            batches,
            None if alpha == 1 else Teaching(teacher, Representation("hidden")),
            sizes.warm_up_steps + sizes.steps,
            objective=Objective(alpha=alpha, temperature=1.0, compiled=compiled),
            device=device,
        )
        return notes.seconds_after(sizes.warm_up_steps) / sizes.steps

    _forget_peak(device)
    turns = [(step_seconds(1.0), step_seconds(0.0)) for _ in range(sizes.pairs)]
    ce_seconds, kd_seconds = (statistics.median(column) for column in zip(*turns, strict=True))
    tokens = batches.sequences * length
    ce_flops = flops_of_a_token(sizes.config, length, 0)
    kd_flops = flops_of_a_token(sizes.config, length, sizes.teacher_width)
    return {
        "figure": f"step, {batches.sequences} x {length:,}{', compiled' if compiled else ''}",
        "cross_entropy_tokens_per_second": tokens / ce_seconds,
        "cross_entropy_share_of_peak": ce_flops * tokens / ce_seconds / peak_flops(),
        "distillation_tokens_per_second": tokens / kd_seconds,
        "distillation_share_of_peak": kd_flops * tokens / kd_seconds / peak_flops(),
        "distillation_speed_against_cross_entropy": statistics.median(ce / kd for ce, kd in turns),
        "peak_gib": _peak_gib(device),
        "goals": {
            "cross_entropy_share_of_peak": ">= 0.45",
            "distillation_speed_against_cross_entropy": ">= 0.72",
        },
    }


def _objectives(sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    width, vocab_size = sizes.config["hidden_size"], sizes.config["vocab_size"]
    case = Case(vocab_size, width, sizes.teacher_width, sizes.objective_tokens, "bfloat16")
    made = inputs(case)
    given = Inputs(**{name: _placed(part, device) for name, part in vars(made).items()})
    installed = [way for way in sizes.peers if find_spec(PACKAGES.get(way, "torch"))]
    for compiled in sizes.compiled:
        ours = partial(_our_step, given, compiled)
        for way in installed:
            baseline = partial(step, way, given)
            difference = abs(ours() - baseline())
            times = paired(ours, baseline, sizes.pairs)
            yield {
                "figure": f"objective, {case.tokens:,} tokens{', compiled' if compiled else ''}",
                "against": way,
                "seconds": times.ours_seconds,
                "baseline_seconds": times.baseline_seconds,
                "speed_against_baseline": 1 / times.ratio,
                "peak_gib": _peak_of(ours, device),
                "baseline_peak_gib": _peak_of(baseline, device),
                "loss_difference": difference,
                "goals": {"speed_against_baseline": goal} if (goal := GOALS.get(way)) else {},
            }


def _our_step(given: Inputs, compiled: bool) -> float:
    """Returns the loss; its gradients are in the inputs' `.grad`."""
    given.hidden_ND.grad = given.weight_VD.grad = None
    targets = HiddenTargets(given.teacher_NE, OutputHead(given.teacher_VE))
    objective = Objective(alpha=0.0, temperature=1.0, compiled=compiled)
    head, tokens = OutputHead(given.weight_VD), len(given.labels_N)
    loss = distillation_loss(given.hidden_ND, head, given.labels_N, targets, objective, tokens)
    loss.total.backward()
    return loss.total.item()  # waits for the device


def _placed(part: Tensor, device: str) -> Tensor:
    return part.detach().to(device).requires_grad_(part.requires_grad)


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_gib(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


def _peak_of(work: Callable[[], object], device: str) -> float | None:
    _forget_peak(device)
    work()
    return _peak_gib(device)
