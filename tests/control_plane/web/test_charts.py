"""The charts in a real browser: zoom, hover, axes, bands, marks, means, downloads."""

import csv
import io
import json
import math

import pytest

from tests.control_plane.conftest import wait_for
from tests.control_plane.web.chart_page import ChartPage
from tests.control_plane.web.test_page import browser, page  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

MAIN = ".chart-main"
PATIENCE = 60.0


def records(
    steps: int, first: int = 1, shift: float = 0.0, extra: dict | None = None
) -> list[dict]:
    return [
        {
            "step": step,
            "loss/total": 3 + shift + 2 * math.exp(-step / 50) + math.sin(step) / 10,
            "loss/ce": 2 + shift + 2 * math.exp(-step / 50) + math.sin(step) / 10,
            "optim/grad_norm": 1 + math.cos(step) / 2,
            "progress/tokens": step * 1000,
            "progress/seconds": step * 0.5,
            "time": 1_790_000_000 + step * 0.5,
            **({"loss/val": 2.5 + shift + 1 / step} if step % 50 == 0 else {}),
            **(extra or {}),
        }
        for step in range(first, first + steps)
    ]


@pytest.fixture
def charts(page):  # noqa: F811
    return ChartPage(page)


def opened(charts, kind: str = "Overview", metric: str = "loss/ce", **options) -> None:
    params = {"metric": metric, **options.pop("params", {})}
    charts.open(kind, params=params, **options)
    wait_for(lambda: charts.shown("grid.main.plot !== null"), PATIENCE)
    wait_for(
        lambda: len(lines(charts)) == (1 if kind == "RunCharts" else len(charts.runs)), PATIENCE
    )


def lines(charts) -> list[dict]:
    """Returns the lines of the large chart as they are drawn, without what is not data."""
    found: list[dict] = charts.shown(
        """(grid.main.picture?.lines ?? []).map(
            ({name, x, value, low, high, marks, style, remark}) =>
                ({name, x, value, low, high, marks, style, remark}))"""
    )
    return found


def scale(charts, axis: str = "x") -> list[float]:
    found: list[float] = charts.shown(
        f"[grid.main.plot.scales.{axis}.min, grid.main.plot.scales.{axis}.max]"
    )
    return found


def drag(charts, start: float, end: float, chart: str = MAIN) -> None:
    """Drags over the plot, from one share of its width to another."""
    box = charts.page.locator(f"{chart} .u-over").bounding_box()
    mouse = charts.page.mouse
    mouse.move(box["x"] + start * box["width"], box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + end * box["width"], box["y"] + box["height"] / 2, steps=4)
    mouse.up()


def finer(charts) -> dict[str, str] | None:
    """Returns the first request for a part of the steps, if one was made."""
    charts.page.evaluate("1")  # requests are answered while the browser is waited for
    return next((asked for asked in charts.asked if "from_step" in asked), None)


def test_every_metric_has_a_small_chart_in_its_group_and_any_can_be_enlarged(charts):
    charts.add("a", records(200, extra={"memory/rss_bytes": 3e9, "optim/skipped_steps": 0}))
    opened(charts, "RunCharts")
    cards = charts.page.locator(".chart-card")
    wait_for(lambda: cards.count() == 6, PATIENCE)
    groups = charts.page.locator(".chart-group > summary").all_inner_texts()
    assert groups == ["loss", "optim", "memory"]
    rss = charts.page.locator("[data-key='memory/rss_bytes']")
    wait_for(lambda: "3.0\N{THIN SPACE}GB" in rss.inner_text(), PATIENCE)
    assert "bytes" in rss.inner_text()
    assert "Constant" in rss.inner_text()
    charts.page.get_by_role("button", name="Grad norm").click()
    title = charts.page.locator(f"{MAIN} h2")
    wait_for(lambda: title.inner_text() == "Grad norm", PATIENCE)
    assert charts.page.evaluate("window.params.at(-1)") == {"metric": "optim/grad_norm"}


