"""The list of runs in a real browser: first on the page, searched, sorted, one row at a time."""

import pytest

from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, folder_of, home  # noqa: F401 - a fixture
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.support.fakes import FakeTeacher, serving

pytestmark = pytest.mark.browser


def names(page) -> list[str]:  # noqa: F811
    texts: list[str] = page.locator(".row.run .name").all_inner_texts()
    return texts


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_runs_begin_above_the_fold_and_the_teacher_is_folded(page, home, width, height):  # noqa: F811
    with serving(FakeTeacher()) as address:
        service = Service(home, "--teacher", address)
        service.create(steps=3)
        page.set_viewport_size({"width": width, "height": height})
        open_page(page, service)
        wait_for(lambda: page.locator(".row.run").count() == 1)
        wait_for(page.locator(".teacher summary h2").is_visible)
        assert page.locator(".row.run").bounding_box()["y"] < height / 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.locator(".teacher .figures").is_visible()
        page.locator(".teacher > summary").press("Enter")
        wait_for(page.locator(".teacher .figures").is_visible)
        page.reload()
        wait_for(page.locator(".teacher .figures").is_visible)


def test_runs_are_searched_sorted_and_shared_by_their_address(page, home):  # noqa: F811
    service = Service(home)
    ids = [service.create(f"steady-{name}", steps=3) for name in "cab"]
    ids.append(service.create("fails-x"))
    for run_id in ids[:3]:
        service.wait(run_id, "succeeded")
    service.wait(ids[3], "failed")
    open_page(page, service)
    wait_for(lambda: names(page) == ["fails-x", "steady-b", "steady-a", "steady-c"])
    page.get_by_role("button", name="Run", exact=True).click()
    wait_for(lambda: names(page) == ["fails-x", "steady-a", "steady-b", "steady-c"])
    page.keyboard.press("/")
    page.keyboard.type("STEADY")
    wait_for(lambda: names(page) == ["steady-a", "steady-b", "steady-c"])
    page.get_by_role("button", name="Run", exact=True).click()
    wait_for(lambda: names(page) == ["steady-c", "steady-b", "steady-a"])
    assert page.evaluate("location.hash") == "#/?q=STEADY&sort=-name"
    open_page(page, service, "/#/?state=failed&cols=state,spec.schedule.steps")
    page.reload()
    wait_for(lambda: names(page) == ["fails-x"])
    heads = page.locator("#heads th").all_inner_texts()
    assert heads == ["Run", "State", "schedule.steps"]
    assert "100000" in page.locator(".row.run").inner_text()


def test_an_event_changes_only_the_row_of_its_run(page, home):  # noqa: F811
    service = Service(home)
    for name in ("steady-a", "steady-b"):
        service.wait(service.create(name, steps=3), "succeeded")
    open_page(page, service)
    wait_for(lambda: len(names(page)) == 2)
    live = service.create("steady-live")
    service.wait(live, "running")
    wait_for(lambda: len(names(page)) == 3)
    page.evaluate(
        """() => {
            window.changed = new Set();
            new MutationObserver((records) => {
                for (const {target} of records) {
                    const node = target instanceof Element ? target : target.parentElement;
                    const row = node?.closest(".row.run");
                    window.changed.add(row ? row.dataset.runId : "the list");
                }
            }).observe(document.querySelector("#rows"),
                {subtree: true, childList: true, characterData: true, attributes: true});
        }"""
    )
    step = page.locator(f"[data-run-id={live}] .progress .value")
    before = step.inner_text()
    wait_for(lambda: step.inner_text() != before)
    assert page.evaluate("[...window.changed]") == [live]


def test_what_was_measured_before_training_is_not_shown_as_a_result(page, home):  # noqa: F811
    service = Service(home, step_seconds=30)
    run_id = service.create()
    service.wait(run_id, "running")
    folder: RunFolder = folder_of(home, run_id)
    wait_for(lambda: (status := folder.read_status()) and "loss/val" in status.latest)
    open_page(page, service)
    cell = page.locator(".row.run .cell.val")
    wait_for(lambda: "untrained" in cell.inner_text())
    assert cell.locator(".value").inner_text() == "\N{EN DASH}"


def test_the_list_and_a_run_are_reached_by_the_keyboard_alone(page, home):  # noqa: F811
    service = Service(home)
    for name in ("steady-a", "steady-b"):
        service.wait(service.create(name, steps=3), "succeeded")
    open_page(page, service)
    wait_for(lambda: len(names(page)) == 2)
    page.locator(".row.run .name").first.focus()
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "steady-a"
    page.keyboard.press("Enter")
    wait_for(lambda: page.evaluate("document.activeElement.id") == "run-title")
    assert page.title().startswith("steady-a")
    page.keyboard.press("Escape")
    wait_for(lambda: page.evaluate("document.activeElement.textContent") == "steady-a")
    page.go_back()
    wait_for(page.locator("#view-run").is_visible)
