"""The page in a real browser, over a real control plane with stand-in trainers."""

import shutil

import pytest

from lectern_common.json_lines import append_json_line
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, folder_of, home  # noqa: F401 - a fixture
from tests.support.fakes import FakeTeacher, serving

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TEACHER = {"objective": {"alpha": 0.3}}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: install the system's package `chromium`")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """Yields a page; fails the test if the page asked another host or reported an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.troubles = []
    page.hosts = set()
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("console", lambda line: note_console(page, line))
    page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
    yield page
    context.close()
    assert page.troubles == []
    assert all(host.startswith("127.0.0.1:") for host in page.hosts)


def note_console(page, line) -> None:
    # A refused connection and a 401 are logged by the browser itself.
    if line.type == "error" and "Failed to load resource" not in line.text:
        page.troubles.append(line.text)


def open_page(page, service, path: str = "/") -> None:
    page.goto(f"http://{service.address}{path}")


def points(page) -> dict[str, int]:
    """Returns the number of drawn points of each line, by run name."""
    drawn: dict[str, int] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("#curves .legend li")].map(
            (item) => [
                item.querySelector(".legend-name").textContent, Number(item.dataset.points)]))"""
    )
    return drawn


def colored_pixels(page) -> int:
    """Returns how many pixels of the chart are neither background nor grey."""
    colored: int = page.evaluate(
        """() => {
            const canvas = document.querySelector("#curves canvas");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
                const channels = [data[at], data[at + 1], data[at + 2]];
                const spread = Math.max(...channels) - Math.min(...channels);
                if (data[at + 3] > 200 && spread > 60) found += 1;
            }
            return found;
        }"""
    )
    return colored


def test_three_live_curves_of_runs_that_share_one_teacher(page, home):  # noqa: F811
    with serving(FakeTeacher()) as address:
        service = Service(home, "--teacher", address)
        for name, sections in {
            "cross-entropy": {},
            "distilled-hidden": {"teacher": {"address": address}, **TEACHER},
            "distilled-top-k": {
                "teacher": {"address": address, "representation": "top_k"},
                **TEACHER,
            },
        }.items():
            service.create(name, 3000, **sections)
        open_page(page, service)
        page.locator("#curves").get_by_role("radio", name="Total").click()
        names = {"cross-entropy", "distilled-hidden", "distilled-top-k"}
        wait_for(lambda: set(points(page)) == names and min(points(page).values()) > 5)
        before = points(page)
        # A curve may be missing for a moment, while the page draws it anew.
        wait_for(lambda: all(points(page).get(name, 0) > before[name] for name in names))
        assert colored_pixels(page) > 500

        rows = page.locator(".row.run")
        assert rows.count() == 3
        wait_for(lambda: rows.locator(".pill").all_inner_texts() == ["Running"] * 3)
        page.locator(".teacher > summary").click()
        learns = [text.split() for text in rows.locator(".learns .value").all_inner_texts()]
        dot, alpha = "\N{MIDDLE DOT}", "\N{GREEK SMALL LETTER ALPHA}"
        assert learns == [
            ["Top", "64", dot, alpha, "0.3", dot, "T", "2"],
            ["Hidden", dot, alpha, "0.3", dot, "T", "2"],
            ["Labels", "only"],
        ]
        card = page.locator(".teacher")
        assert card.locator("h2").inner_text() == "fake-teacher"
        for said in ("cpu (fake)", "float32", "2.2", "9.9"):
            assert said in card.inner_text()
        assert page.locator("#summary").inner_text() == "3 active runs"


def test_a_run_is_stopped_after_a_question_and_resumed(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create()
    service.wait(run_id, "running")
    open_page(page, service)
    page.get_by_role("link", name="steady").click()
    state = page.locator("#run-state")
    wait_for(lambda: state.inner_text() == "Running")
    page.locator("#stop").click()
    page.get_by_role("button", name="Cancel").click()
    assert service.run(run_id)["wanted"] == "running"
    page.locator("#stop").click()
    page.get_by_role("button", name="Stop the run").click()
    wait_for(lambda: state.inner_text() == "Stopped")
    assert not page.locator("#stop").is_visible()
    page.locator("#resume").click()
    page.get_by_role("button", name="Resume the run").click()
    wait_for(lambda: state.inner_text() == "Running")
    events = page.locator("#room-timeline")
    wait_for(lambda: "Stopped" in events.inner_text() and "heckpoint" in events.inner_text())
    page.keyboard.press("Escape")
    wait_for(lambda: not page.locator("#view-run").is_visible())


def test_what_a_trainer_writes_is_shown_as_text(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    attack = "<img src=x onerror=\"document.title = 'taken'\"><script>document.title = 1</script>"
    folder = folder_of(home, run_id)
    folder.log_path.write_text(f"{attack}\n")
    folder.append_event("warning", message=attack)
    sample = {
        "step": 3,
        "prompt": f"p {attack}",
        "student": f"s {attack}",
        "teacher": f"t {attack}",
    }
    append_json_line(folder.samples_path, sample)
    open_page(page, service, f"/#/runs/{run_id}")
    wait_for(lambda: attack in page.locator("#room-timeline").inner_text())
    page.get_by_role("tab", name="Log").click()
    wait_for(lambda: attack in page.locator("#room-log").inner_text())
    page.get_by_role("tab", name="Samples").click()
    samples = page.locator("#room-samples")
    wait_for(lambda: all(f"{who} {attack}" in samples.inner_text() for who in "pst"))
    assert "Step 3" in samples.inner_text()
    assert page.title().endswith("Lectern")
    assert page.locator("main img, main script").count() == 0


def test_kl_and_agreement_are_drawn_at_the_steps_that_measured_them(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    path = folder_of(home, run_id).metrics_path
    for step in range(4, 8):
        evaluated = {"loss/val": 2.0, "val/kl": 1 / step, "val/top1_agreement": step / 10}
        append_json_line(path, {"step": step, **(evaluated if step % 2 else {})})
    open_page(page, service)
    for name, last in (("KL to teacher", "0.1429"), ("Agreement", "70.0\N{THIN SPACE}%")):
        page.locator("#curves").get_by_role("radio", name=name).click()
        value = page.locator("#curves .legend .legend-value")
        wait_for(lambda: value.all_inner_texts() == [last])  # noqa: B023 - called at once
        assert points(page) == {"steady": 2}
        assert page.locator("#curves .smoothing input").is_disabled()


def test_a_lost_connection_is_shown_until_it_is_back(page, home):  # noqa: F811
    service = Service(home, "--on-exit", "stop")
    run_id = service.create()
    service.wait(run_id, "running")
    open_page(page, service)
    wait_for(lambda: page.locator(".row.run .pill").all_inner_texts() == ["Running"])
    address = service.address
    assert service.end() == 0
    banner = page.locator("#banner")
    wait_for(lambda: banner.is_visible() and "Connection lost" in banner.inner_text())
    again = Service(home, bind=address)
    wait_for(lambda: not banner.is_visible())
    again.wait(run_id, "running")
    wait_for(lambda: page.locator(".row.run .pill").all_inner_texts() == ["Running"])


def test_no_runs_yet_says_how_to_make_one(page, home):  # noqa: F811
    service = Service(home)
    open_page(page, service)
    empty = page.locator("#empty")
    wait_for(lambda: empty.is_visible() and "curl http" in empty.inner_text())
    assert '"config":"tiny"' in page.locator("#curl-line").inner_text()
    assert not page.locator("#runs").is_visible()
    service.create(steps=3)
    wait_for(lambda: page.locator(".row.run").count() == 1)
    assert not empty.is_visible()


def test_the_page_asks_for_the_token_until_it_is_right(page, home):  # noqa: F811
    (home / "token").write_text("the-token-of-this-page\n")
    service = Service(home, "--token-file", str(home / "token"))
    open_page(page, service)
    dialog = page.locator("#ask-token")
    wait_for(dialog.is_visible)
    page.locator("#token").fill("a-wrong-token")
    page.get_by_role("button", name="Continue").click()
    wait_for(page.locator("#token-wrong").is_visible)
    page.locator("#token").fill("the-token-of-this-page")
    page.get_by_role("button", name="Continue").click()
    wait_for(page.locator("#empty").is_visible)
    service.client.headers["authorization"] = "Bearer the-token-of-this-page"
    service.create(steps=3)
    wait_for(lambda: page.locator(".row.run").count() == 1)


def test_the_page_fits_its_window(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create("a-name-as-long-as-names-may-be-that-goes-on-and-on-and-on-to-it")
    service.wait(run_id, "running")
    spills = []
    for width in (360, 768, 920, 1100, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        open_page(page, service)
        wait_for(lambda: page.locator(".row.run").count() == 1)
        list_width = page.evaluate("document.documentElement.scrollWidth")
        open_page(page, service, f"/#/runs/{run_id}")
        wait_for(page.locator("#view-run").is_visible)
        run_width = page.evaluate("document.documentElement.scrollWidth")
        if max(list_width, run_width) > width:
            spills.append((width, list_width, run_width))
    assert spills == []
