"""What the charts compute: smoothing, ranges, groups and means, held against other computations."""

import json
import math

import pytest

from tests.control_plane.web.chart_page import ORIGIN, ChartPage, columns, run_view
from tests.control_plane.web.test_page import browser  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser


def test_labels_of_an_axis_differ_where_the_values_do(browser):  # noqa: F811
    context = browser.new_context()
    page = context.new_page()
    ChartPage(page)
    page.goto(f"{ORIGIN}/")
    labels = page.evaluate(
        """async () => {
            const { tickLabels } = await import("/web/charts/drawing/axes.js");
            const { short, size } = await import("/web/format.js");
            return [tickLabels([0, 500, 1000, null], short),
                    tickLabels([950, 1000, 1050, 1100], short),
                    tickLabels([524288, 524290, 524292], size)];
        }"""
    )
    context.close()
    assert labels[0] == ["0", "500", "1.0\N{THIN SPACE}k", ""]
    assert labels[1] == ["950", "1000", "1050", "1100"]
    assert labels[2] == ["524288", "524290", "524292"]


@pytest.fixture(scope="module")
def call(browser):  # noqa: F811
    """Yields a function that calls an exported function of a module of the charts."""
    context = browser.new_context()
    page = context.new_page()
    ChartPage(page)
    page.goto(f"{ORIGIN}/")

    def call(module: str, name: str, *arguments: object):
        return json.loads(
            page.evaluate(
                """async ([module, name, given]) => {
                    const found = await import(`/web/charts/${module}.js`);
                    const result = found[name](...given);
                    return JSON.stringify(result instanceof Map ? [...result] : result);
                }""",
                [module, name, list(arguments)],
            )
        )

    yield call
    context.close()


def moving_average(values: dict[int, float], at: int, span: float) -> float:
    """Returns the average by its definition: every value so far, weighted by its age in steps."""
    weights = {step: math.exp((step - at) / span) for step in values if step <= at}
    return sum(weights[step] * values[step] for step in weights) / sum(weights.values())


def test_the_moving_average_weighs_what_was_measured_by_its_age_in_steps(call):
    values = {step: math.sin(step * step) for step in (1, 2, 3, 7, 8, 30, 31, 90)}
    records = [{"step": step, "loss/ce": value} for step, value in values.items()]
    found = call("values/smoothing", "smoothed", columns(records, "loss/ce", 1000), 12.5)
    assert found == pytest.approx([moving_average(values, step, 12.5) for step in values])
    assert found[0] == values[1]


@pytest.mark.parametrize("max_points", [500, 100, 40])
def test_the_moving_average_does_not_depend_on_how_many_points_are_drawn(call, max_points):
    # Constant within each bucket, so that a bucket's mean says all of it.
    values = {step: math.cos((step - 1) // 50) for step in range(1, 1001)}
    records = [{"step": step, "loss/ce": value} for step, value in values.items()]
    thinned = columns(records, "loss/ce", max_points)
    found = call("values/smoothing", "smoothed", thinned, 60)
    assert found == pytest.approx([moving_average(values, step, 60) for step in thinned["step"]])


def test_values_that_are_not_finite_leave_a_gap_and_the_average_goes_on_behind_it(call):
    records: list[dict] = [{"step": 1, "k": 4.0}, {"step": 2, "k": None}, {"step": 3, "k": 8.0}]
    found = call("values/smoothing", "smoothed", columns(records, "k", 10), 2)
    assert found[:2] == [4.0, None]
    assert found[2] == pytest.approx(moving_average({1: 4.0, 3: 8.0}, 3, 2))


def test_a_spike_is_an_outlier_and_the_start_of_a_loss_is_not(call):
    falling = [2.5 + 6 * math.exp(-step / 100) for step in range(400)]
    assert call("values/ranges", "robustExtent", falling) == [min(falling), max(falling)]
    assert call("values/ranges", "robustExtent", [*falling, 900.0, -70.0]) == [
        min(falling),
        max(falling),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([3.0], [3.0, 3.0]),
        ([1.0, 2.0, 500.0], [1.0, 500.0]),  # too few to call one an outlier
        ([5.0] * 99 + [6.0], [5.0, 6.0]),  # a jump of a constant is all there is to see
        ([0.0] * 30, [0.0, 0.0]),
    ],
)
def test_few_or_constant_values_have_no_outliers(call, values, expected):
    assert call("values/ranges", "robustExtent", values) == expected


def test_outliers_of_a_log_scale_are_ratios(call):
    values = [10.0 ** (place / 10) for place in range(60)]
    assert call("values/ranges", "robustExtent", values, True) == [values[0], values[-1]]
    assert call("values/ranges", "robustExtent", [*values, 1e30], True)[1] == values[-1]


@pytest.mark.parametrize(
    ("given", "is_log", "expected"),
    [
        (None, False, [0, 1]),
        ([2, 2], False, [1.8, 2.2]),
        ([0, 0], False, [-1, 1]),
        ([0, 10], False, [-0.5, 10.5]),
        ([-3, -3], False, [-3.3, -2.7]),
        ([8, 8], True, [5.3, 12]),
    ],
)
def test_a_range_gets_room_around_it(call, given, is_log, expected):
    assert call("values/ranges", "padded", given, is_log) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limits", "is_log", "expected"),
    [
        ([None, None], False, [2, 8]),
        ([3, None], False, [3, 8]),
        ([None, 5], False, [2, 5]),
        ([9, None], False, [9, 15]),
        ([7, 3], False, [2, 8]),
        ([0, 4], True, [2, 4]),
    ],
)
def test_limits_that_leave_nothing_are_left_out(call, limits, is_log, expected):
    assert call("values/ranges", "limited", [2, 8], limits, is_log) == expected


