"""What the student wrote, on the page of a run in a real browser: each token beside its KL."""

from typing import Any

import pytest

from lectern_common.json_lines import append_json_line
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, folder_of, home  # noqa: F401 - a fixture
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.control_plane.web.test_page_run import texts_of
from tests.support.fakes import FakeTeacher, serving

pytestmark = pytest.mark.browser

DOT, LINE_END = "\N{MIDDLE DOT}", "\u21b5"


def line(step: int, row: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "row": row,
        "sample": 0,
        "prompt": "def ",
        "prompt_ids": [4],
        "ids": [6, 7, 8],
        "end": 2,
        "text": "f(\n\u00e9",
        "tokens": ["f(\n", "", "\u00e9", "</s>"],
        "kl": [0.004, 0.7, 9.25, None],
        "mean_kl": 3.318,
    } | changes


def on_policy(service: Service, address: str, name: str = "steady", **rollout: Any) -> str:
    run_id = service.create(
        name,
        teacher={"address": address},
        objective={"alpha": 0.3},
        rollout={"fraction": 0.5, "prompt_tokens": 2, "max_new_tokens": 2, **rollout},
    )
    service.wait(run_id, "running")
    return run_id


def test_a_token_has_the_colour_of_its_kl_and_says_it(page, home):  # noqa: F811
    with serving(FakeTeacher()) as address:
        service = Service(home)
        run_id = on_policy(service, address)
        plain = service.create("steady-plain")
        path = folder_of(home, run_id).rollouts_path
        open_page(page, service, f"/#/runs/{plain}")
        wait_for(lambda: page.get_by_role("tab", name="Samples").is_visible())
        assert page.get_by_role("tab", name="Rollouts").count() == 0

        open_page(page, service, f"/#/runs/{run_id}")
        page.get_by_role("tab", name="Rollouts").click()
        room = page.locator("#room-rollouts")
        wait_for(lambda: "No rollouts yet." in room.inner_text())
        append_json_line(path, line(1))
        append_json_line(path, line(4, end=None, tokens=None, text=None, prompt=None, kl=[1, 2, 5]))
        wait_for(lambda: texts_of(room.locator("h3")) == ["Step 4", "Step 1"])

        tokens = room.locator(".tokens")
        first = tokens.nth(1).locator("span")
        assert first.all_text_contents() == [f"f({LINE_END}\n", DOT, "\u00e9", "</s>"]
        levels = [one.get_attribute("data-level") for one in first.all()]
        assert levels == ["0", "3", "6", "none"]
        assert [one.get_attribute("data-end") for one in first.all()] == [None, None, None, ""]
        assert first.nth(1).get_attribute("title") == f'"" {DOT} id 7 {DOT} KL 0.7000 nats'
        assert first.nth(3).get_attribute("title") == f'"</s>" {DOT} id 2 {DOT} KL not finite'
        colours = [
            one.evaluate("element => getComputedStyle(element).backgroundColor")
            for one in first.all()
        ]
        assert len(set(colours)) == 3  # none, and two that differ
        said = texts_of(room.locator(".judgement"))
        assert said[1] == (
            f'mean KL 3.3180 nats {DOT} farthest at "\u00e9" 9.25, "" 0.70, "f(\\n" 0.00 {DOT} '
            f"4 tokens, ended {DOT} row 0, sample 0"
        )
        assert texts_of(tokens.nth(0)) == ["#6 #7 #8"]
        assert said[0].endswith(f"3 tokens, cut {DOT} row 0, sample 0")
        assert texts_of(room.locator("dd").first) == ["#4"]
        legend = texts_of(room.locator(".kl-scale span"))
        assert legend == [
            "below 0.05",
            *(f"from {one}" for one in (0.05, 0.2, 0.5, 1, 2, 5)),
            "not finite",
        ]


def test_earlier_steps_are_loaded_when_asked_for_and_stay(page, home):  # noqa: F811
    with serving(FakeTeacher()) as address:
        service = Service(home)
        run_id = on_policy(service, address)
        path = folder_of(home, run_id).rollouts_path
        for step in range(1, 13):
            for row in range(4):
                append_json_line(path, line(step, row))
        open_page(page, service, f"/#/runs/{run_id}?tab=rollouts")
        room = page.locator("#room-rollouts")

        def steps() -> list[str]:
            return texts_of(room.locator("h3"))

        def named(first: int, last: int) -> list[str]:
            return [f"Step {step}" for step in range(last, first - 1, -1)]

        earlier = room.get_by_role("button", name="Earlier steps")
        wait_for(lambda: steps() == named(9, 12))
        earlier.click()
        wait_for(lambda: steps() == named(5, 12))
        append_json_line(path, line(13))
        wait_for(lambda: steps() == named(5, 13))
        earlier.click()
        wait_for(lambda: steps() == named(1, 13))
        assert not earlier.is_visible()
        assert room.locator("dl").count() == 12 * 4 + 1


def test_what_a_student_writes_is_shown_as_text(page, home):  # noqa: F811
    attack = "<img src=x onerror=\"document.title = 'taken'\"><script>document.title = 1</script>"
    with serving(FakeTeacher()) as address:
        service = Service(home)
        run_id = on_policy(service, address)
        tokens = [attack, "</dd>", "x"]
        append_json_line(
            folder_of(home, run_id).rollouts_path,
            line(1, prompt=attack, tokens=tokens, end=None, kl=[1, 2, 3]),
        )
        open_page(page, service, f"/#/runs/{run_id}?tab=rollouts")
        room = page.locator("#room-rollouts")
        wait_for(lambda: room.locator(".tokens span").all_text_contents() == tokens)
        assert attack in room.locator("dd").first.inner_text()
        assert page.title().endswith("Lectern")
        assert page.locator("main img, main script").count() == 0


def test_a_run_that_keeps_none_says_so(page, home):  # noqa: F811
    with serving(FakeTeacher()) as address:
        service = Service(home)
        run_id = on_policy(service, address, keep=False)
        open_page(page, service, f"/#/runs/{run_id}?tab=rollouts")
        room = page.locator("#room-rollouts")
        wait_for(lambda: "rollout.keep of the spec is false" in room.inner_text())
