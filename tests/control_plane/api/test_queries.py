"""A query parameter that a route does not have is refused, on every route, by name."""

import pytest

from control_plane.api.app import document
from tests.control_plane.api.test_routes import create, problem_of
from tests.control_plane.conftest import serving


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("queries")) as (client, _):
        yield client, create(client)["id"]


OPERATIONS = [
    (method, path, {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"})
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
]


@pytest.mark.parametrize(("method", "path", "known"), OPERATIONS)
def test_no_route_ignores_a_parameter_that_it_does_not_have(shared, method, path, known):
    client, run_id = shared
    url = path.replace("{run_id}", run_id)
    body = problem_of(client.request(method, f"{url}?nonsense=1"), 422, "invalid_request")
    [error] = body["errors"]
    assert error["field"] == "nonsense"
    assert error["message"].startswith("unknown query parameter; ")
    if "known here" in error["message"]:
        named = error["message"].partition("known here: ")[2].split(", ")
        assert set(named) == (known or {"none"})


@pytest.mark.parametrize(
    ("path", "errors"),
    [
        ("/runs?stat=running", [("stat", "did you mean state?")]),
        ("/runs?states=running&limits=3", [("states", "mean state?"), ("limits", "mean limit?")]),
        ("/runs?State=running", [("State", "did you mean state?")]),
        ("/runs?limit=1&limit=200", [("limit", "is given more than once")]),
        ("/runs?=1", [("", "unknown query parameter")]),
        ("/runs?state", [("state.0", "")]),
        ("/runs?%1b[31m%0a=1", [(r"\x1b[31m\n", "unknown query parameter")]),
        (f"/runs?{'x' * 300}=1", [("x" * 60, "unknown query parameter")]),
        ("/runs/RUN/logs?tial=3", [("tial", "did you mean tail?")]),
        ("/runs/RUN/logs?tail=3&tail_lines=3", [("tail_lines", "known here: tail")]),
        ("/runs/RUN/series?key=loss/kd", [("key", "did you mean keys?")]),
        ("/runs/RUN/metrics?after=3", [("after", "")]),
        ("/runs/RUN/events?last=3", [("last", "")]),
        ("/healthz?verbose", [("verbose", "known here: none")]),
    ],
)
def test_what_is_wrong_is_named(shared, path, errors):
    client, run_id = shared
    body = problem_of(client.get(path.replace("RUN", run_id)), 422, "invalid_request")
    assert [error["field"] for error in body["errors"]] == [field for field, _ in errors]
    for error, (_, message) in zip(body["errors"], errors, strict=True):
        assert message in error["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/runs?state=running&state=queued",
        "/runs?tag=a&tag=b&limit=3",
        "/runs?",
        "/runs?&&",
        "/?shared=view",  # the page's own addresses are its own matter
        "/web/app.js?v=2",
    ],
)
def test_what_a_route_has_is_taken(shared, path):
    assert shared[0].get(path).status_code == 200


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("group=A", ["group"]),
        ("group=", ["group"]),
        ("tag=a&tag=b,c", ["tag.1"]),
        ("&".join(f"tag=t{n}" for n in range(21)), ["tag"]),
    ],
)
def test_a_group_or_tag_that_no_run_can_have_is_refused(shared, query, fields):
    body = problem_of(shared[0].get(f"/runs?{query}"), 422, "invalid_request")
    assert [error["field"] for error in body["errors"]] == fields