def test_a_zoom_stays_while_values_come_and_all_charts_share_it(charts):
    charts.add("a", records(200))
    opened(charts, "RunCharts")
    wait_for(lambda: charts.shown("[...grid.cards.values()].every((c) => c.chart.plot)"), PATIENCE)
    drag(charts, 0.25, 0.5)
    reset = charts.page.locator(".reset-zoom")
    wait_for(reset.is_visible, PATIENCE)
    low, high = scale(charts)
    assert low == pytest.approx(1 + 0.25 * 199, abs=3)
    assert high == pytest.approx(1 + 0.5 * 199, abs=3)
    charts.records["a"] += records(50, first=201)
    charts.update("RunCharts")
    wait_for(lambda: lines(charts)[0]["x"][-1] == 250, PATIENCE)
    assert scale(charts) == [low, high]
    ranges = charts.shown("[...grid.cards.values()].map(({chart}) => chart.plot.scales.x.min)")
    assert ranges == [low] * 4
    reset.click()
    wait_for(lambda: scale(charts) == [1, 250], PATIENCE)
    assert not reset.is_visible()
    drag(charts, 0.25, 0.5)
    wait_for(reset.is_visible, PATIENCE)
    charts.page.locator(f"{MAIN} .u-over").dblclick()
    wait_for(lambda: scale(charts) == [1, 250], PATIENCE)


def test_a_zoom_fetches_finer_data_and_does_not_draw_a_value_twice(charts):
    charts.add("a", records(20_000))
    opened(charts, "RunCharts", expanded=False)
    assert len(lines(charts)[0]["x"]) == 800
    drag(charts, 0.5, 0.52)
    asked = wait_for(lambda: finer(charts), PATIENCE)
    low, high = scale(charts)
    assert int(asked["from_step"]) == math.floor(low)
    assert int(asked["to_step"]) == math.ceil(high)

    def inside() -> list[float]:
        return [x for x in lines(charts)[0]["x"] if low <= x <= high]

    wait_for(lambda: len(inside()) > 300, PATIENCE)
    assert inside() == list(range(math.ceil(low), math.floor(high) + 1))
    xs = lines(charts)[0]["x"]
    assert xs == sorted(set(xs))
    number = len(charts.asked)
    charts.update("RunCharts")
    charts.page.wait_for_timeout(1500)
    assert len(charts.asked) == number  # asked for once


def test_a_zoom_over_tokens_asks_for_the_steps_of_those_tokens(charts):
    charts.add("a", records(20_000))
    opened(charts, "RunCharts", expanded=False, params={"x": "tokens", "zoom": "5000000~5100000"})
    asked = wait_for(lambda: finer(charts), PATIENCE)
    assert 4900 <= int(asked["from_step"]) <= 5000
    assert 5100 <= int(asked["to_step"]) <= 5200


def test_hovering_shows_the_values_of_each_run_at_that_place_in_all_charts(charts):
    charts.add("a", records(100))
    charts.add("b", records(50, shift=1))
    opened(charts, expanded=True)
    wait_for(lambda: charts.shown("[...grid.cards.values()].every((c) => c.chart.plot)"), PATIENCE)
    legend = charts.page.locator(f"{MAIN} .legend li")
    last = legend.all_inner_texts()
    assert "at step 100" in last[0] and "at step 50" in last[1]
    box = charts.page.locator(f"{MAIN} .u-over").bounding_box()
    charts.page.mouse.move(box["x"] + box["width"] * 39 / 99, box["y"] + 40)
    wait_for(lambda: legend.all_inner_texts() != last, PATIENCE)
    at = charts.shown("Math.round(grid.main.hovered())")
    assert at == pytest.approx(40, abs=1)
    values = legend.locator(".legend-value").all_inner_texts()
    expected = [
        record["loss/ce"] for record in (records(100)[at - 1], records(50, shift=1)[at - 1])
    ]
    assert values == [f"{value:.4f}" for value in expected]
    other = charts.page.locator("[data-key='optim/grad_norm'] .legend-value").first
    assert float(other.inner_text()) == pytest.approx(
        records(100)[at - 1]["optim/grad_norm"], rel=1e-3
    )
    charts.page.mouse.move(2, 2)
    wait_for(lambda: legend.all_inner_texts() == last, PATIENCE)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("Tokens", 1000, 200_000), ("Time", 0.5, 100), ("Clock", 1_790_000_000.5, 1_790_000_100)],
)
def test_the_horizontal_axis_is_steps_tokens_seconds_or_time(charts, name, first, last):
    charts.add("a", records(200))
    opened(charts, "RunCharts")
    assert scale(charts) == [1, 200]
    charts.page.get_by_role("radio", name=name).click()
    wait_for(lambda: scale(charts) == [first, last], PATIENCE)
    # Remembered, and the others share it.
    charts.open("RunCharts", params={"metric": "loss/ce"})
    wait_for(lambda: charts.shown("grid.main.plot") and scale(charts) == [first, last], PATIENCE)
    charts.open("RunCharts", params={"metric": "loss/ce", "x": "step"})
    wait_for(lambda: charts.shown("grid.main.plot") and scale(charts) == [1, 200], PATIENCE)


