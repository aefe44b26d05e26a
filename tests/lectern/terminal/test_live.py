import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lectern.terminal import live
from lectern.terminal.live import MAX_CURVE_POINTS, Curve, LiveRun, sparkline
from lectern_common.run.status import RunState, Status

BLOCKS = "".join(map(chr, range(0x2581, 0x2589)))


def view(**changes) -> LiveRun:
    shown = LiveRun("run-1")
    values = {
        "run_id": "run-1",
        "state": RunState.RUNNING,
        "since": 0.0,
        "heartbeat": 0.0,
        "pid": 1,
        "process_create_time": 0.0,
        "step": 2,
        "steps": 4,
        "tokens_per_second": 1234.5,
        "teacher_wait_share": 0.25,
        **changes,
    }
    shown.show_status(Status(**values))
    return shown


def test_a_sparkline_goes_from_the_lowest_block_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([7, 0]) == BLOCKS[7] + BLOCKS[0]
    assert sparkline([3.0, 3.0]) == BLOCKS[0] * 2
    assert sparkline([0.0, 2.2e-311]) == BLOCKS[0] + BLOCKS[7]
    assert sparkline([]) == ""


def test_a_sparkline_shows_the_means_of_equal_shares():
    assert sparkline([0, 2, 4, 4, 7, 9], width=3, ascii_only=True) == "_.%".replace(
        ".", "_.-=+*#%"[round((4 - 1) / (8 - 1) * 7)]
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 40))
def test_a_sparkline_has_one_block_per_value_up_to_its_width(values, width):
    assert len(sparkline(values, width)) == min(width, len(values))


def test_a_curve_keeps_a_bounded_number_of_points_over_its_whole_length():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, float(step))

    assert len(curve.values) <= MAX_CURVE_POINTS
    assert curve.steps[0] == 0 and curve.steps[-1] > 90_000
    assert curve.values == [float(step) for step in curve.steps]
    assert curve.last == 99_999.0


def test_a_value_that_was_not_finite_leaves_no_point():
    curve = Curve()
    for step, value in enumerate([1.0, None, float("nan"), 2.0]):
        curve.add(step, value)

    assert (curve.steps, curve.values) == ([0, 3], [1.0, 2.0])


def test_a_run_that_goes_back_to_a_checkpoint_cuts_its_curve_back():
    shown = view()
    shown.add_metrics([{"step": step, "loss/total": 10.0 - step} for step in (1, 2, 3, 4)])
    shown.add_metrics([{"step": step, "loss/total": 20.0 - step} for step in (3, 4)])

    curve = shown.curves["loss/total"]
    assert (curve.steps, curve.values) == ([1, 2, 3, 4], [9.0, 8.0, 17.0, 16.0])


def test_a_line_shows_all_that_is_known():
    shown = view()
    shown.add_metrics(
        [{"step": 1, "loss/total": 3.0, "loss/kd": 0.5}, {"step": 2, "loss/val": 2.0}]
    )

    assert shown.line() == (
        "run-1  running  step 2/4  loss/total 3.0000  loss/kd 0.5000  loss/val 2.0000  "
        "1,234 tokens/s  teacher wait 25%"
    )


def test_a_run_at_rest_shows_its_reason():
    shown = view(state=RunState.FAILED, reason="diverged", message="the loss is not finite")

    assert shown.line().endswith("(diverged) the loss is not finite")


def test_a_reason_that_the_state_says_already_is_not_repeated():
    shown = view(state=RunState.STOPPED, reason="stopped", message="stopped on request")

    assert shown.line().endswith("teacher wait 25%  stopped on request")


def drawn(views: list[LiveRun], width: int) -> list[str]:
    written = io.StringIO()
    console = Console(width=width, file=written)
    console.print(live.drawing(views, width=width))
    return written.getvalue().splitlines()


def test_the_drawing_fits_eighty_columns_with_every_number_whole():
    views = [view(state=RunState.WAITING_FOR_TEACHER, step=1234, steps=1234) for _ in range(2)]
    views[0].run_id = "distil-top-k-98gqa9"
    for number, shown in enumerate(views):
        shown.add_metrics(
            [{"step": step, "loss/total": 9.0 - step / 100} for step in range(200)]
            + [{"step": 200, "loss/kd": 0.1234, "loss/val": 5.4321 + number}]
        )

    lines = drawn(views, width=80)

    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for words in ("waiting_for_teacher", "1234/1234", "7.0100", "0.1234", "5.4321", "6.4321"):
        assert words in text
    assert "9.000 -> 7.010" in text
    assert chr(0x2026) not in text  # nothing was cut short


def test_a_runs_message_is_drawn_as_plain_text():
    lines = drawn([view(state=RunState.FAILED, message="[bold]not markup[/bold]")], width=80)

    assert "run-1: [bold]not markup[/bold]" in lines


def test_without_a_terminal_a_line_is_printed_when_the_state_changes(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lectern.terminal.live.time.monotonic", lambda: now[0])
    with live.display() as show:
        for seconds, step, state in (
            (0, 1, RunState.RUNNING),
            (1, 2, RunState.RUNNING),
            (11, 3, RunState.RUNNING),
            (40, 3, RunState.RUNNING),
            (41, 3, RunState.SUCCEEDED),
        ):
            now[0] = float(seconds)
            show([view(step=step, state=state)])

    steps = [line.split("  ")[1:3] for line in capsys.readouterr().out.splitlines()]
    assert steps == [
        ["running", "step 1/4"],
        ["running", "step 3/4"],
        ["succeeded", "step 3/4"],
    ]


def test_a_run_that_stalls_is_told_once_and_drawn(capsys, monkeypatch):
    monkeypatch.setattr("lectern.terminal.live.time.monotonic", lambda: 0.0)
    with live.display() as show:
        for seconds in (10, 100, 101, 102, 3):
            said = {"activity": "step", "activity_seconds": seconds, "usual_seconds": 1}
            show([view(heartbeat=1000.0 + seconds, **said)])

    lines = capsys.readouterr().out.splitlines()
    assert ["stalled: alive, but no progress since" in line for line in lines] == [
        False,
        True,
        False,
    ]
    stalled = view(heartbeat=1100.0, activity="step", activity_seconds=100, usual_seconds=1)
    assert "run-1: stalled: alive, but no progress since" in " ".join(drawn([stalled], width=100))


@pytest.mark.parametrize("show", [live.nothing])
def test_nothing_shows_nothing(capsys, show):
    with show() as display:
        display([view()])

    assert capsys.readouterr().out == ""
