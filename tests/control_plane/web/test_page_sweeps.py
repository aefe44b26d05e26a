"""Sweeps in a real browser: a form with errors at the combinations, the table, the best one."""

import pytest

from tests.control_plane.conftest import spec_body, wait_for
from tests.control_plane.web.one_plane import one_plane
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.control_plane.web.test_page_teachers import text_of

pytestmark = pytest.mark.browser

plane = one_plane("--max-running-runs", "8")


def field(page, path: str):  # noqa: F811
    return page.locator(f"[id='sweep-field-{path}']")


def several(page, path: str, *values: str) -> None:  # noqa: F811
    box = page.get_by_label(f"{path} has several values")
    if not box.is_visible():
        page.evaluate(
            "document.querySelectorAll('#view-new-sweep details').forEach(one => one.open = true)"
        )
    box.check()
    page.get_by_label(f"{path}: one value per line").fill("\n".join(values))


def fill_base(page, name: str) -> None:  # noqa: F811
    wait_for(field(page, "data.kind").is_visible)
    page.locator("#sweep-name").fill(name)
    field(page, "student.config").fill("tiny")
    field(page, "data.kind").select_option("synthetic")
    field(page, "data.seq_len").fill("16")
    field(page, "objective.alpha").fill("1")
    field(page, "schedule.steps").fill("5")


def test_a_sweep_is_started_from_the_form_watched_and_its_best_forked(page, plane):  # noqa: F811
    open_page(page, plane, "/#/sweeps/new")
    fill_base(page, "steady-rates")
    several(page, "optimizer.learning_rate", "1e-4", "-3")
    several(page, "seed", "0", "1")
    size = page.locator(".sweep-size")
    wait_for(lambda: text_of(size) == "4 runs (2 \u00d7 2).")
    page.get_by_role("button", name="Start the sweep").click()
    rate = page.locator("[id='sweep-field-optimizer.learning_rate-error']")
    wait_for(rate.is_visible)
    assert rate.inner_text().startswith("-3: ")
    assert plane.client.get("/sweeps").json()["total"] == 0
    page.get_by_label("optimizer.learning_rate: one value per line").fill("1e-4\n3e-4")
    page.get_by_role("button", name="Check", exact=True).click()
    result = page.locator("#view-new-sweep [aria-live=polite]")
    wait_for(lambda: "The sweep can start: 4 runs" in result.inner_text())
    assert plane.client.get("/sweeps").json()["total"] == 0
    page.get_by_role("button", name="Start the sweep").click()
    wait_for(lambda: page.locator("#view-sweep h1").inner_text() == "steady-rates")
    rows = page.locator(".sweep-table tr[data-run-id]")
    wait_for(lambda: rows.count() == 4)
    wait_for(lambda: rows.locator(".pill").all_inner_texts() == ["Succeeded"] * 4)
    wait_for(lambda: page.locator("tr.best-row[data-run-id]").count() == 1)
    groups = page.get_by_role("region", name="Mean over seeds")
    wait_for(lambda: groups.locator("tbody tr").count() == 2)
    assert "\u00b1" in groups.inner_text()
    legend = page.locator("#view-sweep .legend li")
    wait_for(lambda: legend.count() == 2)  # a mean for each rate; one of them is the default
    shown = " ".join(legend.all_inner_texts())
    assert "learning rate 0.0001" in shown and "learning rate 0.0003" in shown
    best = page.locator("tr.best-row").last.get_attribute("data-run-id")
    page.get_by_role("link", name="Fork the best").click()
    wait_for(lambda: page.evaluate("location.hash") == f"#/runs/{best}/fork")
    page.get_by_role("link", name="Sweeps").click()
    wait_for(lambda: "4 runs" in page.locator(".sweeps tbody").inner_text())


def test_combinations_as_json_and_errors_at_the_combination(page, plane):  # noqa: F811
    open_page(page, plane, "/#/sweeps/new")
    fill_base(page, "steady-list")
    page.locator("#view-new-sweep summary", has_text="Combinations as JSON").click()
    json = page.locator("#sweep-combinations")
    error = page.locator("#sweep-combinations-error")
    start = page.get_by_role("button", name="Start the sweep")
    for text, said in (
        ("[{", "not JSON"),
        ('[{"seed": 1}, {"optimizer.learning_rate": -1}]', "Combination 2: optimizer"),
        ('{"optimizer.learning_rate": [1e-4, -1]}', "optimizer.learning_rate, value 2"),
    ):
        json.fill(text)
        start.click()
        wait_for(lambda: said in error.inner_text())  # noqa: B023 - called at once
        assert page.evaluate("document.activeElement.id") == "sweep-combinations"
    page.locator("#sweep-name").fill("Bad Name")
    start.click()
    wait_for(page.locator("#sweep-name-error").is_visible)


def test_all_runs_of_a_sweep_are_stopped_and_its_record_deleted(page, plane):  # noqa: F811
    base = {key: value for key, value in spec_body().items() if key != "name"}
    body = {
        "name": "steady-long",
        "base": {**base, "schedule": {"steps": 100_000, "warmup_steps": 0}},
        "grid": {"seed": [0, 1]},
        "metric": "loss/val",
        "goal": "min",
    }
    sweep = plane.client.post("/sweeps", json=body).json()
    open_page(page, plane, f"/#/sweeps/{sweep['id']}")
    rows = page.locator(".sweep-table tr[data-run-id]")
    wait_for(lambda: rows.locator(".pill").all_inner_texts() == ["Running"] * 2)
    assert not page.get_by_role("button", name="Delete the sweep").is_visible()
    # The answer about the sweep may come before the events of its runs.
    last = {**sweep, "runs": [{**run, "state": "stopped"} for run in sweep["runs"]]}
    page.route(f"**/sweeps/{sweep['id']}", lambda route: route.fulfill(json=last))
    page.get_by_role("button", name="Stop all").click()
    page.locator("#confirm-yes").click()
    wait_for(lambda: rows.locator(".pill").all_inner_texts() == ["Stopped"] * 2)
    delete = page.get_by_role("button", name="Delete the sweep")
    wait_for(delete.is_visible)
    page.unroute_all()
    delete.click()
    page.locator("#confirm-yes").click()
    wait_for(lambda: "was deleted" in page.locator("#notice").inner_text())
    assert plane.client.get(f"/sweeps/{sweep['id']}").status_code == 404
    assert plane.client.get(f"/runs/{sweep['runs'][0]['run_id']}").status_code == 200
