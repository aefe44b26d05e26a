"""The teacher cards in a real browser: what a teacher does, and what each run has had of it."""

import pytest

from protos import teacher_pb2
from tests.control_plane.conftest import wait_for
from tests.control_plane.test_process import Service, home  # noqa: F401 - a fixture
from tests.control_plane.web.test_page import browser, open_page, page  # noqa: F401 - fixtures
from tests.support.fakes import FakeTeacher, serving

pytestmark = pytest.mark.browser

DOT, DASH = "\N{MIDDLE DOT}", "\N{EN DASH}"
ATTACK = "<img src=x onerror=\"document.title = 'taken'\">"


def text_of(locator) -> str:
    """Returns the text with every kind of space as one."""
    return " ".join(locator.inner_text().split())


def open_unfolded(page, service) -> None:  # noqa: F811
    """Opens the page with its teachers unfolded, as a user has left them."""
    page.add_init_script("localStorage.setItem('lectern-teacher-open', 'yes')")
    open_page(page, service)


def busy_teacher(**model) -> FakeTeacher:
    teacher = FakeTeacher(
        mode="throughput", quantization="int8", measured_tokens_per_second=12_345, **model
    )
    teacher.stats.MergeFrom(
        teacher_pb2.Stats(
            queued_tokens=48_000,
            compute_seconds=100.0,
            forwards=7_700,
            padding_tokens=1_247,
            sent_bytes=3_000_000_000,
            device_utilization=0.93,
            refused_requests=12,
            cache=teacher_pb2.CacheStats(
                hits=3,
                misses=1,
                used_bytes=1_200_000_000,
                capacity_bytes=4_000_000_000,
                disk_used_bytes=5_000_000_000,
                disk_capacity_bytes=90_000_000_000,
            ),
        )
    )
    return teacher


def accounts_of(page) -> list[list[str]]:  # noqa: F811
    rows = page.locator(".accounts tbody tr").all()
    return [[text_of(cell) for cell in row.locator("th, td").all()] for row in rows]


def test_a_card_says_what_the_teacher_does_and_what_each_run_has_had(page, home):  # noqa: F811
    teacher = busy_teacher()
    with serving(teacher) as address:
        service = Service(home, "--teacher", address)
        run_id = service.create("distilled")
        teacher.stats.runs.add(
            run_id=run_id,
            requests=10,
            tokens=2_000_000,
            sent_bytes=1_500_000,
            compute_seconds=75.0,
            queue_seconds=1.2,
            cache_hits=1,
            cache_misses=4,
            weight=2.0,
        )
        teacher.stats.runs.add(run_id="of-another-service", compute_seconds=5.0)
        open_unfolded(page, service)
        wait_for(lambda: len(accounts_of(page)) == 2)
        card = page.locator(".teacher")
        assert f"cpu (fake) {DOT} float32 {DOT} int8 {DOT} throughput" in text_of(
            card.locator(".about .muted")
        )
        assert [text_of(figure) for figure in card.locator(".figures div:visible").all()] == [
            "9.9 k tokens/s, last minute",
            "3 requests in flight",
            "93 % device utilization",
            "75 % cache hits",
            "123 k tokens scored",
        ]
        assert [text_of(fact) for fact in card.locator(".work div:visible").all()] == [
            "Measured at startup 12 k tokens/s",
            "Queued 48 k tokens",
            "Cache 1.2 GB of 4.0 GB",
            "Disk cache 5.0 GB of 90 GB",
            "Forward passes 7.7 k",
            "Padding 1.0 %",
            "Sent 3.0 GB",
            "Uptime 1:00",
            "Rejected requests 12",
        ]
        assert not card.locator(".warning").is_visible()
        assert accounts_of(page) == [
            ["distilled", "75 %", "2.0 M", "1.5 MB", "20 %", "120 ms", "2"],
            ["of-another-service", "5.0 %", "0", "0 B", DASH, DASH, DASH],
        ]
        widths = page.eval_on_selector_all(
            ".accounts .bar i",
            "bars => bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth)",
        )
        assert widths == pytest.approx([0.75, 0.05], abs=0.02)
        assert page.locator(".accounts a").all_inner_texts() == ["distilled", ""]
        page.get_by_role("link", name="distilled").first.click()
        wait_for(page.locator("#view-run").is_visible)
        assert page.locator("#run-id").inner_text() == run_id


