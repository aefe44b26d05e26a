"""AdamW over a student's parameters, the learning rate of each step, and what is minimised."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lectern_common.spec.run_spec import RunSpec
from student_trainer.objective.loss import Objective


def build_adamw(
    student: nn.Module, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters; the loop sets its learning rate at every step.

    Weight decay applies to matrices, but not to norms, biases and other parameters of one
    dimension. A tied tensor is one parameter. A fused kernel updates all state of a tensor.
    """
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    others = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=0.0, betas=betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = rate


# Share of the way from the peak (1) to the final rate (0), by progress from 0 to 1.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `peak`, then `decay` to final_fraction * peak at the last step."""

    peak: float
    steps: int
    warmup_steps: int
    decay: str
    final_fraction: float

    def learning_rate(self, step: int) -> float:
        """Returns the rate of step `step`, 0 <= step < steps.

        Step 0 gets peak / warmup_steps instead of 0, because a step with rate 0 would be wasted.
        The last warm-up step gets the peak, the last step of the run final_fraction * peak.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        first = max(self.warmup_steps - 1, 0)
        progress = min(1.0, (step - first) / max(1, self.steps - 1 - first))
        share = _SHAPES[self.decay](progress)
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * share)


def objective_of(spec: RunSpec) -> Objective:
    """Returns the objective of a run's spec, for a teacher that has a say in every id."""
    objective, chunk_tokens = spec.objective, spec.objective.chunk_tokens
    return Objective(
        alpha=objective.alpha,
        temperature=objective.temperature,
        divergence=objective.divergence,
        beta=objective.beta,
        chunk_tokens=None if chunk_tokens == "auto" else chunk_tokens,
        compiled=spec.device.compile,
    )
