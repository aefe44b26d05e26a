"""GPU utilization from a fake NVML; nothing is polled on a machine without a GPU."""

from types import SimpleNamespace

import pytest
import torch

from teacher_server.observing.gpu import GpuUtilization, utilization_of


class FakeNvml:
    """Two cards whose shares the test sets; None means that the card does not report it."""

    class NVMLError(Exception):
        pass

    def __init__(self, **percent: int | None) -> None:
        self.percent = percent
        self.has_driver = True

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.percent:
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        if self.percent[handle] is None:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=self.percent[handle], memory=99)


def asked(utilization: GpuUtilization) -> float | None:
    utilization.ask()
    return utilization()


def test_it_is_the_mean_over_only_the_cards_of_the_model() -> None:
    nvml = FakeNvml(a=100, b=50, c=7)
    assert asked(GpuUtilization(["a"], nvml)) == 1.0
    assert asked(GpuUtilization(["a", "b"], nvml)) == 0.75


def test_it_is_the_last_value_until_the_driver_is_polled_again() -> None:
    nvml = FakeNvml(a=40)
    utilization = GpuUtilization(["a"], nvml)
    assert utilization() is None
    assert asked(utilization) == 0.4
    nvml.percent["a"] = 90
    assert utilization() == 0.4
    assert asked(utilization) == 0.9


def test_a_card_that_stops_reporting_gives_none_not_its_last_value() -> None:
    nvml = FakeNvml(a=40)
    utilization = GpuUtilization(["a"], nvml)
    assert asked(utilization) == 0.4
    nvml.percent["a"] = None
    assert asked(utilization) is None


def test_without_a_driver_or_the_card_it_is_none() -> None:
    missing = FakeNvml()
    missing.has_driver = False
    for utilization in (GpuUtilization(["a"], missing), GpuUtilization(["x"], FakeNvml(a=1))):
        assert utilization.watch()() is None


@pytest.mark.parametrize("device", ["cpu", "fixture"])
def test_a_teacher_that_is_not_on_a_gpu_has_none(device: str) -> None:
    assert utilization_of(device)() is None


def test_watching_polls_by_itself() -> None:
    import threading

    seen = threading.Event()

    class Telling(FakeNvml):
        def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
            seen.set()
            return super().nvmlDeviceGetUtilizationRates(handle)

    utilization = GpuUtilization(["a"], Telling(a=30)).watch()
    assert seen.wait(60)
    utilization.stop()


@pytest.mark.gpu
def test_nvml_sees_a_busy_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    utilization = utilization_of("cuda:0 (whatever it is called)")
    matrix = torch.randn(8192, 8192, device="cuda")
    try:
        for _ in range(400):
            matrix = (matrix @ matrix).tanh()
            torch.cuda.synchronize()
            utilization.ask()
            if (utilization() or 0) > 0.5:
                return
    finally:
        utilization.stop()
    pytest.fail(f"the busy GPU was seen at {utilization()}")
