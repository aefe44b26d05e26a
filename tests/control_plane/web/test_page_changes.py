"""What the page changes of runs, in a real browser: labels, forks, stops, prunes."""

import pytest

from tests.control_plane.conftest import wait_for
from tests.control_plane.web.one_plane import folder_in, one_plane
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.control_plane.web.test_page_list import names
from tests.control_plane.web.test_page_teachers import text_of
from tests.support.fakes import write_fake_checkpoint

pytestmark = pytest.mark.browser

plane = one_plane("--max-running-runs", "8")


def ended(plane, name: str, **sections) -> str:
    run_id: str = plane.create(name, steps=3, **sections)
    plane.wait(run_id, "succeeded")
    return run_id


def test_labels_are_edited_in_place_with_errors_at_their_fields(page, plane):  # noqa: F811
    run_id = ended(plane, "steady-labels")
    open_page(page, plane, f"/#/runs/{run_id}")
    labels = page.locator("#run-labels")
    page.get_by_role("button", name="Add labels").click()
    assert page.evaluate("document.activeElement.id") == "label-group"
    labels.get_by_label("Group", exact=True).fill("Bad Group")
    labels.get_by_label("Tags", exact=True).fill("paper, second try")
    labels.get_by_label("Priority", exact=True).fill("101")
    page.get_by_role("button", name="Save the labels").click()
    wait_for(page.locator("#label-priority-error").is_visible)
    assert page.locator("#label-group-error").is_visible()
    assert page.locator("#label-group").get_attribute("aria-invalid") == "true"
    labels.get_by_label("Group", exact=True).fill("rates")
    labels.get_by_label("Priority", exact=True).fill("7")
    labels.get_by_label("Notes", exact=True).fill("first line\nsecond line")
    page.get_by_role("button", name="Save the labels").press("Enter")
    wait_for(page.get_by_role("button", name="Edit labels").is_visible)
    assert page.evaluate("document.activeElement.textContent") == "Edit labels"
    chips = page.locator("#run-labels .chip").all_inner_texts()
    assert chips == ["group rates", "paper", "second", "try", "priority 7"]
    assert page.locator(".run-notes").inner_text() == "first line\nsecond line"
    run = plane.run(run_id)
    assert (run["priority"], run["group"], run["tags"]) == (7, "rates", ["paper", "second", "try"])
    page.get_by_role("button", name="Edit labels").click()
    labels.get_by_label("Group", exact=True).fill("")
    labels.get_by_label("Tags", exact=True).fill("")
    labels.get_by_label("Group", exact=True).press("Enter")
    wait_for(lambda: page.locator("#run-labels .chip").all_inner_texts() == ["priority 7"])
    assert plane.run(run_id)["group"] is None


def test_the_list_is_filtered_by_group_and_tags_in_the_address(page, plane):  # noqa: F811
    for name, group, tags in (("a", "one", ["x", "y"]), ("b", "one", ["x"]), ("c", "two", ["x"])):
        ended(plane, f"steady-{name}", group=group, tags=tags)
    open_page(page, plane)
    page.locator(".row", has_text="steady-b").locator("[data-group=one]").click()
    wait_for(lambda: names(page) == ["steady-b", "steady-a"])
    assert page.evaluate("location.hash") == "#/?group=one"
    page.locator(".row", has_text="steady-a").get_by_role("button", name="tag y").click()
    wait_for(lambda: names(page) == ["steady-a"])
    assert page.evaluate("location.hash") == "#/?group=one&tag=y"
    page.reload()
    wait_for(lambda: names(page) == ["steady-a"])
    page.get_by_role("button", name="Remove the filter group one").press("Enter")
    page.get_by_role("button", name="Remove the filter tag y").press("Enter")
    wait_for(lambda: len(names(page)) >= 3)
    page.locator("#states > summary").click()
    page.locator("#filter-group").fill("two")
    page.get_by_role("button", name="Filter", exact=True).click()
    wait_for(lambda: names(page) == ["steady-c"])
    open_page(page, plane, "/#/?group=NO%20GROUP&cols=size,priority,group")
    page.reload()
    wait_for(lambda: len(names(page)) >= 3)
    heads = page.locator("#heads th").all_inner_texts()
    assert heads == ["Run", "Size", "Priority", "Group"]


