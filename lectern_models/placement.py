"""Checks where a model runs and how its forward is computed: as requested, or an error."""

from typing import Any

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from lectern_common.errors import Misconfigured

# accelerate spreads the layers over the GPUs of this host, about as much on each.
BALANCED = "balanced"

# "auto" is transformers' own choice.
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")


def resolved_device(device: str) -> str:
    """Returns "cpu", "cuda", "cuda:1" or BALANCED.

    Args:
        device: one of these, or "auto": CUDA if there is one.

    Raises:
        Misconfigured: this machine has no such device.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    kind, _, index = device.partition(":")
    known = device in ("cpu", "cuda", BALANCED) or (kind == "cuda" and index.isdecimal())
    if not known:
        raise Misconfigured(f"--device {device} is not one of auto, cpu, cuda, cuda:1, balanced")
    if device != "cpu" and not has_cuda:
        raise Misconfigured(
            f"--device {device}, but this torch ({torch.__version__}) sees no CUDA device"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise Misconfigured(
            f"--device {device}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return device


def require_attention(attention: str, dtype: str, device: str) -> None:
    """Raises Misconfigured unless `attention` works here.

    Not left to transformers, which fetches kernels from the model hub if the package is missing.
    """
    if attention not in ATTENTION:
        raise Misconfigured(f"--attention {attention} is not one of {', '.join(ATTENTION)}")
    if attention != "flash_attention_2":
        return
    if device == "cpu" or not is_flash_attn_2_available():
        raise Misconfigured(
            "--attention flash_attention_2 needs a CUDA device and the package flash-attn; "
            "sdpa needs neither"
        )
    if dtype == "float32":
        raise Misconfigured("--attention flash_attention_2 needs --dtype bfloat16 or float16")


def require_all_on_gpus(device_map: dict[str, Any]) -> None:
    """Raises Misconfigured unless all layers of a balanced model fit on the GPUs.

    Args:
        device_map: module name to device, as accelerate assigned it; may be empty.
    """
    places = {str(place) for place in device_map.values()}
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise Misconfigured(
            "the model does not fit into the memory of this host's GPUs together; set "
            "--quantization int8 or int4"
        )


def compile_in_place(module: torch.nn.Module) -> None:
    """Compiles the module's forwards with torch.compile, with one graph for all lengths.

    Raises:
        Misconfigured: torch.compile does not work here.
    """
    device = next(module.parameters()).device
    try:
        module.compile(dynamic=True)
        with torch.inference_mode():
            # A single sequence gets a graph of its own.
            for shape in ((2, 16), (1, 16)):
                ids = torch.zeros(shape, dtype=torch.long, device=device)
                module(input_ids=ids, use_cache=False)
    except Exception as error:  # from torch, the C compiler that it calls, or the driver
        reason = " ".join(str(error).split())[:300]
        raise Misconfigured(f"--compile does not work here; leave it out: {reason}") from error


def device_names(model: torch.nn.Module, tensor_parallel: int = 1) -> str:
    """Returns the devices of the parameters: "cpu", or "cuda:0, cuda:1 (name of the card)".

    Args:
        model: the whole, or this rank's slices.
        tensor_parallel: ranks that share it; on CUDA rank r has device r.
    """
    devices = sorted(
        {parameter.device for parameter in model.parameters()},
        key=lambda device: (device.type, device.index or 0),
    )
    if any(device.type != "cuda" for device in devices):
        return ", ".join(str(device) for device in devices)
    indices = [device.index or 0 for device in devices]
    if tensor_parallel > 1:
        indices = list(range(tensor_parallel))
    names = dict.fromkeys(torch.cuda.get_device_name(index) for index in indices)
    return f"{', '.join(f'cuda:{index}' for index in indices)} ({', '.join(names)})"
