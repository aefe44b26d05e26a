"""Describes the machine, the versions and the date that figures were measured with."""

import datetime
import os
import platform
from importlib.metadata import version
from typing import Any

# Dense bfloat16 peaks from the vendors' data sheets, FLOP/s.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


def about_this_machine() -> dict[str, Any]:
    """Returns date, processor, cores, GPUs and versions, ready for JSON."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": version("transformers"),
    }


def as_text(about: dict[str, Any]) -> str:
    """Returns it as one line, without empty entries."""
    return ", ".join(f"{name} {_short(value)}" for name, value in about.items() if value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return " + ".join(value) if isinstance(value, list) else str(value)


def peak_flops() -> float:
    """Returns the card's dense bfloat16 peak, FLOP/s; nan if it is unknown."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for key, peak in PEAKS.items() if key in name), float("nan"))
