"""/readyz is false at the first broken look, says which part, and is true again once healed."""

import errno
import tempfile

import pytest
import sqlalchemy as sa

from control_plane.readiness import LOOK_SECONDS, Readiness
from tests.control_plane.conftest import wait_for
from tests.support.fakes import FakeClock


def broken_parts(client):
    """Returns the broken parts; none if it is ready."""
    response = client.get("/readyz")
    if response.status_code == 200:
        assert response.json()["status"] == "ready"
        return []
    assert (response.status_code, response.json()["reason"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1"
    assert response.json()["retryable"]
    errors = response.json()["errors"]
    assert all(entry["message"] in response.json()["detail"] for entry in errors)
    return [entry["field"] for entry in errors]


@pytest.fixture
def probed_always(monkeypatch):
    monkeypatch.setattr("control_plane.readiness.PROBE_SECONDS", 0.0)


def test_a_look_that_fails_is_told_until_one_succeeds(client, plane, probed_always, monkeypatch):
    assert broken_parts(client) == []

    def fails():
        raise RuntimeError("out of luck")

    monkeypatch.setattr(plane.runs, "at_rest", fails)
    wait_for(lambda: broken_parts(client) == ["reconcile_loop"])
    assert "out of luck" in client.get("/readyz").json()["detail"]
    monkeypatch.undo()
    wait_for(lambda: broken_parts(client) == [])


def test_a_full_disk_is_told(client, probed_always, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert broken_parts(client) == ["disk"]
    assert "No space left on device" in client.get("/readyz").json()["detail"]
    monkeypatch.undo()
    monkeypatch.setattr("control_plane.readiness.PROBE_SECONDS", 0.0)
    assert broken_parts(client) == []


def test_a_database_that_cannot_be_written_is_told(client, plane, probed_always):
    plane.store._engine.dispose()

    def read_only(connection, _record):
        connection.execute("PRAGMA query_only=ON")

    sa.event.listen(plane.store._engine, "connect", read_only)
    wait_for(lambda: "database" in broken_parts(client))
    assert "readonly" in client.get("/readyz").json()["detail"]
    sa.event.remove(plane.store._engine, "connect", read_only)
    plane.store._engine.dispose()
    wait_for(lambda: broken_parts(client) == [])


def test_trying_the_database_leaves_nothing_in_it(bench):
    revision = bench.runs.newest_revision()
    bench.store.try_write()
    bench.store.try_write()
    assert bench.runs.changed_since(-10) == []
    assert bench.runs.newest_revision() == revision


def test_a_loop_that_hangs_is_told_and_probes_are_not_repeated_at_will(bench, monkeypatch):
    clock = FakeClock()
    readiness = Readiness(bench.store, bench.roots.runs, clock)
    assert [*readiness.problems()] == ["reconcile_loop"]  # it has not looked yet
    readiness.looked()
    assert readiness.problems() == {}
    monkeypatch.setattr(bench.store, "try_write", lambda: 1 / 0)
    clock.advance(0.5)
    assert readiness.problems() == {}
    monkeypatch.undo()
    clock.advance(LOOK_SECONDS)
    assert readiness.problems() == {"reconcile_loop": "it has not looked at the runs for 16 s"}
    readiness.looked()
    assert readiness.problems() == {}