def test_a_run_is_forked_from_a_checkpoint_with_errors_at_fields(page, plane):  # noqa: F811
    run_id = ended(plane, "steady-source", optimizer={"learning_rate": 3e-4})
    for step in (1, 2):
        write_fake_checkpoint(folder_in(plane, run_id), step, tokens_seen=16 * step)
    open_page(page, plane, f"/#/runs/{run_id}?tab=checkpoints")
    page.get_by_role("link", name="Fork from step 1", exact=True).click()
    rate = page.locator("[id='field-optimizer.learning_rate']")
    wait_for(lambda: rate.input_value() == "0.0003")
    wait_for(lambda: page.locator("#fork-checkpoint").input_value() == "1")
    assert page.locator("#field-name").input_value() == "steady-source-fork"
    assert page.locator("[id='field-student.config']").count() == 0  # it cannot be another
    rate.fill("-1")
    page.get_by_role("button", name="Start the fork").click()
    wait_for(page.locator("[id='field-optimizer.learning_rate-error']").is_visible)
    assert page.evaluate("document.activeElement.id") == "field-optimizer.learning_rate"
    rate.fill("1e-5")
    rate.press("Enter")
    wait_for(lambda: page.locator("#run-title").inner_text() == "steady-source-fork")
    wait_for(page.locator("#run-forked").is_visible)
    assert text_of(page.locator("#run-forked")) == f"forked from {run_id} at step 1"
    found = plane.client.get("/runs?q=steady-source-fork").json()["runs"]
    assert [run["forked_from"] for run in found] == [{"run_id": run_id, "step": 1}]
    assert found[0]["settings"]["optimizer.learning_rate"] == 1e-5
    page.locator("#run-forked a").click()
    wait_for(lambda: page.locator("#run-title").inner_text() == "steady-source")


def test_a_stop_is_now_or_at_the_next_checkpoint(page, plane):  # noqa: F811
    run_id = plane.create("waits-stop")
    plane.wait(run_id, "waiting_for_teacher")
    asked: list[str] = []

    def note(request) -> None:
        if request.method == "POST":
            asked.append(request.post_data)

    page.on("request", note)
    # The stand-in knows no stop at a checkpoint; what the page asks for is what is tested here.
    page.route(f"**/runs/{run_id}/stop", lambda route: route.fulfill(json=plane.run(run_id)))
    open_page(page, plane, f"/#/runs/{run_id}")
    page.locator("#stop").click()
    page.get_by_label("At its next checkpoint").check()
    page.get_by_role("button", name="Stop the run").click()
    wait_for(lambda: asked == ['{"at":"checkpoint"}'])
    page.unroute(f"**/runs/{run_id}/stop")
    page.locator("#stop").click()
    page.get_by_role("button", name="Stop the run").click()
    wait_for(lambda: page.locator("#run-state").inner_text() == "Stopped")
    events = page.locator("#room-timeline")
    wait_for(lambda: "asked for by page from 127.0.0.1" in events.inner_text())
    assert page.locator("#delete").is_visible()


def test_delete_is_offered_only_where_the_server_does_it(page, plane):  # noqa: F811
    live = plane.create("steady-live")
    plane.wait(live, "running")
    open_page(page, plane, f"/#/runs/{live}")
    wait_for(page.locator("#stop").is_visible)
    assert not page.locator("#delete").is_visible()
    crashed = plane.create("crash-again")
    wait_for(lambda: plane.run(crashed)["resumes_at"] is not None)
    open_page(page, plane, f"/#/runs/{crashed}")
    wait_for(lambda: page.locator("#run-title").inner_text() == "crash-again")
    if plane.run(crashed)["resumes_at"] is not None:
        assert plane.client.delete(f"/runs/{crashed}").status_code == 409
    plane.post(f"/runs/{crashed}/stop")
    wait_for(page.locator("#delete").is_visible)
    plane.post(f"/runs/{live}/stop")
    plane.wait(live, "stopped")
    speed = page.locator("#run-facts [data-name='Tokens/s']")
    open_page(page, plane, f"/#/runs/{live}")
    wait_for(lambda: page.locator("#run-title").inner_text() == "steady-live")
    wait_for(lambda: speed.count() == 0)


