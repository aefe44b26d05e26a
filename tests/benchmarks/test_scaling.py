"""What two cores allow a pipelined step."""

import pytest

from benchmarks.scaling import against_allowed


def test_independent_cores_allow_the_larger_of_the_two() -> None:
    assert against_allowed(3.0, 3.0, 2.0, scaling=2.0) == 1
    assert against_allowed(3.3, 2.0, 3.0, scaling=2.0) == pytest.approx(1.1)


def test_two_cores_that_are_one_allow_the_sum() -> None:
    assert against_allowed(5.0, 3.0, 2.0, scaling=1.0) == 1


def test_cores_that_slow_each_other_down_allow_what_lies_between() -> None:
    """Equal halves: each takes 2 / 1.3 of its time alone."""
    assert against_allowed(2 / 1.3, 1.0, 1.0, scaling=1.3) == pytest.approx(1)
