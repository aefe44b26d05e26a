"""A list of 1,000 runs in a real browser: not all of it is loaded, and an event changes one row."""

import sqlite3
import time
from contextlib import closing

import pytest

from control_plane.runs.commands import RunCommands
from control_plane.runs.store import DATABASE_NAME, Store
from lectern_common.roots import Roots
from tests.control_plane.conftest import spec, wait_for
from tests.control_plane.test_process import Service, home  # noqa: F401 - a fixture
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.control_plane.web.test_page_list import names

pytestmark = [pytest.mark.browser, pytest.mark.long]

NUMBER = 1000


def make_runs(home) -> None:  # noqa: F811
    """Makes runs that have ended; no trainer of theirs need ever have lived."""
    root = Roots.of_home(home).runs
    root.mkdir(parents=True, exist_ok=True)
    store = Store.open(root / DATABASE_NAME)
    commands = RunCommands(store, time.time)
    for number in range(NUMBER):
        commands.create(spec(f"steady-{number:04}"))
    store.close()
    with closing(sqlite3.connect(root / DATABASE_NAME)) as database, database:
        database.execute("UPDATE runs SET state = 'succeeded'")


def test_a_thousand_runs_are_listed_without_loading_all(page, home):  # noqa: F811
    make_runs(home)
    service = Service(home)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.split(service.address)[1]))
    open_page(page, service)
    wait_for(lambda: len(names(page)) == 25)
    assert names(page)[0] == f"steady-{NUMBER - 1:04}"
    wait_for(lambda: "25 of 1" in page.locator("#runs-count").inner_text())
    lists = [path for path in asked if path.startswith("/runs?")]
    assert len(lists) <= 4  # the active ones, the number of those that wait, the first page
    assert page.evaluate("document.querySelectorAll('*').length") < 3000
    page.locator("#more").click()
    wait_for(lambda: len(names(page)) == 125)
    assert len([path for path in asked if path.startswith("/runs?")]) == len(lists) + 1
    # Runs of one moment have the server's order, on every page.
    assert names(page) == [f"steady-{NUMBER - 1 - place:04}" for place in range(125)]
    while page.locator("#more").is_visible():
        before = len(names(page))
        page.locator("#more").click()
        wait_for(lambda: len(names(page)) > before)  # noqa: B023 - called at once
    assert names(page) == [f"steady-{place:04}" for place in reversed(range(NUMBER))]
    live = service.create("steady-live")
    service.wait(live, "running")
    wait_for(lambda: names(page)[0] == "steady-live")
    page.evaluate(
        """() => {
            window.changed = new Set();
            new MutationObserver((records) => {
                for (const {target} of records) {
                    const node = target instanceof Element ? target : target.parentElement;
                    window.changed.add(node?.closest(".row.run")?.dataset.runId ?? "the list");
                }
            }).observe(document.querySelector("#rows"),
                {subtree: true, childList: true, characterData: true, attributes: true});
        }"""
    )
    step = page.locator(f"[data-run-id={live}] .progress .value")
    before_step = step.inner_text()
    wait_for(lambda: step.inner_text() != before_step)
    assert page.evaluate("[...window.changed]") == [live]
    page.keyboard.press("/")
    page.keyboard.type("0500")
    wait_for(lambda: names(page) == ["steady-0500"])
