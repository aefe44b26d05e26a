"""PATCH /runs/ID over REST: labels in any state, one event, and a resume that overlaps."""

import pytest

from control_plane.api.requests import with_labels
from tests.control_plane.api.test_routes import create, problem_of, stopped
from tests.control_plane.conftest import wait_for


def test_labels_are_shown_wherever_the_run_is(client):
    names = ("priority", "group", "tags", "notes")
    run = create(client, priority=2, group="g", tags=["a"], notes="first")
    assert [run[name] for name in names] == [2, "g", ["a"], "first"]
    assert not {*names} & run["settings"].keys()
    after = client.patch(f"/runs/{run['id']}", json={"group": None, "tags": ["b", "c"]}).json()
    expected = [2, None, ["b", "c"], "first"]
    assert [after[name] for name in names] == expected
    detail = client.get(f"/runs/{run['id']}").json()
    assert [detail["spec"][name] for name in names] == expected
    assert client.get("/runs?tag=c&tag=b").json()["runs"][0]["tags"] == ["b", "c"]
    assert client.get("/runs?tag=a").json()["total"] == 0
    assert client.get("/runs?group=g").json()["total"] == 0


def test_a_change_is_one_event_and_no_change_is_none(client, plane):
    run = create(client)
    wait_for(lambda: client.get(f"/runs/{run['id']}").json()["state"] == "starting")
    wait_for(lambda: plane.runs.get(run["id"]).pid is not None)
    before = plane.runs.newest_revision()
    client.patch(f"/runs/{run['id']}", json={"notes": "x", "priority": 3})
    client.patch(f"/runs/{run['id']}", json={"notes": "x"})
    client.patch(f"/runs/{run['id']}", json={})
    assert [(one.id, one.revision) for one in plane.runs.changed_since(before)] == [
        (run["id"], before + 1)
    ]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"priority": 101}, ["priority"]),
        ({"notes": "fine", "objective": {"alpha": 1}}, ["objective"]),
        ({"prio": 1, "seed": 2, "tags": [""]}, ["prio", "seed", "tags.0"]),
    ],
)
def test_what_is_no_label_or_no_value_of_one_is_refused_by_field(client, body, fields):
    run = create(client)
    refused = problem_of(client.patch(f"/runs/{run['id']}", json=body), 422, "invalid_spec")
    assert sorted(error["field"] for error in refused["errors"]) == fields


def test_a_missing_run_a_missing_body_and_no_object_are_refused(client):
    run = create(client)
    problem_of(client.patch("/runs/none", json={"priority": 1}), 404, "not_found")
    problem_of(client.patch(f"/runs/{run['id']}"), 415, "unsupported_media_type")
    problem_of(client.patch(f"/runs/{run['id']}", json=[1]), 422, "invalid_request")


def test_labels_that_change_while_a_resume_is_checked_are_kept(client, plane, processes):
    run = stopped(client, processes, notes="before")
    checked = plane.checks.require_startable

    async def meanwhile(spec, *args, **named):
        plane.commands.set_labels(
            run["id"], lambda present: with_labels(present, {"notes": "meanwhile", "priority": 3})
        )
        return await checked(spec, *args, **named)

    plane.checks.require_startable = meanwhile
    changes = {"schedule": {"steps": 50}, "priority": 5}
    response = client.post(f"/runs/{run['id']}/resume", json=changes)
    assert response.status_code == 202, response.text
    resumed = response.json()
    assert (resumed["steps"], resumed["notes"], resumed["priority"]) == (50, "meanwhile", 5)
