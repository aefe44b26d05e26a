"""How busy a teacher's GPUs are, from NVML; None without an NVIDIA driver."""

import re
import threading
from collections.abc import Sequence
from typing import Any

_EVERY_SECONDS = 1.0


class GpuUtilization:
    """The share of the last second in which the GPUs computed, averaged over them.

    A thread polls the driver, which may be slow; reading the value never waits.

    Args:
        uuids: the GPUs that hold the model, as the driver names them ("GPU-..."); indices differ
            between torch and the driver, and with CUDA_VISIBLE_DEVICES.
        nvml: the module pynvml; None imports it if it is installed.
    """

    def __init__(self, uuids: Sequence[str], nvml: Any = None) -> None:
        self._nvml, self._handles = _opened(uuids, nvml)
        self._stop = threading.Event()
        self._latest: float | None = None

    def __call__(self) -> float | None:
        """Returns the last value, 0 .. 1; None if the driver gave none, or was not polled yet."""
        return self._latest

    def watch(self) -> "GpuUtilization":
        """Polls once a second from now on, if there is a GPU to poll; returns itself."""
        if self._handles:
            threading.Thread(target=self._watch, name="gpu-utilization", daemon=True).start()
        return self

    def stop(self) -> None:
        self._stop.set()

    def ask(self) -> None:
        """Polls the driver now."""
        try:
            shares = [
                float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
                for handle in self._handles
            ]
        except self._nvml.NVMLError:  # as for a slice of a GPU, or a lost one
            self._latest = None
        else:
            self._latest = sum(shares) / len(shares)

    def _watch(self) -> None:
        while True:
            self.ask()
            if self._stop.wait(_EVERY_SECONDS):
                return


def utilization_of(device: str) -> GpuUtilization:
    """Returns the polled utilization of ModelFacts.device, "cuda:0, cuda:1 (name of the card)"."""
    indices = [int(index) for index in re.findall(r"\bcuda:(\d+)", device)]
    return GpuUtilization(_uuids(indices) if indices else []).watch()


def _uuids(torch_indices: Sequence[int]) -> list[str]:
    import torch

    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in torch_indices]


def _opened(uuids: Sequence[str], nvml: Any) -> tuple[Any, list[Any]]:
    """Returns (the module, a handle for each GPU); (None, []) without NVML."""
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