def test_a_run_whose_records_lack_the_axis_is_named_not_drawn(charts):
    charts.add("new", records(60))
    drop = ("time", "progress/tokens", "progress/seconds")
    charts.add("old", [{k: v for k, v in r.items() if k not in drop} for r in records(60)])
    opened(charts)
    charts.page.get_by_role("radio", name="Tokens").click()
    wait_for(lambda: [line["name"] for line in lines(charts)] == ["new"], PATIENCE)
    remark = charts.page.locator(f"{MAIN} .chart-remark")
    assert remark.inner_text() == "no tokens trained on recorded for old"


def test_a_log_scale_says_what_it_cannot_show(charts):
    some = records(100)
    some[10]["loss/ce"], some[20]["loss/ce"] = 0.0, -3.0
    charts.add("a", some)
    opened(charts, "RunCharts", params={"logy": "1", "logx": "1"})
    assert charts.shown("[grid.main.plot.scales.x.distr, grid.main.plot.scales.y.distr]") == [3, 3]
    assert lines(charts)[0]["value"][10] is None
    assert "2 values not above 0" in charts.page.locator(f"{MAIN} .chart-remark").inner_text()
    charts.page.locator(".chart-options summary").click()
    charts.page.get_by_label("Log scale, vertical").uncheck()
    wait_for(lambda: scale(charts, "y")[0] < 0, PATIENCE)


def test_outliers_are_left_out_of_the_range_and_counted(charts):
    some = records(200)
    some[150]["loss/ce"] = 1000.0
    charts.add("a", some)
    opened(charts, "RunCharts")
    assert scale(charts, "y")[1] < 10
    remark = charts.page.locator(f"{MAIN} .chart-remark")
    assert "1 point outside this range" in remark.inner_text()
    charts.page.locator(".chart-options summary").click()
    charts.page.get_by_label("Fit outliers in").check()
    wait_for(lambda: scale(charts, "y")[1] > 1000, PATIENCE)
    assert remark.inner_text() == ""
    charts.page.get_by_label("Vertical to").fill("3.5")
    charts.page.get_by_label("Vertical to").press("Enter")
    wait_for(lambda: scale(charts, "y")[1] == 3.5, PATIENCE)
    assert charts.page.evaluate("window.params.at(-1).y") == "loss/ce~~3.5"


def test_thinned_values_have_their_lowest_and_highest_behind_them(charts):
    charts.add("a", records(8000))
    opened(charts, "RunCharts", params={"smooth": "50"})
    line = lines(charts)[0]
    values = [record["loss/ce"] for record in records(8000)]
    assert line["low"][3] == pytest.approx(min(values[30:40]))
    assert line["high"][3] == pytest.approx(max(values[30:40]))
    assert charts.shown("grid.main.plot.bands.length") == 1
    smooth, span = line["value"], 50
    weights = [math.exp((step - 40) / span) for step in range(1, 41)]
    exact = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
    assert smooth[3] == pytest.approx(exact, rel=0.01)


