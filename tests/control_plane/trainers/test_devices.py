"""Which run gets which devices, and what the others wait for."""

import random
from collections import Counter

import pytest

from control_plane.trainers.devices import (
    Devices,
    Place,
    Waiting,
    cuda_devices,
    slots_environment,
)
from lectern_common.errors import InvalidSpec
from tests.control_plane.conftest import spec

TWO = Devices(("0", "1"), max_running=4, cores=8)
FOUR = Devices(("0", "1", "2", "3"), max_running=8, cores=8)


def place(devices: Devices, waiting: Waiting, taken: list[list[str]]) -> Place:
    holders = {f"held-{number}": slots for number, slots in enumerate(taken)}
    return devices.places([waiting], holders)[waiting.run_id]


@pytest.mark.parametrize(
    ("devices", "kind", "count", "taken", "slots"),
    [
        (TWO, "auto", 1, [], ("cuda:0",)),
        (TWO, "auto", 1, [["cuda:0"]], ("cuda:1",)),
        (TWO, "cuda", 1, [["cuda:1"]], ("cuda:0",)),
        (TWO, "auto", 1, [["cuda:0"], ["cuda:1"]], ()),
        (TWO, "auto", 1, [["cuda:0", "cuda:1"]], ()),
        (TWO, "cpu", 1, [["cuda:0"], ["cuda:1"]], ("cpu",)),
        (TWO, "cpu", 1, [["cpu"]] * 4, ()),
        (TWO, "auto", 1, [["cpu"]] * 4, ()),
        (TWO, "auto", 2, [], ("cuda:0", "cuda:1")),
        (TWO, "cuda", 2, [["cuda:0"]], ()),
        (TWO, "cpu", 3, [["cuda:0"]], ("cpu", "cpu", "cpu")),
        (FOUR, "cuda", 2, [["cuda:1"], ["cuda:2"]], ("cuda:0", "cuda:3")),
        (FOUR, "cuda", 3, [["cuda:1"], ["cpu", "cpu"]], ("cuda:0", "cuda:2", "cuda:3")),
        (Devices(("0",), 4, runs_per_gpu=2), "auto", 1, [["cuda:0"]], ("cuda:0",)),
        (Devices(("0",), 4, runs_per_gpu=2), "auto", 1, [["cuda:0"]] * 2, ()),
        (Devices(("0", "1"), 4, runs_per_gpu=2), "auto", 2, [["cuda:0"]], ("cuda:0", "cuda:1")),
        (Devices(("0", "1"), 4, runs_per_gpu=2), "auto", 1, [["cuda:0"]], ("cuda:1",)),
        (Devices(("0", "1"), 4, runs_per_gpu=2), "auto", 2, [["cuda:0"]] * 2, ()),
        (Devices((), 2, cores=2), "auto", 1, [["cpu"]], ("cpu",)),
        (Devices((), 2, cores=2), "auto", 2, [["cpu"]], ("cpu", "cpu")),
        (Devices((), 2, cores=2), "auto", 1, [["cpu"]] * 2, ()),
        (Devices(("0",), 2), "auto", 1, [["cuda:7"]], ("cuda:0",)),
    ],
)
def test_a_run_gets_all_of_its_devices_the_emptiest_ones_or_none(
    devices, kind, count, taken, slots
):
    found = place(devices, Waiting("new", kind, count), taken)
    assert found.slots == slots
    assert (found.waits_for is None) == bool(slots)


def test_an_older_run_that_needs_several_gpus_is_not_overtaken_by_younger_ones():
    waiting = [Waiting("big", "cuda", 2), Waiting("small", "auto"), Waiting("on-cpu", "cpu")]
    found = TWO.places(waiting, {"one": ["cuda:0"]})
    assert [found[run.run_id].slots for run in waiting] == [(), (), ("cpu",)]
    assert found["big"].waits_for == (
        "needs 2 GPUs at once, of which 1 is free and kept for it; waits until one of these ends: "
        "one"
    )
    assert found["small"].waits_for == (
        "every free GPU is kept for a run before it that needs several; waits until enough of "
        "these end: one; before it in line: big"
    )


