"""How busy a teacher's GPUs are, by NVML; nothing where there is no NVIDIA driver."""

import re
import threading
from collections.abc import Sequence
from typing import Any

_EVERY_SECONDS = 1.0


class GpuUtilization:
    """The share of the last second in which the GPUs computed, the mean over them.

    A thread of its own asks the driver, which may take its time; whoever reads never waits.

    Args:
        uuids: of the GPUs that hold the model, as the driver names them ("GPU-..."); indices
            differ between torch and the driver, and with CUDA_VISIBLE_DEVICES.
        nvml: the module pynvml; None imports it where it is installed.
    """

    def __init__(self, uuids: Sequence[str], nvml: Any = None) -> None:
        self._nvml, self._handles = _opened(uuids, nvml)
        self._stop = threading.Event()
        self._latest: float | None = None

    def __call__(self) -> float | None:
        """Returns 0 .. 1 as last seen; None where the driver does not say, or was not asked yet."""
        return self._latest

    def watch(self) -> "GpuUtilization":
        """Asks once a second from now on, if there is anything to ask; returns itself."""
        if self._handles:
            threading.Thread(target=self._watch, name="gpu-utilization", daemon=True).start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def ask(self) -> None:
        """Asks the driver now."""
        try:
            shares = [
                float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
                for handle in self._handles
            ]
        except self._nvml.NVMLError:  # a slice of a card does not say, nor does a lost one
            self._latest = None
        else:
            self._latest = sum(shares) / len(shares)

    def _watch(self) -> None:
        while True:
            self.ask()
            if self._stop.wait(_EVERY_SECONDS):
                return


def utilization_of(device: str) -> GpuUtilization:
    """Returns what watches the GPUs of ModelFacts.device, "cuda:0, cuda:1 (name of the card)"."""
    indices = [int(index) for index in re.findall(r"\bcuda:(\d+)", device)]
    return GpuUtilization(_uuids(indices) if indices else []).watch()


def _uuids(torch_indices: Sequence[int]) -> list[str]:
    import torch

    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in torch_indices]


def _opened(uuids: Sequence[str], nvml: Any) -> tuple[Any, list[Any]]:
    """Returns (the module, a handle for each GPU); (None, []) where NVML is not there."""
    if not uuids:
        return None, []
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return None, []
        nvml = pynvml
    try:
        nvml.nvmlInit()
        return nvml, [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except nvml.NVMLError:
        return None, []
