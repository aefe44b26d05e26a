"""Goals of the benchmarks: when one is met, and how it is printed."""

import pytest

from benchmarks.goals import as_text, is_held, judged


def test_a_figure_at_its_bound_meets_the_goal_and_one_beyond_does_not():
    assert is_held(1.5, ">= 1.5") and not is_held(1.49, ">= 1.5")
    assert is_held(1.05, "<= 1.05") and not is_held(1.06, "<= 1.05")


def test_a_missing_figure_meets_no_goal():
    for value in (None, float("nan")):
        assert not is_held(value, ">= 0")
        assert not is_held(value, "<= 9")


def test_a_malformed_goal_is_refused():
    with pytest.raises(ValueError, match=r"'>= 1\.5' or '<= 1\.5', got '> 1'"):
        is_held(2.0, "> 1")


def test_a_goal_for_a_missing_figure_is_refused():
    with pytest.raises(KeyError):
        judged({"speed": 1.0, "goals": {"sped": ">= 1"}})


def test_each_goal_is_printed_after_its_figure_with_its_verdict():
    row = judged(
        {"of": "a", "speed": 2.0, "memory": 0.5, "goals": {"speed": ">= 1.5", "memory": "<= 0.1"}}
    )
    assert row["goals"]["speed"] == {"goal": ">= 1.5", "held": True}
    assert as_text(row) == "of=a  speed=2 (goal >= 1.5, met)  memory=0.5 (goal <= 0.1, MISSED)"


def test_a_row_without_goals_is_unchanged():
    row = {"tokens": 2048, "seconds": 0.25}
    assert judged(row) is row
    assert as_text(row) == "tokens=2,048  seconds=0.25"
