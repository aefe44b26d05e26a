"""The page of one run in a real browser: its student, its curve, what happened, its samples."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lectern_common.json_lines import append_json_line
from lectern_common.roots import Roots
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, folder_of, home  # noqa: F401 - a fixture
from tests.control_plane.web.test_page import browser, open_page, page, points  # noqa: F401 - fixtures
from tests.control_plane.web.test_page_teachers import text_of
from tests.support.fakes import FakeTeacher, serving

pytestmark = pytest.mark.browser

DOT, DASH = "\N{MIDDLE DOT}", "\N{EN DASH}"
AT_LEAST, ABOUT = "\N{GREATER-THAN OR EQUAL TO}", "\N{ALMOST EQUAL TO}"


def texts_of(locator) -> list[str]:
    """Returns the texts of all matches at one time, with every kind of space as one."""
    return [" ".join(text.split()) for text in locator.all_inner_texts()]


def lines_of(page) -> list[str]:  # noqa: F811
    """Returns the lines of the timeline that are not changes of state, without their times."""
    return texts_of(page.locator("#room-timeline li:not([data-kind=state]) summary"))


def test_a_student_is_named_by_what_is_made_of_its_model(page, home):  # noqa: F811
    tiny = Roots.of_home(home).models / "tiny"
    save_file({"w": np.arange(6, dtype=np.float32)}, tiny / "model.safetensors")
    service = Service(home, "--max-running-runs", "1")
    students = {
        "shape": ({"config": "tiny"}, "tiny"),
        "layers": ({"init": "tiny", "keep_every_nth_layer": 2}, "Every 2nd layer of tiny"),
        "adapters": ({"init": "tiny", "lora": {"rank": 8}}, "LoRA 8 on tiny"),
        "both": (
            {"init": "tiny", "keep_every_nth_layer": 13, "lora": {"rank": 8}},
            "LoRA 8 on every 13th layer of tiny",
        ),
    }
    for name, (student, _) in students.items():
        service.create(f"steady-{name}", steps=100_000, student=student)
    open_page(page, service, "/#/?cols=student")
    texts = [text for _, text in reversed(students.values())]
    wait_for(lambda: page.locator(".row.run .student .value").all_inner_texts() == texts)
    page.get_by_role("link", name="steady-layers", exact=True).click()
    fact = "Student Every 2nd layer of tiny"
    wait_for(lambda: fact in texts_of(page.locator("#run-facts div")))


def test_a_divergence_says_how_exact_it_is(page, home):  # noqa: F811
    with serving(FakeTeacher()) as address:
        service = Service(home)
        ids = {}
        for kind in ("hidden", "top_k"):
            teacher = {"address": address, "representation": kind}
            name = f"steady-{kind.replace('_', '-')}"
            ids[kind] = service.create(name, 3, teacher=teacher, objective={"alpha": 0.3})
        ids["labels"] = service.create("steady-labels", steps=3)
        ids["failed"] = service.create("fails")
        for kind, run_id in ids.items():
            service.wait(run_id, "failed" if kind == "failed" else "succeeded")
            if kind in ("hidden", "top_k"):
                line = {"step": 4, "loss/val": 2.5, "val/kl": 0.5, "val/top1_agreement": 0.25}
                append_json_line(folder_of(home, run_id).metrics_path, line)
        open_page(page, service)
        overview = page.locator("#curves")
        wait_for(lambda: set(points(page)) == {"steady-hidden", "steady-top-k", "steady-labels"})
        assert text_of(overview.locator("h2")) == "Validation loss"

        overview.get_by_role("radio", name="KL to teacher").click()
        legend = overview.locator(".legend li")
        wait_for(lambda: legend.count() == 2)
        assert sorted(texts_of(legend)) == [
            "steady-hidden 0.5000 at step 4",
            f"steady-top-k {AT_LEAST} 0.5000 at step 4",
        ]
        assert text_of(overview.locator("h2")) == "KL to teacher, at T = 1"
        assert f"{AT_LEAST}: a lower bound;" in text_of(overview.locator(".curve-note"))
        drawn = overview.locator(".chart-main .chart").get_attribute("aria-label")
        assert drawn.startswith("KL to teacher, at T = 1, in nats per token by step. ")
        assert "steady-hidden: 0.5000 at step 4, between 0.5000 and 0.5000" in drawn

        overview.get_by_role("radio", name="Agreement").click()
        wait_for(lambda: "steady-hidden 25.0 % at step 4" in texts_of(legend))
        assert text_of(overview.locator(".curve-note")).endswith("on the validation set.")


def test_a_run_is_drawn_on_its_page_even_if_the_overview_does_not(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create()
    service.wait(run_id, "running")
    open_page(page, service)
    wait_for(lambda: points(page).keys() == {"steady"})
    page.get_by_role("button", name="Hide the line of").click()
    wait_for(lambda: points(page) == {})
    page.get_by_role("link", name="steady").click()
    own = page.locator("#run-charts")
    own.get_by_role("radio", name="Cross entropy").click()
    drawn = own.locator(".chart-main .legend li")
    wait_for(lambda: texts_of(drawn) and own.locator(".chart-main canvas").is_visible())
    before = int(drawn.get_attribute("data-points"))
    wait_for(lambda: int(drawn.get_attribute("data-points")) > before)
    own.get_by_role("radio", name="KL to teacher").click()
    wait_for(lambda: "This run learns from labels only" in text_of(own))


def test_events_are_a_timeline_whose_lines_open_to_their_fields(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    folder = folder_of(home, run_id)
    folder.events_path.unlink()
    memory = {"parameters": 4_000_000, "objective": 8_000_000, "free": 20_000_000_000}
    folder.append_event(
        "assembled",
        step=0,
        device="cpu",
        ranks=2,
        parameters=238_272,
        training_rows=2_073,
        validation_rows=20,
        teacher="demo-teacher",
        memory={**memory, "warning": None},
    )
    for step in range(100, 1300, 100):
        folder.append_event("checkpoint", step=step, path=f"checkpoints/step-{step:08}")
    folder.append_event("rank_lost", what="rank 1 of 2 was ended by SIGKILL", restart=1)
    folder.append_event("checkpoint", step=1300, path="checkpoints/step-00001300")
    folder.append_event("news", sent_bytes=1_500_000, wait_seconds=0.25, rows=12_345, other=[1])
    folder.append_event("exported", step=1300, validation_loss=2.5)
    open_page(page, service, f"/#/runs/{run_id}")
    wait_for(lambda: len(lines_of(page)) == 6)
    export = folder.export_path
    assert lines_of(page) == [
        f"Exported {DASH} step 1 300 {DOT} validation loss 2.5000 {DOT} {export}",
        f"News {DASH} sent bytes 1.5 MB {DOT} wait seconds 250 ms {DOT} rows 12 345",
        f"Checkpoint {DASH} at step 1 300",
        f"Process lost {DASH} rank 1 of 2 was ended by SIGKILL {DOT} restart 1",
        f"12 checkpoints {DASH} last at step 1 200",
        f"Ready to train {DASH} 2 processes on cpu {DOT} 238 272 parameters "
        f"{DOT} 2 073 training rows {DOT} 20 validation rows {DOT} teacher demo-teacher "
        f"{DOT} needs 12 MB of 20 GB free",
    ]
    assert f"Export {export}" in texts_of(page.locator("#run-facts div"))
    timeline = page.locator("#room-timeline")
    timeline.get_by_text("12 checkpoints").click()
    wait_for(lambda: '"path":"checkpoints/step-00000300"' in timeline.inner_text())
    # What is open stays so when something happens.
    folder.append_event("step_skipped", step=1301, in_a_row=1)
    page.get_by_role("tab", name="Samples").click()
    page.get_by_role("tab", name="Timeline").click()
    wait_for(lambda: "Step skipped" in lines_of(page)[0])
    assert timeline.locator("details[open]").count() == 1
    assert '"path":"checkpoints/step-00000300"' in timeline.inner_text()


def test_samples_are_in_the_order_of_the_prompts_beside_the_one_text_of_the_teacher(
    page,  # noqa: F811
    home,  # noqa: F811
):
    with serving(FakeTeacher()) as address:
        service = Service(home)
        run_id = service.create(teacher={"address": address}, objective={"alpha": 0.3})
        service.wait(run_id, "running")
        path = folder_of(home, run_id).samples_path

        def evaluated(step: int, *teacher: str | None) -> None:
            for prompt, text in zip(("first", "second"), teacher, strict=True):
                line = {"step": step, "prompt": prompt, "student": f"{prompt} {step}"}
                append_json_line(path, {**line, "teacher": text})

        evaluated(0, None, None)
        open_page(page, service, f"/#/runs/{run_id}")
        page.get_by_role("tab", name="Samples").click()
        tab = page.locator("#room-samples")
        missing = "Added at the last evaluation."
        first = f"Prompt first Student first 0 Teacher {missing}"
        second = f"Prompt second Student second 0 Teacher {missing}"
        wait_for(lambda: text_of(tab) == f"Step 0 {first} {second}")
        evaluated(25, "theirs 1", "theirs 2")
        wait_for(lambda: "Step 25" in text_of(tab))
        assert text_of(tab) == " ".join(
            f"Step {step} Prompt first Student first {step} Teacher theirs 1 "
            f"Prompt second Student second {step} Teacher theirs 2"
            for step in (25, 0)
        )


def test_a_text_of_only_white_space_is_seen(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    sample = {"step": 3, "prompt": " p ", "student": " \t\n ", "teacher": ""}
    append_json_line(folder_of(home, run_id).samples_path, sample)
    open_page(page, service, f"/#/runs/{run_id}")
    page.get_by_role("tab", name="Samples").click()
    texts = page.locator("#room-samples dd")
    wait_for(lambda: texts.count() == 3)
    space, tab, line = "\N{OPEN BOX}", "\N{RIGHTWARDS ARROW TO BAR}", "\u21b5"
    assert texts.all_text_contents() == [" p ", f"{space}{tab}{line}\n{space}", "Empty"]


def test_a_field_is_named_as_the_spec_has_it(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    folder = folder_of(home, run_id)
    folder.append_event("teacher_bound", message="data.validation_path: all 523 rows are short")
    folder.append_event("teacher_bound", message="the teacher is away")
    open_page(page, service, f"/#/runs/{run_id}")
    wait_for(lambda: len(lines_of(page)) >= 2)
    assert lines_of(page)[:2] == [
        f"Slowed by its teacher {DASH} The teacher is away.",
        f"Slowed by its teacher {DASH} data.validation_path: all 523 rows are short.",
    ]


def test_a_missing_run_is_reported_until_the_notice_is_dismissed(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    notice = page.locator("#notice")
    for gone in ("nope-nope", "Nope"):
        open_page(page, service, f"/#/runs/{gone}")
        wait_for(notice.is_visible)
        assert f"There is no run {gone}." in notice.inner_text()
        page.get_by_role("button", name="Dismiss").click()
        assert not notice.is_visible()
    open_page(page, service, "/#/runs/nope-nope")
    wait_for(notice.is_visible)
    page.locator(".row.run .name").click()
    wait_for(page.locator("#view-run").is_visible)
    assert not notice.is_visible()


def test_a_run_that_is_deleted_leaves_the_page(page, home):  # noqa: F811
    service = Service(home)
    gone, stays = service.create(steps=3), service.create("steady-stays", steps=3)
    for run_id in (gone, stays):
        service.wait(run_id, "succeeded")
    open_page(page, service, f"/#/runs/{gone}")
    wait_for(page.locator("#view-run").is_visible)
    assert service.client.delete(f"/runs/{gone}").status_code == 204
    wait_for(lambda: page.locator(".row.run .name").all_inner_texts() == ["steady-stays"])
    wait_for(lambda: not page.locator("#view-run").is_visible())


def test_a_token_in_the_address_opens_the_page_and_leaves_the_address(page, home):  # noqa: F811
    service = Service(home, token=True)
    run_id = service.create(steps=3)
    token = service.client.headers["authorization"].removeprefix("Bearer ")
    open_page(page, service, f"/?metric=loss/ce#token={token}")
    wait_for(lambda: page.locator(".row.run").count() == 1)
    assert not page.locator("#ask-token").is_visible()
    assert token not in page.url
    assert page.evaluate("sessionStorage.getItem('lectern-token')") == token
    assert "metric=loss" in page.evaluate("location.search")
    page.locator(".row.run .name").click()
    wait_for(page.locator("#view-run").is_visible)
    assert page.evaluate("location.hash") == f"#/runs/{run_id}"
    page.reload()
    wait_for(lambda: page.locator("#run-title").inner_text() == "steady")


def test_each_view_keeps_the_choices_of_its_own_charts_in_the_address(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=20)
    service.wait(run_id, "succeeded")
    open_page(page, service, f"/?metric=loss/total#/runs/{run_id}?tab=log")
    title = page.locator("#run-charts .chart-main .curve-title")
    wait_for(lambda: title.inner_text() == "Training loss")
    page.locator("#run-charts").get_by_role("radio", name="Cross entropy").click()
    wait_for(lambda: page.evaluate("location.search") == "?metric=loss%2Fce")
    assert page.evaluate("location.hash") == f"#/runs/{run_id}?tab=log"
    page.locator("[data-back]").click()
    wait_for(lambda: page.evaluate("location.search") == "")
    assert page.locator("#curves .curve-title").inner_text() == "Validation loss"
    page.go_back()
    wait_for(lambda: page.evaluate("location.search") == "?metric=loss%2Fce")


def test_earlier_history_is_loaded_when_asked_for(page, home):  # noqa: F811
    service = Service(home)
    run_id = service.create(steps=3)
    service.wait(run_id, "succeeded")
    for step in range(260):
        folder_of(home, run_id).append_event("note", message=f"note {step}.")
    open_page(page, service, f"/#/runs/{run_id}")
    notes = page.locator(".events li[data-kind=note]")
    wait_for(lambda: notes.count() == 50)
    more = page.locator("button", has_text="Show earlier")  # also while it is hidden
    more.click()
    wait_for(lambda: notes.count() >= 150)
    while more.is_visible():
        more.click()
        wait_for(lambda: more.is_enabled() or not more.is_visible())
    wait_for(lambda: notes.count() == 260)
