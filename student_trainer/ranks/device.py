"""The device that a trainer, or one rank of it, computes on."""

import torch

from lectern_common.errors import Misconfigured
from student_trainer.ranks.world import local_rank, local_ranks


def choose_device(kind: str) -> torch.device:
    """Returns the device that `device.kind` asks for; each rank of a machine gets its own GPU.

    Raises:
        Misconfigured: cuda is requested but absent, or this machine has fewer GPUs than ranks.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not count:
        raise Misconfigured(
            "device.kind is cuda, but torch sees no CUDA device; set cpu or auto, or see "
            "`lectern doctor`"
        )
    if not count or kind == "cpu":
        return torch.device("cpu")
    # Every rank checks this, so that all fail alike; a single failing rank would count as lost.
    if local_ranks() > count:
        raise Misconfigured(
            f"the {local_ranks()} ranks on this machine need a GPU each, but torch sees {count}; "
            "lower device.count, or set device.kind cpu"
        )
    return torch.device("cuda", local_rank())


def device_name(device: torch.device) -> str:
    """Returns "cpu", or for example "cuda:0 (NAME OF THE CARD)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
