"""The device that a trainer, or one rank of it, computes on."""

import torch

from lectern_common.errors import Misconfigured
from student_trainer.ranks.world import local_rank, local_ranks


def choose_device(kind: str) -> torch.device:
    """Returns the device of `device.kind`; among several ranks, that of this one.

    Raises:
        Misconfigured: cuda is asked for, and there is none, or fewer than ranks here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not count:
        raise Misconfigured(
            "device.kind is cuda, but torch sees no CUDA device; set cpu or auto, or see "
            "`lectern doctor`"
        )
    if not count or kind == "cpu":
        return torch.device("cpu")
    # Asked of all, so that every rank says the same: one alone would count as lost.
    if local_ranks() > count:
        raise Misconfigured(
            f"{local_ranks()} ranks of this machine need a GPU each, and torch sees {count}; lower "
            "device.count, or set device.kind cpu"
        )
    return torch.device("cuda", local_rank())


def device_name(device: torch.device) -> str:
    """Returns "cpu", or "cuda:0 (name of the card)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
