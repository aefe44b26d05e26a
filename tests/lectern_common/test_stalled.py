"""When a trainer counts as stalled."""

from typing import Any

import pytest

from lectern_common.run.status import RunState, Status


def status(**values: Any) -> Status:
    state = RunState(values.pop("state", "running"))
    return Status("r", state, since=0, heartbeat=0, pid=1, process_create_time=0, **values)


@pytest.mark.parametrize(
    ("activity", "seconds", "usual", "is_stalled"),
    [
        ("step", 59, 0.5, False),
        ("step", 61, 0.5, True),
        ("step", 299, 30, False),
        ("step", 301, 30, True),
        ("step", 1799, None, False),  # the first step may compile
        ("step", 1801, None, True),
        ("evaluation", 590, 3, False),
        ("evaluation", 610, 3, True),
        ("checkpoint", 3000, 400, False),
        ("export", 1700, None, False),
        ("starting", 2000, None, True),
        ("reading tea leaves", 610, 3, True),
    ],
)
def test_stalled_is_far_longer_than_usual(activity, seconds, usual, is_stalled):
    said = status(activity=activity, activity_seconds=seconds, usual_seconds=usual)
    assert said.stalled_seconds == (seconds if is_stalled else None)


def test_waiting_for_the_teacher_is_not_stalled():
    said = status(state="waiting_for_teacher", activity="step", activity_seconds=1e6)
    assert said.stalled_seconds is None


def test_a_trainer_of_an_earlier_release_says_nothing():
    assert status(step=3).stalled_seconds is None
