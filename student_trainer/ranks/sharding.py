"""A student's parameters split among the devices of a run (FSDP2), and put together again.

Legend: whole tensors are what one process would hold; a sharded one is a DTensor, of which each
rank holds a slice of the first dimension.

Each layer's parameters are gathered for its forward and backward, and the gradients of all ranks
added up, slice by slice. They are sums, not means: each rank has divided its part by the valid
positions of the whole step, so what comes out is one process's gradient.
"""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lectern_models.layers import layers_of


def shard(student: nn.Module, mesh: DeviceMesh) -> None:
    """Splits the parameters, the same ones on every rank, in place. Do so before the optimizer.

    What is gathered together: each layer, that is each child of an outermost nn.ModuleList, and
    whatever is in none (embedding, norm, head), which stays whole through forward and backward.
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
    """Lets go of what a forward without a backward has left whole, where an update is to come.

    An optimizer changes slices: the next forward would take what is whole, and so of before.
    """
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Returns whole tensors on the CPU where `keep`, else none. All ranks call it, in one order.

    One tensor at a time is whole on the device. What is whole already is no copy.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            kept[name] = full.cpu()
    return kept


def whole(tensor: Tensor) -> Tensor:
    """Returns the tensor with all its slices; all ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns a whole tensor, the same on every rank, as the parameter is: device and slice."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(
        tensor, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
