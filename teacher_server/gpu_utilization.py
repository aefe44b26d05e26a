"""How busy a teacher's GPUs are, by NVML; nothing where there is no NVIDIA driver."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

# NVML itself averages over a sixth of a second to a second.
_FRESH_SECONDS = 1.0


class GpuUtilization:
    """The share of the last second in which the GPUs computed, asked at most once a second.

    Args:
        uuids: of the GPUs that hold the model, as the driver names them ("GPU-..."); indices
            differ between torch and the driver, and with CUDA_VISIBLE_DEVICES.
        nvml: the module pynvml; None imports it where it is installed.
        clock: seconds.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        nvml: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at = -float("inf")
        self._latest: float | None = None
        self._nvml, self._handles = _opened(uuids, nvml)

    def __call__(self) -> float | None:
        """Returns 0 .. 1, the mean over the GPUs; None where the driver does not say.

        A call to the driver takes milliseconds: call it beside the event loop, not on it. Any
        thread may.
        """
        with self._lock:
            if self._handles and self._clock() - self._asked_at >= _FRESH_SECONDS:
                self._asked_at = self._clock()
                self._latest = self._asked()
            return self._latest

    def _asked(self) -> float | None:
        try:
            shares = [
                float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
                for handle in self._handles
            ]
        except self._nvml.NVMLError:  # a slice of a card does not say, nor does a lost one
            return None
        return sum(shares) / len(shares)


def gpu_uuids(torch_device_indices: Sequence[int]) -> list[str]:
    """Returns the driver's names of torch's CUDA devices. Imports torch."""
    import torch

    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in torch_device_indices]


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
