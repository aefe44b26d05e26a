"""A new run from the form, and runs side by side, in a real browser."""

import pytest

from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, home  # noqa: F401 - a fixture
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser


def test_errors_stand_at_their_fields_and_a_mended_form_starts_the_run(page, home):  # noqa: F811
    service = Service(home)
    open_page(page, service, "/#/new")
    wait_for(page.locator("#field-name").is_visible)
    page.locator("#field-name").fill("Bad Name")
    page.locator("[id='field-student.config']").fill("tiny")
    page.locator("[id='field-data.kind']").select_option("synthetic")
    page.locator("[id='field-data.seq_len']").fill("16")
    page.locator("[id='field-objective.alpha']").fill("1")
    page.locator("[id='field-optimizer.learning_rate']").fill("-1")
    page.get_by_role("button", name="Check").click()
    rate = page.locator("[data-path='optimizer.learning_rate'] .bad")
    wait_for(rate.is_visible)
    assert "must be lower-case" in page.locator("[data-path=name] .bad").inner_text()
    assert page.evaluate("document.activeElement.id") == "field-name"
    page.locator("#field-name").fill("steady")
    page.locator("[id='field-optimizer.learning_rate']").fill("3e-4")
    page.get_by_role("button", name="Check").click()
    wait_for(lambda: "The run can start" in page.locator(".run-form").inner_text())
    assert service.client.get("/runs").json()["runs"] == []
    page.get_by_role("button", name="Start the run").click()
    wait_for(page.locator("#view-run").is_visible)
    (run,) = service.client.get("/runs").json()["runs"]
    assert run["settings"]["optimizer.learning_rate"] == 3e-4
    page.locator("#clone").click()
    wait_for(lambda: page.locator("[id='field-optimizer.learning_rate']").input_value() == "0.0003")


def test_the_text_of_a_field_is_taken_as_it_was_written(page, home):  # noqa: F811
    open_page(page, Service(home), "/#/new")
    values = page.evaluate(
        """async () => {
            const { Field } = await import(new URL("views/create/fields.js",
              document.querySelector("script[src$='app.js']").src).href);
            const about = { isRequired: false, isOfOptional: false, prefix: "x-", mayVary: false };
            const value = (schema, text) => {
              const field = new Field("evaluation.prompts", { ...about, schema });
              field.control.value = text;
              return field.value() ?? null;
            };
            const lines = { type: "array", items: { type: "string" } };
            return [value(lines, "def \\n\\nclass A: "), value(lines, " \\n"),
                    value({ type: "number" }, " 3e-4 "), value({ type: "string" }, " my-code ")];
        }"""
    )
    assert values == [["def ", "class A: "], None, 3e-4, "my-code"]


def test_compared_runs_show_the_settings_in_which_they_differ(page, home):  # noqa: F811
    service = Service(home)
    for seed, (name, rate) in enumerate((("steady-a", 1e-4), ("steady-b", 3e-4)), start=1):
        run_id = service.create(name, steps=3, optimizer={"learning_rate": rate}, seed=seed)
        service.wait(run_id, "succeeded")
    open_page(page, service)
    wait_for(lambda: page.locator(".choose").count() == 2)
    for box in page.locator(".choose").all():
        box.check()
    page.locator("#compare-link").click()
    rows = page.locator(".compare tr[data-path]")
    wait_for(lambda: rows.count() == 2)
    texts = [row.split() for row in rows.all_inner_texts()]
    assert sorted(texts) == [["optimizer.learning_rate", "3e-4", "1e-4"], ["seed", "2", "1"]]
    assert page.locator(".compare .lowest").count() == 1


@pytest.mark.long
def test_the_form_offers_the_records_that_are_whole(page, home):  # noqa: F811
    service = Service(home)
    there = [{"path": "answers", "problem": None}, {"path": "cut", "problem": "it is cut short"}]
    page.route("**/records", lambda route: route.fulfill(json={"records": there}))
    open_page(page, service, "/#/new")
    offered = page.locator("[id='field-known-teacher.record'] option")
    wait_for(lambda: offered.evaluate_all("all => all.map((one) => one.value)") == ["answers"])
