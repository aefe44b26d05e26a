"""Alerts in a real browser: the banner, the list, and notifications that are asked for."""

import pytest

from tests.control_plane.conftest import wait_for
from tests.control_plane.web.one_plane import one_plane
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

plane = one_plane("--max-running-runs", "8")

# Chromium without a window has no place for notifications: they are kept here instead.
NOTIFICATIONS = """
window.shown = [];
window.asked = 0;
window.Notification = class extends EventTarget {
    static permission = "PERMISSION";
    static async requestPermission() {
        window.asked += 1;
        return Notification.permission = "ANSWER";
    }
    constructor(title, {body, tag}) {
        super();
        window.shown.push({title, body, tag});
    }
};
"""


def with_notifications(page, permission: str, answer: str) -> None:  # noqa: F811
    script = NOTIFICATIONS.replace("PERMISSION", permission).replace("ANSWER", answer)
    page.add_init_script(script)


def test_an_alert_has_a_banner_until_it_was_seen_and_stands_in_the_list(page, plane):  # noqa: F811
    open_page(page, plane)
    wait_for(page.locator("#empty").is_visible)
    banner = page.locator("#alert")
    assert not banner.is_visible()
    run_id = plane.create("fails-now")
    wait_for(banner.is_visible)
    assert "fails-now" in banner.inner_text()
    assert page.locator("#alerts-new").inner_text() == "1"
    page.get_by_role("button", name="Dismiss").click()
    assert not banner.is_visible() and not page.locator("#alerts-new").is_visible()
    page.reload()
    wait_for(lambda: page.locator(".row.run").count() > 0)
    assert not banner.is_visible()
    plane.create("fails-again")
    wait_for(banner.is_visible)
    page.get_by_role("link", name="Alerts").click()
    rows = page.locator(".alerts tbody tr")
    wait_for(lambda: rows.count() == 2)
    assert not banner.is_visible()
    assert "fails-again" in rows.first.inner_text()
    assert "No webhook" in page.locator("#view-alerts").inner_text()
    page.get_by_role("link", name="fails-now").click()
    wait_for(lambda: page.locator("#run-id").inner_text() == run_id)


def test_a_notification_is_asked_for_by_a_button_and_comes_once(page, plane):  # noqa: F811
    with_notifications(page, "default", "granted")
    open_page(page, plane, "/#/alerts")
    button = page.get_by_role("button", name="Notify me in this browser")
    wait_for(button.is_visible)
    assert page.evaluate("window.asked") == 0
    button.press("Enter")
    wait_for(page.get_by_role("button", name="Turn off").is_visible)
    assert page.evaluate("window.asked") == 1
    # In the background: another page of the same browser is in front.
    other = page.context.new_page()
    plane.create("fails-behind")
    wait_for(lambda: len(page.evaluate("window.shown")) == 1)
    (shown,) = page.evaluate("window.shown")
    assert "fails-behind" in shown["title"] and shown["body"]
    other.close()
    page.reload()
    wait_for(page.get_by_role("button", name="Notify me in this browser").is_visible)
    assert page.evaluate("window.shown") == []


def test_what_was_made_while_the_connection_was_lost_is_notified_too(page, plane):  # noqa: F811
    with_notifications(page, "granted", "granted")
    page.add_init_script("localStorage.setItem('lectern-notify', 'yes')")
    open_page(page, plane, "/#/alerts")
    wait_for(page.get_by_role("button", name="Turn off").is_visible)
    page.context.set_offline(True)
    plane.create("fails-unseen")
    wait_for(lambda: "fails-unseen" in str(plane.client.get("/alerts").json()["alerts"][0]["name"]))
    page.context.set_offline(False)
    wait_for(lambda: page.evaluate("window.shown"))
    (shown,) = page.evaluate("window.shown")
    assert "fails-unseen" in shown["title"]


def test_what_was_there_before_the_page_is_no_news_whichever_answer_comes_first(page, plane):  # noqa: F811
    with_notifications(page, "granted", "granted")
    page.add_init_script("localStorage.setItem('lectern-notify', 'yes')")
    asked = []

    def first_answer_last(route) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    page.route("**/alerts?*", first_answer_last)
    open_page(page, plane, "/#/alerts")
    rows = page.locator(".alerts tbody tr")
    wait_for(lambda: rows.count() > 0)
    asked[0].continue_()
    plane.create("fails-as-news")
    wait_for(lambda: page.evaluate("window.shown"))
    (shown,) = page.evaluate("window.shown")
    assert "fails-as-news" in shown["title"]


@pytest.mark.parametrize(
    ("permission", "said"), [("denied", "denies notifications"), ("default", "are off")]
)
def test_denied_and_off_are_said(page, plane, permission, said):  # noqa: F811
    with_notifications(page, permission, "denied")
    open_page(page, plane, "/#/alerts")
    wait_for(lambda: said in page.locator("#view-alerts").inner_text())
    button = page.get_by_role("button", name="Notify me in this browser")
    assert button.is_visible() is (permission == "default")
    if permission == "default":
        button.click()
        wait_for(lambda: "denies notifications" in page.locator("#view-alerts").inner_text())
        assert not button.is_visible()
    assert page.evaluate("window.shown") == []
