"""Learning rates, against hand-computed values."""

import math

import pytest

from student_trainer.schedule import Schedule


def rates(**changes: object) -> list[float]:
    settings = {
        "peak": 2.0,
        "steps": 9,
        "warmup_steps": 4,
        "decay": "linear",
        "final_fraction": 0.1,
    }
    schedule = Schedule(**{**settings, **changes})  # type: ignore[arg-type]
    return [schedule.learning_rate(step) for step in range(schedule.steps)]


def test_warm_up_rises_in_equal_parts_to_the_peak() -> None:
    assert rates()[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_linear_decay_ends_at_the_final_fraction_in_the_last_step() -> None:
    assert rates()[4:] == pytest.approx([2 - 0.36 * n for n in range(1, 6)])
    assert rates()[-1] == pytest.approx(0.2)


def test_cosine_decay_is_half_way_down_in_the_middle() -> None:
    values = rates(decay="cosine", warmup_steps=0, final_fraction=0.0)
    assert values[0] == 2.0
    assert values[4] == pytest.approx(1.0)
    assert values[2] == pytest.approx(1 + math.cos(math.pi / 4))
    assert values[-1] == pytest.approx(0.0, abs=1e-15)


def test_cosine_ends_at_the_final_fraction() -> None:
    assert rates(decay="cosine")[-1] == pytest.approx(0.2)


def test_constant_stays_at_the_peak_whatever_the_final_fraction() -> None:
    assert rates(decay="constant")[3:] == [2.0] * 6


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(warmup_steps=0)[0] == 2.0


def test_a_run_of_one_step_has_the_peak() -> None:
    assert rates(steps=1, warmup_steps=0) == [2.0]
    assert rates(steps=1, warmup_steps=1) == [2.0]


def test_warm_up_may_last_the_whole_run() -> None:
    assert rates(steps=4)[-1] == 2.0
