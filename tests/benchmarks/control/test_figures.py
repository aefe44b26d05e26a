"""The control plane's benchmark measures every figure, with a real control plane."""

import pytest

from benchmarks.control.figures import QUICK, measure
from benchmarks.goals import judged

pytestmark = pytest.mark.long


def test_every_figure_is_measured_on_a_small_home():
    rows = [judged(row) for row in measure(QUICK)]
    assert [row["what"].partition(",")[0] for row in rows] == [
        "index of 5",
        "idle",
        "list of 50 runs",
        "page of the long run",
        "chart of three metrics of the long run",
        "6 streams with 4 runs of 10 steps a second",
        "a resume's cut of 5",
    ]
    goals = [figure for row in rows for figure in row.get("goals", {})]
    assert goals.count("p95_seconds") == 2
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, int | float)]
        assert numbers and min(numbers) >= 0
    assert rows[5]["events_per_second"] > 0
