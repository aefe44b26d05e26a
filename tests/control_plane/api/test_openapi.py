"""The OpenAPI document: committed, complete, and kept by every answer (schemathesis)."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from control_plane.api.app import create_app, document
from control_plane.api.guard import PUBLIC
from control_plane.api.openapi import text_of
from control_plane.plane import open_plane
from control_plane.reading.feed import Feed
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.spec.load import parse_spec
from tests.control_plane.conftest import ROOT, make_home, serving, spec_body
from tests.control_plane.test_process import Service, home  # noqa: F401 - a fixture
from tests.support.fakes import FakeClock, FakeProcesses

COMMITTED = ROOT / "docs" / "openapi.json"
TOKEN = "the-token-of-these-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    ignored_auth,
]
STREAMS = ("/events", "/runs/{run_id}/events", "/runs/{run_id}/log/stream")
METHODS = {"get", "post", "put", "patch", "delete"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_committed_document_is_that_of_the_code():
    again = "run: python -m control_plane.api.openapi > docs/openapi.json"
    assert COMMITTED.read_text() == text_of(document()), again


def test_every_error_is_documented_as_a_problem():
    for method, path, operation in operations():
        responses = operation["responses"]
        wanted = {"400", "405", "408", "413", "500", "503"}
        wanted |= set() if path in PUBLIC else {"401"}
        wanted |= {"403"} if method != "get" else set()
        wanted |= {"415"} if "requestBody" in operation else set()
        assert wanted <= set(responses), (method, path)
        for status, response in responses.items():
            if int(status) >= 400:
                problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
                assert response["content"] == {"application/problem+json": problem}


def test_every_operation_says_which_tokens_open_it():
    for method, path, operation in operations():
        names = [name for scheme in operation["security"] for name in scheme]
        full = [] if path in PUBLIC else ["token"]
        reads = method == "get" and path not in PUBLIC
        assert names == full + (["readOnlyToken"] if reads else []), (method, path)


def test_bodies_are_described_as_strictly_as_they_are_read():
    schemas = document()["components"]["schemas"]
    bodies = [name for name in schemas if name.endswith(("Spec", "SpecChanges"))]
    assert {"RunSpec", "RunSpecChanges", "ScheduleSpecChanges"} <= set(bodies)
    for name in bodies:
        assert schemas[name]["additionalProperties"] is False, name
        if name.endswith("Changes"):
            assert "required" not in schemas[name]
            assert not any("default" in field for field in schemas[name]["properties"].values())


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/runs", "GET, POST"),
        ("HEAD", "/runs", "GET, POST"),
        ("POST", "/runs/a", "DELETE, GET, PATCH"),
        ("GET", "/runs/a/stop", "POST"),
        ("DELETE", "/healthz", "GET"),
        ("POST", "/", "GET"),
        ("POST", "/web/app.js", "GET, HEAD"),
        ("OPTIONS", "/runs", "GET, POST"),
    ],
)
def test_allow_names_every_method_of_a_path(tmp_path_factory, method, path, allow):
    with serving(tmp_path_factory.mktemp("allow")) as (client, _):
        response = client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allow)


# ---- schemathesis --------------------------------------------------------------------------------


def keeps_its_word(schema: Any, max_examples: int) -> Counter[str]:
    """Calls each operation with this many cases, and checks each answer; returns the cases made."""
    made: Counter[str] = Counter()

    def check(case: Any) -> None:
        made[case.operation.label] += 1
        response = case.call(headers=BEARER)
        case.validate_response(response, checks=CHECKS, headers=BEARER)

    bounds = settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    for found in schema.get_all_operations():
        bounds(given(case=found.ok().as_strategy())(check))()
    return made


@contextmanager
def _closing(feed: Feed) -> Iterator[None]:
    """Opens a stream that ends at once."""
    feed.closed = True
    try:
        yield
    finally:
        feed.closed = False


@pytest.fixture
def in_process(tmp_path, monkeypatch) -> Iterator[Any]:
    """A schema whose calls reach an application in this process; its streams end at once."""
    plane = open_plane(
        make_home(tmp_path),
        devices=Devices((), max_running=2),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
    )
    monkeypatch.setattr(plane.feed, "opened", lambda: _closing(plane.feed))
    plane.commands.create(parse_spec(spec_body()))
    app = create_app(plane, token=TOKEN)

    async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    schema = schemathesis.openapi.from_dict(json.loads(COMMITTED.read_text()))
    schema.app = without_lifespan
    schema.config.update(base_url="http://127.0.0.1")
    yield schema.exclude(path="/readyz")  # which is 503 for a plane whose loop does not run
    plane.close()


def test_answers_keep_to_the_document(in_process):
    made = keeps_its_word(in_process, 5)
    assert len(made) == len(list(operations())) - 1


@pytest.mark.rare
def test_ten_thousand_answers_keep_to_the_document(in_process):
    count = len(list(operations()))
    made = keeps_its_word(in_process, -(-10_000 // count))
    assert sum(made.values()) >= 9_000  # operations without parameters have fewer cases


@pytest.mark.long
def test_answers_of_a_server_keep_to_the_document(home):  # noqa: F811
    (home / "token").write_text(TOKEN)
    service = Service(home, "--token-file", str(home / "token"))
    schema = schemathesis.openapi.from_dict(json.loads(COMMITTED.read_text()))
    schema.config.update(base_url=str(service.client.base_url).rstrip("/"))
    keeps_its_word(schema.exclude(path=list(STREAMS)), 50)  # they do not end
    assert service.client.get("/healthz").status_code == 200
    assert service.end() == 0
