"""Runs are found by a part of their name, by state, and in any order, page by page."""

import time
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from control_plane.runs.search import Search
from control_plane.runs.store import runs
from lectern_common.errors import InvalidRequest
from tests.control_plane.conftest import spec_body


@pytest.fixture
def made(bench) -> Any:
    """Five runs; the last three have a validation loss."""
    rates = {"a": 3e-4, "b": 1e-4, "c": 2e-4, "d": 1e-4, "e": 5e-4}
    ids = {}
    for name, rate in rates.items():
        run = bench.create(f"steady-{name}", optimizer={"learning_rate": rate})
        ids[run.id] = name
    return ids


def names(bench, made, **query: Any) -> str:
    """Returns the letters of all runs found, asked for two at a time."""
    found, after = "", None
    while True:
        page = bench.runs.search(Search(**query), after, 2)
        if not page.runs:
            return found
        found += "".join(made[run.id] for run in page.runs)
        after = page.runs[-1].seq


def test_runs_are_newest_first_unless_sorted(bench, made) -> None:
    assert names(bench, made) == "edcba"
    assert names(bench, made, sort="name") == "abcde"
    assert names(bench, made, sort="-name") == "edcba"
    assert names(bench, made, sort="created_at") in ("abcde", "edcba")  # one moment: newest first


def test_equal_settings_are_newest_first_in_both_directions(bench, made) -> None:
    assert names(bench, made, sort="spec.optimizer.learning_rate") == "dbcae"
    assert names(bench, made, sort="-spec.optimizer.learning_rate") == "eacdb"


def test_runs_without_a_metric_come_last_in_both_directions(bench) -> None:
    made = {}
    for name, loss in {"a": 2.0, "b": None, "c": 1.0, "d": None, "e": 3.0}.items():
        run = bench.create(f"steady-{name}")
        made[run.id] = name
        bench.tick()
        trainer = bench.processes.last(run.id)
        trainer.say("running", step=1, latest={} if loss is None else {"loss/val": loss})
        bench.tick(1)
        trainer.say("succeeded", step=20, latest={} if loss is None else {"loss/val": loss})
        trainer.end(0)
        bench.tick(1)
    assert names(bench, made, sort="latest.loss/val") == "caedb"
    assert names(bench, made, sort="-latest.loss/val") == "eacdb"


@pytest.mark.parametrize(
    ("text", "found"), [("steady-", "edcba"), ("Y-C", "c"), ("%", ""), ("_", ""), ("oil", "")]
)
def test_a_part_of_the_name_in_any_case_finds_a_run(bench, made, text: str, found: str) -> None:
    assert names(bench, made, text=text) == found


@pytest.mark.parametrize(
    "sort", ["", "-", "seq", "latest.", 'latest.a"b', "spec.a'b", "spec.", "name desc", "--name"]
)
def test_an_unknown_order_is_refused(client: TestClient, sort: str) -> None:
    answer = client.get("/runs", params={"sort": sort})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["sort"]


def test_a_page_after_a_deleted_run_is_refused_in_a_sorted_list(bench, made) -> None:
    with pytest.raises(InvalidRequest, match="deleted; list the runs from the start"):
        bench.runs.search(Search(sort="name"), 99, 2)


def test_a_page_says_how_many_match_in_all(client: TestClient) -> None:
    for name in ("steady-one", "steady-two", "other"):
        client.post("/runs", json=spec_body(name))
    page = client.get("/runs", params={"q": "steady", "limit": 1}).json()
    assert (len(page["runs"]), page["total"]) == (1, 2)
    last = client.get("/runs", params={"q": "steady", "cursor": page["next_cursor"]}).json()
    assert [run["name"] for run in last["runs"]] == ["steady-one"]
    assert last["next_cursor"] is None


def test_no_run_is_lost_or_doubled_between_pages_while_the_time_of_runs_passes(bench) -> None:
    made = {bench.create(f"steady-{name}").id: name for name in "abc"}
    with bench.store.writing() as connection:
        moments = {"a": 3.0, "b": 2.0, "c": 1.0}
        for run_id, name in made.items():
            began = time.time() - moments[name]
            values = {"active_since": began, "state": "running"}
            connection.execute(sa.update(runs).where(runs.c.id == run_id).values(values))
    for _ in range(100):
        assert names(bench, made, sort="elapsed") == "cba"
        assert names(bench, made, sort="-elapsed") == "abc"