def test_checkpoints_restarts_and_values_that_are_not_finite_are_marked(charts):
    some = records(100)
    some[29]["loss/ce"] = None
    charts.add("a", some)
    charts.marks["a"] = [
        {"kind": "checkpoint", "step": 50, "time": None},
        {"kind": "restart", "step": 60, "time": None},
        {"kind": "non_finite", "step": 30, "time": None},
    ]
    opened(charts, "RunCharts")
    assert [(mark["kind"], mark["x"]) for mark in lines(charts)[0]["marks"]] == [
        ("checkpoint", 50),
        ("restart", 60),
        ("non_finite", 30),
    ]
    label = charts.page.locator(f"{MAIN} .chart").get_attribute("aria-label")
    assert "1 checkpoint, 1 restart, 1 place where values were not finite" in label
    box = charts.page.locator(f"{MAIN} .u-over").bounding_box()
    note = charts.page.locator(f"{MAIN} .mark-note")
    for step, said in (
        (50, "Checkpoint at step 50"),
        (60, "Restarted from step 60"),
        (30, "Not a finite number at step 30"),
    ):
        charts.page.mouse.move(box["x"] + box["width"] * (step - 1) / 99, box["y"] + 40)
        wait_for(lambda: note.is_visible() and note.inner_text() == said, PATIENCE)  # noqa: B023


def test_runs_of_one_setting_share_a_colour_and_have_a_mean_with_a_band(charts):
    for number, (rate, seed) in enumerate(((3e-4, 0), (1e-4, 0), (3e-4, 1))):
        settings = {"optimizer.learning_rate": rate, "seed": seed}
        charts.add(f"run-{number}", records(60, shift=number), settings)
    opened(charts)
    assert len({line["style"]["color"] for line in lines(charts)}) == 3
    charts.page.locator(".chart-options summary").click()
    charts.page.get_by_label("Colour by").select_option(label="learning rate")
    wait_for(lambda: len({line["style"]["color"] for line in lines(charts)}) == 2, PATIENCE)
    by_name = {line["name"]: line["style"] for line in lines(charts)}
    assert by_name["run-0"] == by_name["run-2"] != by_name["run-1"]
    charts.page.get_by_label("Mean of runs of one colour").check()
    wait_for(lambda: len(lines(charts)) == 2, PATIENCE)
    single, mean = lines(charts)
    assert (single["name"], single["low"]) == ("run-1", None)
    assert (mean["name"], mean["remark"]) == ("learning rate 0.0003", "mean of 2")
    low, high = (records(60, shift=shift)[-1]["loss/ce"] for shift in (0, 2))
    assert mean["value"][-1] == pytest.approx((low + high) / 2)
    assert (mean["low"][-1], mean["high"][-1]) == (pytest.approx(low), pytest.approx(high))
    charts.page.get_by_label("Band of a mean").select_option("std")
    wait_for(lambda: lines(charts)[1]["high"][-1] > high, PATIENCE)
    assert lines(charts)[1]["high"][-1] == pytest.approx((low + high) / 2 + 2**0.5)


def test_totals_of_different_objectives_are_said_to_be_different(charts):
    charts.add("labels", records(60), alpha=1, temperature=None, representation=None)
    charts.add("teacher", records(60), alpha=0, temperature=2)
    opened(charts, metric="loss/total")
    warning = charts.page.locator(".chart-warning")
    assert "cannot be compared" in warning.inner_text()
    remarks = charts.page.locator(f"{MAIN} .legend-remark").all_inner_texts()
    assert remarks == ["cross entropy", "T\u00b2 \u00b7 distillation, T 2"]
    charts.page.get_by_role("radio", name="Cross entropy").click()
    wait_for(lambda: not warning.is_visible(), PATIENCE)


def downloaded(charts, kind: str) -> bytes:
    if not charts.page.locator(".chart-options").get_attribute("open") is not None:
        charts.page.locator(".chart-options summary").click()
    with charts.page.expect_download() as waiting:
        charts.page.get_by_role("button", name=kind).click()
    assert waiting.value.suggested_filename == f"loss-ce.{kind.lower()}"
    with open(waiting.value.path(), "rb") as file:
        return file.read()


