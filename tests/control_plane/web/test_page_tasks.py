"""The tasks of a run in a real browser: started, followed, stopped, compared."""

import pytest

from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, home  # noqa: F401 - a fixture
from tests.control_plane.test_task_processes import created, wait_for_state
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.control_plane.web.test_page_run import texts_of

pytestmark = pytest.mark.browser


def test_an_evaluation_is_started_followed_and_compared(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    before = created(service, run_id, seed=1, weights="initial")
    wait_for_state(service, before, "succeeded")
    open_page(page, service, f"/#/runs/{run_id}?tab=tasks")
    room = page.locator("#room-tasks")
    wait_for(
        lambda: room.locator("table.results thead th").all_inner_texts()[1:] == ["Before training"]
    )

    room.get_by_role("button", name="Evaluate").first.click()
    form = room.get_by_role("form", name="Evaluate")
    form.get_by_label("suites").fill("perplexitee")
    form.get_by_role("button", name="Evaluate").click()
    wait_for(lambda: "perplexity" in form.locator(".bad:not([hidden])").first.inner_text())
    form.get_by_label("suites").fill("perplexity")
    form.locator("summary").first.click()
    form.get_by_label("seed").fill("30")
    form.get_by_role("button", name="Evaluate").click()
    newest = room.locator(".task").first
    wait_for(lambda: "Running" in newest.inner_text(), 60)
    wait_for(lambda: "of 30 numbers" in newest.inner_text(), 60)
    newest.get_by_role("button", name="Log").click()
    wait_for(lambda: "counts" in newest.locator("pre").inner_text())
    newest.get_by_role("button", name="Stop").click()
    wait_for(lambda: "Stopped" in newest.inner_text(), 60)
    newest.get_by_role("button", name="Resume").click()
    wait_for(lambda: "Succeeded" in newest.inner_text(), 60)
    table = room.locator("table.results")
    heads = ["Before training", "After training"]
    wait_for(lambda: table.locator("thead th").all_inner_texts()[1:] == heads)
    assert texts_of(table.locator("tbody tr").first.locator("td")) == ["2.0000", "1.2500"]

    newest.get_by_role("button", name="Delete").click()
    page.locator("#confirm-yes").click()
    wait_for(lambda: room.locator(".task").count() == 1)
    wait_for(lambda: table.locator("thead th").all_inner_texts()[1:] == heads[:1])


@pytest.mark.long
def test_a_task_that_fails_says_why_and_what_cannot_start_is_refused(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    answer = service.client.post(f"/runs/{run_id}/exports", json={})
    wait_for_state(service, answer.json()["id"], "failed")  # the stand-in has no such stage
    open_page(page, service, f"/#/runs/{run_id}?tab=tasks")
    room = page.locator("#room-tasks")
    wait_for(lambda: room.locator(".task .bad:not([hidden])").count() == 1)
    room.get_by_role("button", name="Publish").first.click()
    form = room.get_by_role("form", name="Publish")
    form.get_by_role("button", name="Publish").click()
    wait_for(lambda: "required" in form.locator("#publish-to-error").inner_text())
    form.get_by_role("button", name="Cancel").click()
    assert not form.is_visible()