def test_pruning_shows_what_would_go_before_it_goes(page, plane):  # noqa: F811
    gone = [ended(plane, f"steady-old-{number}", group="old") for number in range(2)]
    kept = ended(plane, "steady-kept")
    open_page(page, plane)
    page.locator("#prune").click()
    dialog = page.locator("#prune-dialog")
    assert not dialog.get_by_role("button", name="Delete").is_visible()
    dialog.get_by_label("Keep the newest").fill("-1")
    dialog.get_by_role("button", name="Show what would go").click()
    wait_for(dialog.locator("#prune-keep_newest-error").is_visible)
    dialog.get_by_label("Keep the newest").fill("")
    dialog.get_by_label("Succeeded").check()
    dialog.get_by_label("Only of the group").fill("old")
    dialog.get_by_label("Only of the group").press("Enter")
    delete = dialog.get_by_role("button", name="Delete these 2 runs")
    wait_for(delete.is_visible)
    assert sorted(dialog.locator("tbody th").all_inner_texts()) == sorted(gone)
    dialog.get_by_label("Failed").uncheck()
    assert not delete.is_visible()  # it was the plan of other conditions
    dialog.get_by_role("button", name="Show what would go").click()
    wait_for(delete.is_visible)
    delete.click()
    wait_for(lambda: "Deleted 2 runs" in dialog.inner_text())
    dialog.get_by_role("button", name="Close").click()
    wait_for(lambda: not set(page.locator(".run-id").all_inner_texts()) & set(gone))
    assert plane.client.get(f"/runs/{gone[0]}").status_code == 404
    assert plane.client.get(f"/runs/{kept}").status_code == 200


def test_the_log_follows_and_is_downloaded_whole(page, plane):  # noqa: F811
    run_id = plane.create("steady-log")
    plane.wait(run_id, "running")
    path = folder_in(plane, run_id).log_path
    open_page(page, plane, f"/#/runs/{run_id}?tab=log")
    log = page.locator("#room-log .log")
    wait_for(lambda: "training" in log.inner_text())
    with path.open("a") as file:
        file.write("a line that was added\nanother one\n")
    wait_for(lambda: "a line that was added\nanother one" in log.inner_text())
    page.get_by_label("Find in the log").fill("WAS ADDED")
    wait_for(lambda: log.inner_text().strip() == "a line that was added")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the whole log").click()
    assert download.value.suggested_filename == f"{run_id}.log"
    assert "another one" in download.value.path().read_text()
    plane.post(f"/runs/{run_id}/stop")


def test_commands_name_each_action(page, plane):  # noqa: F811
    run_id = ended(plane, "steady-commands")
    open_page(page, plane, f"/#/runs/{run_id}?tab=commands")
    room = page.locator("#room-commands")
    wait_for(lambda: "Fork with a change" in room.inner_text())
    lines = room.locator("pre").all_inner_texts()
    for words in (f"runs fork {run_id} --checkpoint 3 --set", f"runs set {run_id} --priority 5"):
        assert any(words in line for line in lines)
    for words in ("-X PATCH", f"/runs/{run_id}/fork", f"/runs/{run_id}/log"):
        assert any(words in line for line in lines)


@pytest.mark.parametrize("width", [390, 1280])
def test_every_control_has_a_name_and_every_view_fits(page, plane, width):  # noqa: F811
    run_id = ended(plane, f"steady-named-{width}", group="named", tags=["one"], notes="a note")
    page.set_viewport_size({"width": width, "height": 844})
    views = ("", "sweeps", "sweeps/new", "alerts", "new", f"runs/{run_id}", f"runs/{run_id}/fork")
    for view in views:
        open_page(page, plane, f"/#/{view}")
        page.reload()
        wait_for(lambda: page.locator(".view:not([hidden]) :is(h1, .row)").count() > 0)
        wait_for(lambda: page.evaluate("document.readyState") == "complete")
        unnamed = page.eval_on_selector_all(
            "body :is(input, select, textarea, button, a[href], summary)",
            """all => all.filter((one) => one.checkVisibility()).filter((one) => ![
                one.getAttribute("aria-label"), one.textContent,
                ...[...(one.labels ?? [])].map((label) => label.textContent),
            ].some((name) => name?.trim())).map((one) => one.outerHTML)""",
        )
        assert unnamed == [], view
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
