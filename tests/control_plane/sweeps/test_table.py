"""The table of a sweep: last and best values, mean and spread over seeds, and which is best."""

import math
from typing import Any

import pytest

from control_plane.reading.series.extremes import Extremes
from control_plane.runs.record import Run, Wanted
from control_plane.sweeps.store import SweepRecord
from control_plane.sweeps.table import Table, table_of
from lectern_common.run.status import RunState
from lectern_common.spec.sweep import Goal, parse_sweep
from tests.control_plane.conftest import spec_body

RATE = "optimizer.learning_rate"


def at(best: float, step: int = 10) -> Extremes:
    return Extremes(best + 0.5, 20, best, step)


def table(
    grid: dict[str, list[Any]],
    reached: list[Extremes | OSError | None],
    goal: Goal = "min",
    **states: tuple[RunState, str | None],
) -> Table:
    """Returns the table of a grid whose runs have reached this; states by the name of the run."""
    base = {name: value for name, value in spec_body().items() if name != "name"}
    sweep = parse_sweep({"name": "s", "base": base, "grid": grid})
    runs = []
    for seq, spec in enumerate(sweep.specs):
        state, reason = states.get(spec.name.replace("-", ""), (RunState.RUNNING, None))
        runs.append(
            Run(
                seq=seq,
                id=f"{spec.name}-abcdef",
                name=spec.name,
                spec=spec.model_dump(mode="json"),
                created_at=0.0,
                wanted=Wanted.RUNNING,
                state=state,
                since=0.0,
                revision=seq,
                reason=reason,
            )
        )
    settings = list(sweep.settings)
    record = SweepRecord(1, "s-abcdef", "s", 0.0, "loss/val", goal, settings, len(runs))

    def found(run: Run) -> Extremes | None:
        value = reached[run.seq]
        if isinstance(value, OSError):
            raise value
        return value

    return table_of(record, runs, found)


def test_a_run_shows_what_it_set_and_reached() -> None:
    made = table({RATE: [1e-3, 1e-4]}, [at(2.0, 7), at(1.5, 9)])
    first, second = made.runs
    assert first.settings == {RATE: 1e-3}
    assert (first.value, first.value_step, first.best, first.at_step) == (2.5, 20, 2.0, 7)
    assert (first.note, first.group, second.group) == (None, 0, 1)
    assert (made.best, made.best_group) == ("s-02-abcdef", 1)
    assert [(group.n, group.mean, group.spread) for group in made.groups] == [
        (1, 2.0, None),
        (1, 1.5, None),
    ]


def test_the_highest_is_best_if_that_is_the_goal() -> None:
    made = table({RATE: [1e-3, 1e-4, 1e-5]}, [at(2.0), at(1.5), at(2.0)], goal="max")
    assert made.best == "s-01-abcdef"  # the first of equal ones


def test_seeds_are_grouped_with_mean_and_sample_deviation() -> None:
    values = [2.0, 4.0, 4.5, 2.5, 2.5, 2.5]
    made = table({RATE: [1e-3, 1e-4], "seed": [0, 1, 2]}, [at(value) for value in values])
    one, other = made.groups
    assert one.settings == {RATE: 1e-3}
    assert one.runs == ["s-01-abcdef", "s-02-abcdef", "s-03-abcdef"]
    assert (one.n, one.mean) == (3, 3.5)
    assert one.spread == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 1.0**2) / 2))
    assert (other.mean, other.spread) == (2.5, 0.0)
    # The single best run is of the worse setting.
    assert (made.best_group, made.best) == (1, "s-04-abcdef")


def test_the_seed_may_be_the_first_setting() -> None:
    made = table({"seed": [0, 1], RATE: [1e-3, 1e-4]}, [at(1.0), at(5.0), at(3.0), at(6.0)])
    assert [group.runs for group in made.groups] == [
        ["s-01-abcdef", "s-03-abcdef"],
        ["s-02-abcdef", "s-04-abcdef"],
    ]
    assert [group.mean for group in made.groups] == [2.0, 5.5]
    assert [row.group for row in made.runs] == [0, 1, 0, 1]


