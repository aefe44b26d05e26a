"""How far a long work is, and how long it will take."""

from lectern.console import Pace


def test_the_time_left_is_at_the_rate_of_the_last_minute():
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.after("batches", 500, 1000) == ""  # where an earlier start had come to
    now[0] = 10.0
    assert pace.after("batches", 520, 1000) == "2/s, 4 min left"
    for second in range(11, 200):
        now[0] = float(second)
        words = pace.after("batches", 520 + (second - 10), 1000)
    assert words == "1/s, 5 min left"


def test_a_stage_that_has_just_begun_or_goes_nowhere_has_no_rate():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.after("one", 0, 10)
    now[0] = 5.0
    assert pace.after("one", 5, 10) == "1/s, 5 s left"
    assert pace.after("two", 5, 10) == ""
    now[0] = 6.0
    assert pace.after("two", 5, 10) == ""
    assert pace.after("two", 20, 10) == "15/s, 0 s left"