def test_a_younger_run_may_have_the_places_that_an_older_one_does_not_keep():
    shared = Devices(("0", "1"), 8, runs_per_gpu=2, cores=8)
    taken = {"a": ["cuda:0"], "b": ["cuda:0"]}
    waiting = [Waiting("big", "cuda", 2), *(Waiting(name, "auto") for name in ("x", "y"))]
    found = shared.places(waiting, taken)
    assert [place.slots for place in found.values()] == [(), ("cuda:1",), ()]


def random_waiting(rng: random.Random, devices: Devices, number: int) -> Waiting:
    kind = rng.choice(["auto", "cuda", "cpu"])
    most = devices.cores if kind == "cpu" else len(devices.cuda)
    return Waiting(f"run-{number}", kind, rng.randint(1, most))


@pytest.mark.parametrize("seed", range(40))
def test_no_run_is_starved_and_no_device_is_overfull_in_any_schedule(seed):
    """Younger runs keep coming, and those that train end in any order; the oldest gets its turn.

    While a run is the oldest that waits, no younger one may take what it could have had: so it
    starts, at the latest, once those that trained when it became the oldest have ended.
    """
    rng = random.Random(seed)  # noqa: S311
    names = tuple(str(number) for number in range(rng.randint(1, 5)))
    devices = Devices(names, rng.randint(1, 6), rng.randint(1, 3), cores=4)
    queued: list[Waiting] = []
    active: dict[str, tuple[str, ...]] = {}
    oldest, before = "", set[str]()
    for number in range(0, 1200, 3):
        if len(queued) < 12:
            queued += [random_waiting(rng, devices, number + more) for more in range(3)]
        found = devices.places(queued, active)
        for run in [*queued]:
            place = found[run.run_id]
            assert bool(place.slots) != bool(place.waits_for)
            if place.slots:
                assert len(place.slots) == run.count
                active[run.run_id] = place.slots
                queued.remove(run)
        load = Counter(slot for slots in active.values() for slot in slots if slot != "cpu")
        assert all(count <= devices.runs_per_gpu for count in load.values())
        assert all(len({*slots} - {"cpu"}) in (0, len(slots)) for slots in active.values())
        assert len(active) <= devices.max_running
        if not queued:
            active.clear()
            continue
        if queued[0].run_id != oldest:
            oldest, before = queued[0].run_id, set(active)
        assert before & set(active), f"{oldest} is starved"
        del active[rng.choice([*active])]


def test_a_run_waits_for_a_place_only_while_as_many_as_may_train_do():
    one = Devices(("0", "1"), 1, cores=4)
    assert one.places([Waiting("b", "cuda")], {"a": ["cpu"]})["b"].waits_for == (
        "at most 1 run trains at once; waits until one of these ends: a"
    )


def test_a_waiting_run_names_what_it_waits_for():
    full = {"one": ["cuda:0"], "two": ["cpu"], "three": ["cuda:1"]}
    [found] = TWO.places([Waiting("new", "auto")], full).values()
    assert found.waits_for == "every GPU is in use; waits until one of these ends: one, three"
    [found] = TWO.places([Waiting("new", "auto", 2)], full).values()
    assert found.waits_for == (
        "needs 2 GPUs at once, of which none is free; waits until enough of these end: one, three"
    )
    many = Devices((), max_running=6)
    [found] = many.places([Waiting("new", "cpu")], {str(n): ["cpu"] for n in range(6)}).values()
    assert found.waits_for == (
        "at most 6 runs train at once; waits until one of these ends: 0, 1, 2, 3 and 2 more"
    )


