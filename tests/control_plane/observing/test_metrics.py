"""GET /metrics: every metric, its value, and that Prometheus reads it."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.observing.metrics import MAX_REASONS, Figures, exposition
from control_plane.plane import open_plane
from control_plane.runs.alerts import AlertKind
from control_plane.runs.queries import StateCount
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.run.status import RunState
from lectern_common.teacher.secrets import SecretFiles
from tests.control_plane.conftest import BASE_URL, ROOT, make_home, spec
from tests.support.fakes import FakeClock, FakeProcesses

PREFIX = "lectern_control_plane"


def figures(**said) -> Figures:
    usual = {
        "now": 1000.0,
        "started_at": 400.0,
        "info": {"version": "1.2.3", "python": "3.11.1"},
        "runs": {},
        "queue_limit": 1000,
        "look_age_seconds": 0.25,
        "streams": 3,
        "streams_limit": 256,
        "disk": (100, 40),
        "teachers": {},
        "restarts": {},
        "alerts_undelivered": 2,
    }
    return Figures(**{**usual, **said})


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Returns the values by name and labels; each family must have help and a type."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type != "unknown", family.name
        for sample in family.samples:
            assert sample.name.startswith(PREFIX)
            found[sample.name.removeprefix(f"{PREFIX}_"), tuple(sample.labels.items())] = (
                sample.value
            )
    return found


def of(**said):
    return samples(exposition(figures(**said)).decode())


def test_every_figure_has_its_value():
    runs = {
        "queued": StateCount(4, 0, 700.0),
        "running": StateCount(2, 1, 100.0),
        "starting": StateCount(1, 1, 990.0),
    }
    restarts = {"killed": 3, "teacher_unavailable": 2, "rank_lost": 1}
    found = of(runs=runs, restarts=restarts, teachers={"h:1": True, "[::1]:2": False})
    expected = {
        ("info", (("python", "3.11.1"), ("version", "1.2.3"))): 1,
        ("start_time_seconds", ()): 400,
        ("last_look_age_seconds", ()): 0.25,
        ("runs_stalled", ()): 2,
        ("queue_length", ()): 4,
        ("queue_limit", ()): 1000,
        ("queue_oldest_wait_seconds", ()): 300,
        ("streams_open", ()): 3,
        ("streams_limit", ()): 256,
        ("disk_total_bytes", ()): 100,
        ("disk_free_bytes", ()): 40,
        ("teacher_reachable", (("address", "h:1"),)): 1,
        ("teacher_reachable", (("address", "[::1]:2"),)): 0,
        ("run_restarts_total", (("reason", "killed"),)): 3,
        ("run_heals_total", (("reason", "teacher_unavailable"),)): 2,
        ("run_heals_total", (("reason", "rank_lost"),)): 1,
        ("alerts_undelivered", ()): 2,
    }
    for state in RunState:
        count = runs[state].runs if state in runs else 0
        expected["runs", (("state", str(state)),)] = count
    assert found == expected


def test_an_empty_plane_shows_zeros_and_a_disk_that_cannot_be_asked_nothing():
    found = of(disk=None)
    assert found["queue_oldest_wait_seconds", ()] == 0
    assert not any(name.startswith("disk") for name, _ in found)


def test_reasons_that_trainers_make_up_are_bounded_and_escaped():
    found = of(restarts={f'odd "{number}\\\n': 1 for number in range(MAX_REASONS + 7)})
    reasons = [labels for name, labels in found if name == "run_restarts_total"]
    assert len(reasons) == MAX_REASONS + 1
    assert found["run_restarts_total", (("reason", "other"),)] == 7
    assert ("run_restarts_total", (("reason", 'odd "0\\\n'),)) in found


def test_every_metric_is_documented():
    page = (ROOT / "docs" / "observing.md").read_text()
    for name, _ in of(restarts={"killed": 1, "rank_lost": 1}, teachers={"h:1": True}):
        assert f"`{PREFIX}_{name}`" in page, name


@pytest.fixture
def scraped(tmp_path):
    """A function that returns the metrics of a plane, and the plane."""
    plane = open_plane(
        make_home(tmp_path),
        devices=Devices((), max_running=2),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
        teachers={"127.0.0.1:9": SecretFiles()},
    )
    tokens = {"token": "the-token-of-these-tests", "read_token": "another-one-that-reads"}
    with TestClient(create_app(plane, **tokens), base_url=BASE_URL) as client:

        def scrape():
            header = {"Authorization": "Bearer another-one-that-reads"}
            response = client.get("/metrics", headers=header)
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            return samples(response.text)

        yield scrape, plane, client


def test_a_scrape_with_the_token_that_only_reads(scraped):
    scrape, plane, client = scraped
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer x"}).status_code == 401
    for name in ("a", "b", "c"):
        plane.commands.create(spec(name))
    with plane.store.writing() as connection:
        plane.alerts.add(connection, AlertKind.DISK, "full")
    found = scrape()
    counts = [value for (name, _), value in found.items() if name == "runs"]
    assert sum(counts) == 3
    assert 0 <= found["last_look_age_seconds", ()] < 60
    assert found["teacher_reachable", (("address", "127.0.0.1:9"),)] == 0
    assert found["disk_total_bytes", ()] >= found["disk_free_bytes", ()] > 0
    assert found["alerts_undelivered", ()] == 0  # no receiver is set
    assert found["start_time_seconds", ()] == plane.started_at


def test_a_loop_that_fails_lets_its_age_grow(scraped):
    scrape, plane, _ = scraped
    plane.readiness._succeeded_at -= 500
    plane.runs.at_rest = lambda: 1 / 0
    plane.readiness.looked("it failed")
    assert scrape()["last_look_age_seconds", ()] >= 499


def test_a_scrape_makes_one_query_over_runs(scraped, monkeypatch):
    scrape, plane, _ = scraped
    scrape()
    monkeypatch.setattr(plane.runs, "in_states", lambda *_: pytest.fail("scans runs"))
    calls = []
    real = plane.runs.by_state

    def by_state():
        calls.append(1)
        return real()

    monkeypatch.setattr(plane.runs, "by_state", by_state)
    plane.reconciler.tick = plane.conditions.look = lambda: None
    scrape()
    assert calls == [1]
