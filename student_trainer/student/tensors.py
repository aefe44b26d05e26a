"""Saves and restores the state of a student and its optimizer as named tensors.

A tied tensor has one name, that of its first use.
"""

import torch
from torch import Tensor, nn

from lectern_common.errors import CorruptData
from student_trainer.ranks.sharding import placed_like

# AdamW's state for each parameter.
_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


def model_tensors(student: nn.Module) -> dict[str, Tensor]:
    """Returns what training changes, by name: parameters that are not frozen, and saved buffers.

    The tensors are the student's own.
    """
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    return {name: t for name, t in all_tensors(student).items() if name not in frozen}


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters and saved buffers by name; the tensors are the module's own."""
    kept = module.state_dict(keep_vars=True)
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name in kept}


@torch.no_grad()
def load_model_tensors(student: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies tensors from `model_tensors` into the student.

    Raises:
        CorruptData: names or shapes differ from the student's.
    """
    own = model_tensors(student)
    if different := own.keys() ^ tensors.keys():
        raise CorruptData(f"the checkpoint is of another model: only one has {min(different)}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise CorruptData(
                f"the checkpoint is of another model: {name} has shape "
                f"{list(tensors[name].shape)}, expected {list(tensor.shape)}"
            )
        tensor.copy_(tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, student: nn.Module) -> dict[str, Tensor]:
    """Returns AdamW's state as "<parameter>/exp_avg" etc., no copies; {} before the first step."""
    return {
        f"{name}/{key}": optimizer.state[parameter][key]
        for name, parameter in student.named_parameters()
        if parameter in optimizer.state
        for key in _ADAMW_STATE
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, student: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Sets the whole state that `optimizer_tensors` returned; the optimizer owns the tensors then.

    Raises:
        CorruptData: a tensor is missing, unexpected, or shaped differently from its parameter.
    """
    left = dict(tensors)
    for name, parameter in student.named_parameters():
        keys = [f"{name}/{key}" for key in _ADAMW_STATE]
        if not any(key in left for key in keys):
            continue
        if not all(key in left for key in keys):
            raise CorruptData(f"the optimizer's state of {name} is incomplete")
        step, exp_avg, exp_avg_sq = (left.pop(key) for key in keys)
        if exp_avg.shape != parameter.shape or exp_avg_sq.shape != parameter.shape:
            raise CorruptData(
                f"the optimizer's state of {name} differs in shape from the parameter"
            )
        # The fused AdamW keeps its step count beside the parameter.
        optimizer.state[parameter] = {
            "step": step.to(parameter.device),
            "exp_avg": placed_like(exp_avg, parameter),
            "exp_avg_sq": placed_like(exp_avg_sq, parameter),
        }
    if left:
        raise CorruptData(
            f"the optimizer's state has {min(left)}, but the student no such parameter"
        )