def test_a_run_that_this_machine_can_no_longer_hold_says_so_and_keeps_nothing():
    """It was accepted before the control plane was restarted with fewer GPUs."""
    found = TWO.places([Waiting("big", "cuda", 4), Waiting("small", "cuda")], {})
    assert found["big"].waits_for == (
        "cannot start: device.count: 4 is more than this machine has (2 CUDA devices); set at most "
        "2, or device.kind cpu"
    )
    assert found["small"].slots == ("cuda:0",)
    gone = Devices((), 2).places([Waiting("big", "cuda"), Waiting("small", "auto")], {})
    assert "there is no CUDA device" in (gone["big"].waits_for or "")
    assert gone["small"].slots == ("cpu",)


@pytest.mark.parametrize(
    ("devices", "waiting", "threads"),
    [
        (Devices((), 4, cores=16), Waiting("r", "cpu"), 4),
        (Devices((), 4, cores=16), Waiting("r", "cpu", 2), 2),
        (Devices((), 4, cores=2), Waiting("r", "cpu", 2), 1),
        (Devices((), 3, cores=8), Waiting("r", "auto"), 2),
        (Devices((), 4, cores=16), Waiting("r", "cpu", 1, 7), 7),
        (Devices(("0", "1"), 4, cores=16), Waiting("r", "cuda", 2), 2),
        (Devices((), 4, cores=16, threads_each=3), Waiting("r", "cpu", 2), 3),
        (Devices((), 4, cores=16, threads_each=3), Waiting("r", "cpu", 1, 7), 7),
    ],
)
def test_the_cores_are_shared_out_unless_the_spec_or_the_environment_says_how_many(
    devices, waiting, threads
):
    [found] = devices.places([waiting], {}).values()
    assert found.threads == threads


def test_a_trainer_sees_only_its_own_devices():
    assert slots_environment(["cuda:GPU-1a2b"], 3) == {
        "CUDA_VISIBLE_DEVICES": "GPU-1a2b",
        "OMP_NUM_THREADS": "3",
    }
    assert slots_environment(["cuda:0", "cuda:3"], None) == {"CUDA_VISIBLE_DEVICES": "0,3"}
    assert slots_environment(["cpu", "cpu"], 1) == {"OMP_NUM_THREADS": "1"}
    assert slots_environment([], None) == {}


@pytest.mark.parametrize(
    ("devices", "device", "field"),
    [
        (Devices((), 1), {"kind": "cuda"}, "device.kind"),
        (Devices((), 1), {"kind": "cuda", "count": 2}, "device.kind"),
        (TWO, {"kind": "cuda", "count": 3}, "device.count"),
        (TWO, {"kind": "auto", "count": 3}, "device.count"),
        (TWO, {"kind": "cpu", "count": 9}, "device.count"),
        (Devices((), 1, cores=2), {"kind": "auto", "count": 3}, "device.count"),
        (Devices(("0",), 4, runs_per_gpu=4), {"kind": "auto", "count": 2}, "device.count"),
    ],
)
def test_a_run_that_needs_more_than_the_machine_has_is_refused_by_name(devices, device, field):
    with pytest.raises(InvalidSpec) as refused:
        devices.require_has(spec(device=device, batch={"sequences_per_step": 72}))
    assert [problem[0] for problem in refused.value.problems] == [field]


@pytest.mark.parametrize(
    ("devices", "device"),
    [
        (TWO, {"kind": "cuda"}),
        (TWO, {"kind": "auto", "count": 2}),
        (TWO, {"kind": "cpu", "count": 8}),
        (Devices((), 1), {"kind": "auto"}),
        (Devices((), 1, cores=2), {"kind": "auto", "count": 2}),
    ],
)
def test_a_run_that_the_machine_can_hold_is_let_in(devices, device):
    devices.require_has(spec(device=device, batch={"sequences_per_step": 72}))


@pytest.mark.parametrize(
    ("visible", "devices"), [("2,3", ("2", "3")), ("GPU-a", ("GPU-a",)), ("", ()), ("-1", ())]
)
def test_the_environment_says_which_devices_may_be_used(visible, devices):
    assert cuda_devices({"CUDA_VISIBLE_DEVICES": visible}) == devices
