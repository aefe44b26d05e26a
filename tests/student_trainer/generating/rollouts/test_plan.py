"""Which rows a student writes, and from which prompts."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from student_trainer.generating.rollouts.plan import Plan, Slot, uniforms_of


def plan_of(**changes: Any) -> Plan:
    settings = {
        "seed": 3,
        "fraction": 0.4,
        "sequences_per_step": 12,
        "samples_per_prompt": 3,
        "num_prompts": 10,
        "micro_batch": 2,
    }
    return Plan(**{**settings, **changes})


def test_the_plan_is_a_function_of_seed_and_step() -> None:
    forwards = {step: plan_of().slots(step) for step in range(50)}
    plan = plan_of()
    assert {step: plan.slots(step) for step in reversed(range(50))} == forwards
    assert forwards != {step: plan_of(seed=4).slots(step) for step in range(50)}


@pytest.mark.parametrize("fraction", [0.05, 0.4, 0.97])
def test_the_fraction_is_that_of_whole_groups(fraction: float) -> None:
    plan = plan_of(fraction=fraction)
    written = np.stack([plan.is_written(step) for step in range(2000)]).reshape(2000, 4, 3)
    assert (written == written[:, :, :1]).all()
    assert written.mean() == pytest.approx(fraction, abs=0.02)


def test_fraction_1_writes_every_row() -> None:
    plan = plan_of(fraction=1)
    assert all(plan.is_written(step).all() for step in range(100))


def test_samples_of_a_prompt_are_rows_in_a_row() -> None:
    slots = plan_of(fraction=1).slots(5)
    assert [slot.row for slot in slots] == list(range(12))
    assert [slot.sample for slot in slots] == [0, 1, 2] * 4
    prompts = [slot.prompt for slot in slots]
    assert [prompts[row] for row in (0, 3, 6, 9)] == prompts[::3]
    assert all(len(set(prompts[first : first + 3])) == 1 for first in range(0, 12, 3))


def test_an_epoch_passes_every_prompt_once_in_another_order() -> None:
    plan = plan_of(fraction=1, num_prompts=8)
    assert (plan.groups, plan.steps_per_epoch) == (4, 2.0)
    epochs = [
        [slot.prompt for step in (first, first + 1) for slot in plan.slots(step)[::3]]
        for first in range(0, 20, 2)
    ]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_a_fraction_takes_the_prompts_that_all_rows_would_take() -> None:
    some, every = plan_of(), plan_of(fraction=1)
    for step in range(30):
        assert set(some.slots(step)) <= set(every.slots(step))


def test_fewer_prompts_than_groups_are_taken_several_times_in_a_step() -> None:
    slots = plan_of(fraction=1, num_prompts=2, samples_per_prompt=1).slots(0)
    assert Counter(slot.prompt for slot in slots) == {0: 6, 1: 6}
    assert len({(slot.row, slot.sample) for slot in slots}) == 12


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_the_rows_of_one_plan(ranks: int) -> None:
    plan, alone = plan_of(ranks=ranks, micro_batch=1), plan_of()
    for step in range(40):
        parts = [plan.slots(step, rank) for rank in range(ranks)]
        assert [slot for part in parts for slot in part] == alone.slots(step)
        most = plan.micro_batches(step, written=True)
        assert most == max(len(part) for part in parts)
        share = 12 // ranks
        assert plan.micro_batches(step, written=False) == max(share - len(part) for part in parts)


def test_micro_batches_are_rounded_up() -> None:
    plan = plan_of(micro_batch=5)
    for step in range(40):
        rows = len(plan.slots(step))
        assert plan.micro_batches(step, written=True) == -(-rows // 5)
        assert plan.micro_batches(step, written=False) == -(-(12 - rows) // 5)


def test_each_token_of_each_rollout_has_its_own_number() -> None:
    slots = [Slot(step, row, sample, 0) for step in (0, 1) for row in (0, 1) for sample in (0, 1)]
    drawn = np.stack([uniforms_of(3, slot, 50) for slot in slots])
    assert len(np.unique(drawn)) == drawn.size
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert np.array_equal(uniforms_of(3, slots[5], 9), drawn[5, :9])
    assert not np.array_equal(uniforms_of(4, slots[5], 9), drawn[5, :9])