def test_many_runs_are_folded_and_unfolded_and_stay_so(page, home):  # noqa: F811
    teacher = busy_teacher()
    for number in range(20):
        teacher.stats.runs.add(run_id=f"run-{number:02}", compute_seconds=20 - number)
    with serving(teacher) as address:
        service = Service(home, "--teacher", address)
        open_unfolded(page, service)
        wait_for(lambda: len(accounts_of(page)) == 4)
        assert text_of(page.locator(".accounts summary")) == "20 runs since it started"
        page.get_by_role("button", name="Show all 20").click()
        assert [row[0] for row in accounts_of(page)] == [f"run-{n:02}" for n in range(20)]
        teacher.stats.runs[19].compute_seconds = 99.0
        wait_for(lambda: accounts_of(page)[0][0] == "run-19")
        assert len(accounts_of(page)) == 20
        page.get_by_role("button", name="Show fewer").click()
        assert len(accounts_of(page)) == 4
        page.locator(".accounts summary").click()
        wait_for(lambda: page.evaluate("localStorage.getItem('lectern-accounts-folded')"))
        assert not page.locator(".accounts table").is_visible()
        page.reload()
        wait_for(page.locator(".accounts summary").is_visible)
        assert not page.locator(".accounts table").is_visible()


def test_a_teacher_without_runs_or_of_an_earlier_version_shows_what_it_says(
    page,  # noqa: F811
    home,  # noqa: F811
):
    teacher = FakeTeacher()
    teacher.stats.refused_requests = 0
    with serving(teacher) as address:
        service = Service(home, "--teacher", address)
        open_unfolded(page, service)
        card = page.locator(".teacher")
        wait_for(card.locator("h2").is_visible)
        assert [text_of(fact) for fact in card.locator(".work div:visible").all()] == [
            "Sent 0 B",
            "Uptime 1:00",
        ]
        assert not card.locator(".accounts").is_visible()


def test_a_teacher_on_the_cpu_beside_a_gpu_is_marked(page, home, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with serving(FakeTeacher(engine="transformers")) as address:
        service = Service(home, "--teacher", address)
        open_page(page, service)
        warning = page.locator(".teacher .warning")
        wait_for(warning.is_visible)
        assert "runs on the CPU while this machine has a GPU" in warning.inner_text()


def test_what_a_teacher_says_is_shown_as_text(page, home):  # noqa: F811
    teacher = busy_teacher(model_id=ATTACK, device=f"cpu {ATTACK}")
    teacher.stats.runs.add(run_id=ATTACK, compute_seconds=1.0)
    teacher.stats.runs.add(run_id='"></a><script>document.title = 1</script>', compute_seconds=2.0)
    offer = teacher.model.representations[0]
    offer.offered, offer.reason = False, ATTACK
    with serving(teacher) as address:
        service = Service(home, "--teacher", address)
        open_unfolded(page, service)
        wait_for(lambda: ATTACK in page.locator(".accounts").inner_text())
        assert page.locator(".teacher h2").inner_text() == ATTACK
        assert page.title() == "Lectern"
        assert page.locator(".teacher img, .teacher script").count() == 0


def test_cards_with_many_runs_and_long_names_fit_the_window(page, home):  # noqa: F811
    long = "a-teacher-with-a-name/that-goes-on-without-any-end-" + "x" * 80
    teachers = [busy_teacher(), busy_teacher(model_id=long, device="cuda:0 (" + "Y" * 90 + ")")]
    for teacher in teachers:
        for number in range(20):
            teacher.stats.runs.add(
                run_id=f"{'z' * 58}-{number:02}",
                tokens=999_999_999_999,
                sent_bytes=999_000_000_000_000,
                compute_seconds=5.0,
                queue_seconds=1e7,
                requests=1,
                cache_misses=1,
                weight=1234.5,
            )
    with serving(teachers[0]) as first, serving(teachers[1]) as second:
        service = Service(home, "--teacher", first, "--teacher", second)
        for width in (320, 360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            open_unfolded(page, service)
            wait_for(lambda: page.locator(".accounts tbody tr").count() == 8)
            page.get_by_role("button", name="Show all 20").first.click()
            assert page.locator(".accounts tbody tr").count() == 24
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            spills = page.eval_on_selector_all(
                ".teacher, .teacher .figures, .teacher .work, .accounts, .accounts table",
                """all => all.filter(box => box.scrollWidth > box.clientWidth + 1)
                    .map(box => box.className)""",
            )
            assert (width, spills) == (width, [])