def entry(run_id: str, **settings: object) -> dict:
    return {"run": run_view(run_id), "name": run_id, "settings": settings}


def test_runs_are_grouped_by_all_settings_but_the_seed(call):
    entries = [
        entry("a", **{"optimizer.learning_rate": 3e-4, "seed": 0, "name": "a"}),
        entry("b", **{"optimizer.learning_rate": 1e-4, "seed": 0, "name": "b"}),
        entry("c", **{"optimizer.learning_rate": 3e-4, "seed": 1, "name": "c"}),
    ]
    differing = call("values/groups", "differingSettings", entries)
    assert differing == ["optimizer.learning_rate", "seed"]
    groups = call("values/groups", "groupsOf", entries, "all but the seed")
    assert [(g["value"], [e["name"] for e in g["entries"]]) for g in groups] == [
        ("learning rate 0.0001", ["b"]),
        ("learning rate 0.0003", ["a", "c"]),
    ]


def test_values_of_a_setting_are_ordered_as_numbers_and_absent_ones_are_called_default(call):
    ranks = {"a": 16, "b": 2, "d": 2, "e": None}
    entries = [entry(name, rank=rank) for name, rank in ranks.items()] + [entry("c")]
    groups = call("values/groups", "groupsOf", entries, "rank")
    sizes = [(g["value"], len(g["entries"])) for g in groups]
    assert sizes == [("2", 2), ("16", 1), ("default", 1), ("none", 1)]


def test_the_mean_of_runs_measured_at_other_steps_is_taken_between_their_values(call):
    lines = [
        {"x": [0, 10, 20], "value": [0.0, 10.0, 20.0]},
        {"x": [5, 15], "value": [7.0, 17.0]},
        {"x": [10], "value": [None]},
    ]
    mean = call("values/groups", "meanOf", lines, "range")
    assert mean["x"] == [0, 5, 10, 15, 20]
    assert mean["value"] == [0, 6, 11, 16, 20]
    assert mean["low"] == [0, 5, 10, 15, 20]
    assert mean["high"] == [0, 7, 12, 17, 20]
    assert mean["runs"] == [1, 2, 2, 2, 1]
    spread = call("values/groups", "meanOf", lines, "std")
    assert spread["high"] == pytest.approx([0, 6 + 2**0.5, 11 + 2**0.5, 16 + 2**0.5, 20])


def test_finer_buckets_take_the_place_of_coarse_ones_and_no_value_is_there_twice(call):
    records = [{"step": step, "k": float(step)} for step in range(1, 101)]
    coarse = columns(records, "k", 10)
    fine = columns([record for record in records if 25 <= record["step"] <= 44], "k", 100)
    whole = call("values/columns", "spliced", coarse, fine, 25, 44)
    assert whole["step"] == [10, 20, *range(25, 45), 60, 70, 80, 90, 100]
    assert whole["count"] == [10] * 2 + [1] * 20 + [10] * 5


@pytest.mark.parametrize(
    ("alpha", "temperature", "expected"),
    [
        (1, None, "cross entropy"),
        (0, 2, "T\u00b2 \u00b7 distillation, T 2"),
        (0, 1, "distillation, T 1"),
        (0.3, 4, "0.3 \u00b7 cross entropy + 0.7 \u00b7 T\u00b2 \u00b7 distillation, T 4"),
    ],
)
def test_a_total_says_what_it_is_the_total_of(call, alpha, temperature, expected):
    run = {"alpha": alpha, "temperature": temperature}
    assert call("values/lines", "minimised", run) == expected


def test_metrics_are_grouped_by_prefix_and_axes_are_none(call):
    keys = "wire/x perf/y loss/kd step time progress/tokens loss/val odd optim/b optim/a non_finite"
    assert call("metrics", "keysByGroup", [*keys.split(), "loss/val"]) == [
        ["loss", ["loss/val", "loss/kd"]],
        ["optim", ["optim/a", "optim/b"]],
        ["perf", ["perf/y"]],
        ["other", ["odd"]],
        ["wire", ["wire/x"]],
    ]
