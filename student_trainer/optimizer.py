"""AdamW over a student's parameters."""

import torch
from torch import nn


def build_adamw(
    student: nn.Module, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters; the loop sets its learning rate at every step.

    Matrices decay; norms, biases and whatever else has one dimension do not. A tied tensor is one
    parameter. One kernel updates all state of a tensor.
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
    """Sets the rate of the next step for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = rate