def test_only_seeds_make_one_group() -> None:
    made = table({"seed": [3, 4]}, [at(1.0), at(2.0)])
    assert [(group.settings, group.n, group.mean) for group in made.groups] == [({}, 2, 1.5)]
    assert made.best == "s-01-abcdef"


def test_a_run_without_a_value_is_not_the_best() -> None:
    made = table({RATE: [1e-3, 1e-4]}, [None, at(9.0)], s01=(RunState.QUEUED, None))
    assert made.runs[0].note == "no loss/val yet"
    assert (made.groups[0].n, made.groups[0].mean, made.groups[0].note) == (
        0,
        None,
        "no loss/val yet",
    )
    assert made.best == "s-02-abcdef"
    made = table({RATE: [1e-3, 1e-4]}, [None, None], s01=(RunState.STOPPED, "stopped"))
    assert [row.note for row in made.runs] == ["stopped without loss/val", "no loss/val yet"]
    assert (made.best, made.best_group) == (None, None)


@pytest.mark.parametrize(
    ("reached", "reason", "note"),
    [
        (Extremes(None, 20, 0.1, 5), None, "diverged: loss/val is not finite at step 20"),
        (Extremes(None, 20, None, None), None, "diverged: loss/val is not finite at step 20"),
        (at(0.1), "diverged", "diverged: its loss is not finite"),
    ],
)
def test_a_run_that_diverged_is_not_the_best(
    reached: Extremes, reason: str | None, note: str
) -> None:
    state = RunState.FAILED if reason else RunState.RUNNING
    made = table({RATE: [1e-3, 1e-4]}, [reached, at(9.0)], s01=(state, reason))
    assert made.runs[0].note == note
    assert made.best == "s-02-abcdef"


def test_a_run_that_failed_for_another_reason_keeps_its_value() -> None:
    made = table({RATE: [1e-3, 1e-4]}, [at(1.0), at(9.0)], s01=(RunState.FAILED, "crash_loop"))
    assert made.best == "s-01-abcdef"


def test_a_group_competes_once_each_of_its_runs_has_a_value_and_none_diverged() -> None:
    grid: dict[str, list[Any]] = {RATE: [1e-3, 1e-4], "seed": [0, 1]}
    made = table(grid, [at(1.0), None, at(5.0), at(6.0)])
    assert made.groups[0].n == 1
    assert made.groups[0].note == "1 of 2 runs, the first: no loss/val yet"
    assert made.best == "s-03-abcdef"
    lost = Extremes(None, 20, 0.5, 3)
    made = table(grid, [at(1.0), lost, at(5.0), at(6.0)])
    assert (made.groups[0].n, made.groups[0].mean) == (1, 1.0)
    assert str(made.groups[0].note).startswith("1 of 2 runs, the first: diverged")
    assert made.best_group == 1
    made = table(grid, [at(1.0), None, at(5.0), None])
    assert (made.best, made.best_group) == (None, None)


def test_metrics_that_cannot_be_read_trouble_only_their_run() -> None:
    made = table({RATE: [1e-3, 1e-4]}, [OSError(5, "Input/output error"), at(9.0)])
    assert made.runs[0].note == "its metrics cannot be read: Input/output error"
    assert made.best == "s-02-abcdef"


def test_values_too_large_for_a_mean_have_none() -> None:
    made = table({"seed": [0, 1]}, [at(1.7e308), at(1.7e308)])
    assert (made.groups[0].mean, made.groups[0].spread) == (None, None)
    assert made.best is None


def test_a_sweep_without_runs_has_an_empty_table() -> None:
    record = SweepRecord(1, "s", "s", 0.0, "loss/val", "min", [RATE], 3)
    assert table_of(record, [], lambda run: None) == Table([], [], None, None)
