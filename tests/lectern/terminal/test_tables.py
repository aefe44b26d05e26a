"""Runs as plain text: ids are never cut, and times are readable."""

from datetime import datetime

from lectern.client import RunStatus
from lectern.terminal.tables import list_lines, with_dates

LONG = "a-name-of-many-words-that-is-not-short-abcdef"


def run(run_id: str, **fields: object) -> RunStatus:
    return RunStatus.of_json({"id": run_id, "name": "a", "state": "queued", "steps": 9, **fields})


def test_without_a_terminal_nothing_is_cut():
    why = "waits\nuntil " + 40 * "many words "
    lines = list_lines([run(LONG, message=why), run("b-x", latest={"loss/val": 1.5}, step=3)])
    assert lines[1].startswith(f"{LONG}  queued   0/9")
    assert lines[1].endswith(" ".join(why.split()))
    assert lines[2].split() == ["b-x", "queued", "3/9", "1.5000"]
    assert lines[0].index("state") == lines[1].index("queued") == lines[2].index("queued")


def test_on_a_terminal_lines_are_cut_but_never_ids():
    runs = [run(LONG, message="a long reason " * 9), run("b")]
    for width in (20, 60, 100):
        lines = list_lines(runs, width)
        assert max(map(len, lines)) <= max(width, len(LONG) + len("..."))
        assert lines[1].startswith(LONG)
        assert lines[1].endswith("...")


def test_escape_sequences_of_a_run_do_not_reach_the_terminal():
    assert "\x1b" not in list_lines([run("b", message="\x1b[2J")])[1]


def test_times_are_shown_as_local_dates():
    data = {"since": 0.5, "step": 3, "resumes_at": None, "history": [{"at": 60.0, "attempt": 1}]}
    shown = with_dates(data)
    assert shown["since"] == datetime.fromtimestamp(0).astimezone()
    assert shown["since"].tzinfo is not None
    assert shown["history"] == [{"at": datetime.fromtimestamp(60).astimezone(), "attempt": 1}]
    assert (shown["step"], shown["resumes_at"]) == (3, None)


def test_a_run_that_is_stalled_or_silent_says_so():
    then = datetime(2020, 2, 3, 14, 5, 6).astimezone().timestamp()
    found = run("b", stalled_since=then, activity="evaluation", message="fine")
    assert list_lines([found])[1].endswith(
        "stalled: alive, but no progress in evaluation since 2020-02-03 14:05:06"
    )
    found = run("b", stalled_since=then, stale_since=then, activity="step")
    assert list_lines([found])[1].endswith(
        "no heartbeat from the trainer since 2020-02-03 14:05:06"
    )
    assert with_dates({"stalled_since": then})["stalled_since"].year == 2020


def test_the_time_of_a_checkpoint_and_of_the_last_metrics_are_dates():
    shown = with_dates({"checkpoint_at": 60.4, "latest": {"time": 61.0, "time/step_seconds": 0.5}})
    assert shown["checkpoint_at"] == datetime.fromtimestamp(60).astimezone()
    assert shown["latest"]["time"] == datetime.fromtimestamp(61).astimezone()
    assert shown["latest"]["time/step_seconds"] == 0.5
