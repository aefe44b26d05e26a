"""Shards a student's parameters over the devices of a run (FSDP2), and gathers them again.

A whole tensor is what a single process would hold; a sharded one is a DTensor, of which each rank
holds a slice of the first dimension.

FSDP gathers each layer's parameters for its forward and backward, and reduces the gradients of all
ranks slice by slice. They are summed, not averaged: each rank has already divided by the number of
valid positions of the whole step, so the result is the gradient that one process would compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lectern_models.layers import layers_of
from lectern_models.modes import evaluating
from lectern_models.ranks import whole


def shard(student: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the parameters, equal on every rank, in place. Call it before making the optimizer.

    Gathered as a unit: each layer, that is each child of an outermost nn.ModuleList; and all
    parameters outside of layers (embedding, norm, head), which stay whole through forward and
    backward.
    """
    for layer in layers_of(student):
        fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no multiplying reduction, and a factor of 1 needs none.
            module.set_force_sum_reduction_for_comms(True)


def split_again(student: nn.Module) -> None:
    """Frees the parameters that a forward without a backward left gathered.

    Call it before an update: the optimizer changes only slices, so the next forward would use the
    stale gathered parameters.
    """
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def whole_weights(student: nn.Module) -> Iterator[None]:
    """Within the block, each rank holds all parameters whole, gathered once, at the beginning.

    So ranks may make forwards of the student's modules, without gradients, and not equally many of
    them, or none: they exchange nothing, and leave no trace in the next backward. All ranks enter
    the block, and leave it, at the same place, with no gradients under way. Does nothing if the
    parameters are not sharded.
    """
    sharded = [module for module in student.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        if sharded:
            # FSDP sets itself up in the first forward of the outermost module, and gathers in each.
            device = next(student.parameters()).device
            with evaluating(student), torch.no_grad():
                student(torch.zeros(1, 1, dtype=torch.int64, device=device), lambda *_: None)
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(module is not student, recurse=False)
        if sharded:
            # FSDP remembers every forward until a backward, which gathers layers in the reverse
            # order: after unequal forwards, in another order on each rank.
            cast(FSDPModule, student).reset_iter_state()


def gathered(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Returns whole tensors on the CPU if `keep`, else nothing. All ranks call it in one order.

    Only one tensor at a time is whole on the device. A tensor that is already whole is not copied.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            kept[name] = full.cpu()
    return kept


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns a whole tensor, equal on every rank, moved and sharded like the parameter."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
