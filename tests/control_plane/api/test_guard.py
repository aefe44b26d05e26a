"""The access checks: which requests get through, and which headers every answer has."""

import asyncio

import pytest
import sqlalchemy as sa
from starlette.exceptions import HTTPException

from control_plane.api import guard
from control_plane.api.guard import MAX_BODY_BYTES
from tests.control_plane.api.test_routes import problem_of
from tests.control_plane.conftest import BASE_URL, serving, spec_body

TOKEN = "a-token-of-some-length"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("open")) as (client, _):
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A client, which sends no token by itself, of a control plane that requires one."""
    app = {"token": TOKEN, "allowed_hosts": ["lectern.example"]}
    with serving(tmp_path_factory.mktemp("locked"), **app) as (client, _):
        yield client


def num_runs(client) -> int:
    return len(client.get("/runs").json()["runs"])


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]"],
)
def test_loopback_names_are_served(client, host):
    assert client.get("/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8080", "", "localhost@evil", "0"],
)
def test_a_foreign_host_is_refused(client, host):
    for path in ("/runs", "/", "/healthz"):
        problem_of(client.get(path, headers={"host": host}), 400, "unknown_host")


def test_a_configured_host_is_served(locked):
    headers = {"host": "Lectern.example:8080", **bearer(TOKEN)}
    assert locked.get("/runs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://["},
        {"origin": "http://[::1"},
        {"origin": "http://[v1.x]:y"},
        {"origin": "//"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_write_from_another_page_has_no_effect(client, headers):
    before = num_runs(client)
    response = client.post("/runs", json=spec_body(), headers=headers)
    problem_of(response, 403, "foreign_origin")
    assert num_runs(client) == before


def test_a_write_from_our_own_page_is_served(client):
    headers = {"origin": BASE_URL, "sec-fetch-site": "same-origin"}
    assert client.post("/runs", json=spec_body(), headers=headers).status_code == 202


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_cannot_write(client, kind):
    response = client.post("/runs", content=b'{"name": "a"}', headers={"content-type": kind})
    problem_of(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path",
    ["/runs", "/runs/a", "/events", "/teachers", "/openapi.json", "/nothing", "/datasets"],
)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        bearer(TOKEN + "x"),
        bearer(TOKEN[:-1]),
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-token": TOKEN},
    ],
)
def test_nothing_is_disclosed_without_the_token(locked, path, headers):
    response = locked.get(path, headers=headers)
    problem_of(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in response.text


def test_a_wrong_token_and_none_are_told_apart(locked):
    missing = "this control plane requires its bearer token"
    for headers in ({}, bearer(""), {"authorization": f"Basic {TOKEN}"}):
        assert locked.get("/runs", headers=headers).json()["detail"] == missing
    for given in ("wrong", TOKEN + "x"):
        assert locked.get("/runs", headers=bearer(given)).json()["detail"] == (
            "the bearer token is wrong"
        )


def test_a_token_in_the_url_does_not_count(locked):
    response = locked.get("/runs", params={"token": TOKEN, "authorization": f"Bearer {TOKEN}"})
    problem_of(response, 401, "unauthenticated")


def test_every_route_requires_the_token(locked):
    schema = locked.get("/openapi.json", headers=bearer(TOKEN)).json()
    public = {"/healthz", "/readyz"}
    for path, methods in schema["paths"].items():
        for method in methods:
            status = locked.request(method, path.replace("{run_id}", "a")).status_code
            assert (status == 401) == (path not in public), (method, path)


def test_the_token_opens_every_route(locked):
    assert locked.get("/runs", headers=bearer(TOKEN)).status_code == 200
    headers = {"authorization": f"bearer  {TOKEN} "}
    assert locked.post("/runs", json=spec_body(), headers=headers).status_code == 202


def test_the_page_itself_needs_no_token(locked):
    assert locked.get("/").status_code == 200
    assert locked.get("/web/app.js").status_code == 200
    assert locked.get("/web/charts/chart.js").status_code == 200


@pytest.mark.parametrize("path", ["/web/../runs", "/web/%2e%2e/plane.py", "/web/../../pyproject"])
def test_the_page_s_folder_leads_nowhere_else(locked, path):
    assert locked.get(path).status_code in (401, 404)


def test_a_body_over_the_cap_is_refused_before_it_is_read(client):
    headers = {**JSON, "content-length": str(1 << 30)}
    problem_of(client.post("/runs", content=b"{}", headers=headers), 413, "too_large")


def test_a_body_that_grows_over_the_cap_is_refused(client):
    def chunks():
        for _ in range(MAX_BODY_BYTES // 1024 + 2):
            yield b" " * 1024

    problem_of(client.post("/runs", content=chunks(), headers=JSON), 413, "too_large")


def test_a_body_under_the_cap_is_read(client):
    text = b" " * (MAX_BODY_BYTES - 2) + b"{}"
    problem_of(client.post("/runs", content=text, headers=JSON), 422, "invalid_spec")


@pytest.mark.parametrize("path", ["/", "/runs", "/nothing", "/web/app.js", "/web/charts/chart.js"])
def test_every_answer_carries_the_security_headers(client, path):
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/web") else "no-store")


def test_a_fault_of_the_server_is_a_problem_with_the_security_headers(tmp_path, monkeypatch):
    with serving(tmp_path) as (client, plane):
        monkeypatch.setattr(plane.runs, "_store", None)  # what is called is not there
        response = client.get("/runs")
    problem_of(response, 500, "internal")
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["cache-control"] == "no-store"


def test_a_database_without_free_connections_is_busy(tmp_path, monkeypatch):
    def no_connection(*_, **__):
        raise sa.exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached")

    with serving(tmp_path) as (client, plane):
        monkeypatch.setattr(plane.runs, "search", no_connection)
        response = client.get("/runs")
    problem_of(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1


def test_the_read_only_token_reads(tmp_path):
    with serving(tmp_path, token=TOKEN, read_token="another-token-to-read") as (client, _):
        client.headers.update(bearer("another-token-to-read"))
        assert client.get("/runs").status_code == 200
        for method, path in (("POST", "/runs"), ("DELETE", "/runs/a"), ("POST", "/runs/a/stop")):
            problem_of(client.request(method, path), 403, "read_only_token")
        client.headers.update(bearer(TOKEN))
        assert client.post("/runs", json=spec_body()).status_code == 202


def test_a_full_queue_refuses_another_run_and_keeps_the_key_s(tmp_path):
    with serving(tmp_path) as (client, plane):
        plane.commands._max_queued = 0
        response = client.post("/runs", json=spec_body())
    problem_of(response, 503, "overloaded")
    assert "--max-queued-runs" in response.json()["detail"]
    assert response.headers["retry-after"] == "60"


def test_a_body_that_trickles_is_given_up_although_it_is_never_silent(monkeypatch):
    monkeypatch.setattr(guard, "WHOLE_BODY_SECONDS", 0.2)

    async def trickle():
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read():
        receive = guard._bounded(trickle)
        for _ in range(guard.MAX_BODY_BYTES):
            await receive()

    with pytest.raises(HTTPException) as refused:
        asyncio.run(read())
    assert (refused.value.status_code, refused.value.headers) == (408, {"Connection": "close"})
