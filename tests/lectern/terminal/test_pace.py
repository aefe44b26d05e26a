"""A run's time left."""

from typing import Any

import pytest

from lectern.terminal import live
from lectern.terminal.live import LiveRun
from lectern.terminal.pace import Pace
from lectern_common.run.status import RunState, Status


def test_the_time_left_follows_from_the_steps_seen():
    pace = Pace()
    assert pace.seconds_left(10) is None
    for step, now in ((2, 100.0), (2, 101.0), (4, 106.0), (4, 109.0)):
        pace.saw(step, now)
    assert pace.seconds_left(10) == 6 * 3.0
    assert pace.seconds_left(4) is None


def test_a_stall_or_a_rewind_resets_the_pace():
    pace = Pace()
    pace.saw(1, 0.0)
    pace.saw(5, 4.0)
    pace.stands_still()
    assert pace.seconds_left(10) is None
    pace.saw(5, 100.0)
    pace.saw(6, 110.0)
    assert pace.seconds_left(10) == 40.0
    pace.saw(3, 120.0)
    assert pace.seconds_left(10) is None


@pytest.mark.parametrize(("state", "shown"), [("running", True), ("waiting_for_teacher", False)])
def test_a_running_run_shows_its_time_left(monkeypatch, state, shown):
    now = [0.0]
    monkeypatch.setattr("lectern.terminal.live.time.monotonic", lambda: now[0])
    view = LiveRun("run-1")
    words: dict[str, Any] = {"since": 0.0, "heartbeat": 0.0, "pid": 1, "process_create_time": 0.0}
    for step, at in ((0, 0.0), (10, 20.0)):
        now[0] = at
        view.show_status(Status("run-1", RunState(state), step=step, steps=100, **words))
    assert ("3 min left" in view.line()) is shown
    view.add_metrics([{"step": 10, "loss/total": 2.0}])
    assert ("2.000 -> 2.000, 3 min left" in "\n".join(live._curve_lines([view], 80))) is shown
