"""Which run gets which device."""

import pytest

from control_plane.trainers.devices import Devices, cuda_devices, slot_environment
from lectern_common.errors import InvalidSpec
from tests.control_plane.conftest import spec

TWO = Devices(("0", "1"), max_running=4)


@pytest.mark.parametrize(
    ("devices", "kind", "taken", "slot"),
    [
        (TWO, "auto", [], "cuda:0"),
        (TWO, "auto", ["cuda:0"], "cuda:1"),
        (TWO, "cuda", ["cuda:1"], "cuda:0"),
        (TWO, "auto", ["cuda:0", "cuda:1"], None),
        (TWO, "cpu", ["cuda:0", "cuda:1"], "cpu"),
        (TWO, "cpu", ["cpu"] * 4, None),
        (TWO, "auto", ["cpu"] * 4, None),
        (Devices(("0",), 4, runs_per_gpu=2), "auto", ["cuda:0"], "cuda:0"),
        (Devices(("0",), 4, runs_per_gpu=2), "auto", ["cuda:0"] * 2, None),
        (Devices((), 2), "auto", ["cpu"], "cpu"),
        (Devices((), 2), "auto", ["cpu"] * 2, None),
    ],
)
def test_a_run_gets_the_emptiest_device_of_its_kind(devices, kind, taken, slot):
    assert devices.choose(kind, taken) == slot


def test_a_waiting_run_names_what_it_waits_for():
    full = {"one": "cuda:0", "two": "cpu", "three": "cuda:1"}
    assert TWO.why_none("auto", full) == (
        "every GPU is in use; waits until one of these ends: one, three"
    )
    assert TWO.why_none("cpu", full) is None
    many = Devices((), max_running=6)
    assert many.why_none("cpu", {str(number): "cpu" for number in range(6)}) == (
        "at most 6 runs train at once; waits until one of these ends: 0, 1, 2, 3 and 2 more"
    )


def test_a_cuda_slot_shows_only_its_device():
    assert slot_environment("cuda:GPU-1a2b") == {"CUDA_VISIBLE_DEVICES": "GPU-1a2b"}
    assert slot_environment("cpu") == {}


def test_a_run_for_cuda_is_refused_without_a_cuda_device():
    with pytest.raises(InvalidSpec, match=r"device.kind: there is no CUDA device"):
        Devices((), 1).require_has(spec(device={"kind": "cuda"}))
    TWO.require_has(spec(device={"kind": "cuda"}))
    Devices((), 1).require_has(spec(device={"kind": "auto"}))


@pytest.mark.parametrize(
    ("visible", "devices"), [("2,3", ("2", "3")), ("GPU-a", ("GPU-a",)), ("", ()), ("-1", ())]
)
def test_the_environment_says_which_devices_may_be_used(visible, devices):
    assert cuda_devices({"CUDA_VISIBLE_DEVICES": visible}) == devices
