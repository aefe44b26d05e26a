"""Joins the processes that hold a model's parameters in slices, and gathers those again."""

from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def join_process_group(
    device_type: str, rank: int, size: int, rendezvous: str | None, timeout_seconds: float
) -> None:
    """Opens torch's process group of `size` ranks; returns once all have joined.

    Args:
        device_type: of the tensors that ranks exchange, besides those on the CPU.
        rank: of this process.
        size: number of ranks.
        rendezvous: path of the file through which they meet; None means that the environment says
            how, as under torchrun.
        timeout_seconds: how long one exchange may take.
    """
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        init_method="env://" if rendezvous is None else f"file://{rendezvous}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def whole(tensor: Tensor) -> Tensor:
    """Returns the tensor gathered from all ranks; all ranks call it. A whole one is not copied."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