def test_a_download_holds_what_the_chart_shows(charts):
    some = records(100)
    some[49]["loss/ce"] = None
    charts.add("a", some, name="=1+1")
    charts.add("b", records(100, shift=1), name='with "quotes", and commas')
    opened(charts, params={"zoom": "20.5~60.5"})
    rows = list(csv.DictReader(io.StringIO(downloaded(charts, "CSV").decode())))
    assert [row["step"] for row in rows] == [str(step) for step in range(21, 61)] * 2
    assert {row["line"] for row in rows} == {"'=1+1", 'with "quotes", and commas'}
    shown = [line["value"][20:60] for line in lines(charts)]
    told = [float(row["shown"]) if row["shown"] else None for row in rows]
    assert told == shown[0] + shown[1]
    assert (rows[29]["mean"], rows[29]["non_finite"]) == ("", "1")
    assert (rows[0]["tokens"], rows[0]["seconds"]) == ("21000", "10.5")
    told = json.loads(downloaded(charts, "JSON"))
    assert (told["metric"], told["unit"]) == ("loss/ce", "nats per token")
    assert [point["shown"] for point in told["points"]] == shown[0] + shown[1]
    assert downloaded(charts, "PNG").startswith(b"\x89PNG")


def test_a_live_run_grows_and_one_that_starts_again_is_read_again(charts):
    charts.add("a", records(30))
    opened(charts, "RunCharts")
    charts.records["a"] += [{**record, "new/key": 1.0} for record in records(20, first=31)]
    charts.update("RunCharts")
    wait_for(lambda: lines(charts)[0]["x"] == list(range(1, 51)), PATIENCE)
    wait_for(lambda: charts.page.locator("[data-key='new/key']").count() == 1, PATIENCE)
    charts.records["a"] = records(10)
    charts.runs["a"]["attempt"] = 2
    charts.update("RunCharts")
    wait_for(lambda: lines(charts)[0]["x"] == list(range(1, 11)), PATIENCE)


def test_charts_are_used_with_the_keyboard_alone(charts):
    charts.add("a", records(100))
    opened(charts, "RunCharts")
    charts.page.locator(f"{MAIN} .chart").focus()
    charts.page.keyboard.press("End")
    charts.page.keyboard.press("End")
    wait_for(lambda: charts.shown("grid.main.hovered()") == pytest.approx(100, abs=1), PATIENCE)
    charts.page.keyboard.press("Home")
    wait_for(lambda: charts.shown("grid.main.hovered()") == pytest.approx(1, abs=1), PATIENCE)
    charts.page.keyboard.press("+")
    wait_for(charts.page.locator(".reset-zoom").is_visible, PATIENCE)
    charts.page.keyboard.press("0")
    wait_for(lambda: scale(charts) == [1, 100], PATIENCE)
    charts.page.locator(".chart-options summary").focus()
    charts.page.keyboard.press("Enter")
    wait_for(charts.page.get_by_label("Fit outliers in").is_visible, PATIENCE)
    charts.page.keyboard.press("Escape")
    wait_for(lambda: not charts.page.get_by_label("Fit outliers in").is_visible(), PATIENCE)


def test_names_are_shown_as_text(charts):
    attack = "<img src=x onerror=\"document.title = 'taken'\">"
    charts.add("a", [{**record, f"loss/{attack}": 1.0} for record in records(20)], name=attack)
    charts.add("b", records(20), {"seed": attack, attack: attack})
    opened(charts, expanded=True, params={"color": "seed", "mean": "1"})
    wait_for(lambda: charts.page.locator(".chart-card").count() == 4, PATIENCE)
    assert charts.page.title() == "Charts"
    assert charts.page.locator("img").count() == 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_charts_fit_the_window(charts, width):
    charts.page.set_viewport_size({"width": width, "height": 800})
    charts.add("a-name-as-long-as-names-may-be-that-goes-on-and-on-and-on-to-it", records(60))
    opened(charts, expanded=True)
    wait_for(lambda: charts.page.locator(".chart-card").count() == 4, PATIENCE)
    charts.page.locator(".chart-options summary").click()
    assert charts.page.evaluate("document.documentElement.scrollWidth") <= width
