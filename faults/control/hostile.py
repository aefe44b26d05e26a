"""C14 to C16: bodies too large or too deep, path tricks, requests of other sites."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from faults.control.plane import Plane, body_of, new_home, plane
from faults.row import Tally
from faults.stage import Stage

C14_SECONDS = 1.0


def large_and_deep(stage: Stage) -> Tally:
    """C14: a body of 1 GiB, a header of 1 MB, deep JSON, NaN, unknown and doubled fields."""
    tally, slowest = Tally(), 0.0
    deep = b"[" * 50_000 + b"]" * 50_000
    spec = body_of()
    cases: dict[str, tuple[set[int], Callable[[Plane], int]]] = {
        "1 GiB announced": ({413}, lambda service: _raw(service, announced=1 << 30)),
        "64 MiB in chunks": ({413}, lambda service: _raw(service, chunked=True)),
        "a header of 1 MB": ({400, 431}, lambda service: _raw(service, header=1 << 20)),
        "deep JSON": ({400}, _posting(deep)),
        "deep objects": ({400}, _posting(b'{"a":' * 30_000 + b"1" + b"}" * 30_000)),
        "NaN": ({422}, _posting(json.dumps({**spec, "objective": {"alpha": float("nan")}}))),
        "Infinity": ({422}, _posting(json.dumps({**spec, "objective": {"alpha": float("inf")}}))),
        "an unknown field": ({422}, _posting(json.dumps({**spec, "objective": {"aplha": 1}}))),
        "a field twice": ({400}, _posting('{"name": "a", "name": "b"}')),
        "a number of 100,000 digits": ({400}, _posting('{"seed": ' + "9" * 100_000 + "}")),
        "no UTF-8": ({400}, _posting(b'{"name": "\xff"}')),
        "a lone surrogate": ({400}, _posting(b'{"name": "\\ud800"}')),
        "a list": ({422}, _posting("[]")),
        "nothing": ({400}, _posting("")),
    }
    with plane(stage, new_home(stage)) as service:
        for _ in range(stage.tries(5, 1)):
            for what, (wanted, sent) in cases.items():
                stage.say(what)
                begun = time.monotonic()
                status = sent(service)
                slowest = max(slowest, time.monotonic() - begun)
                tally.count(status in wanted, f"{what}: {status}")
        tally.require(not service.runs(), "a run was made")
        tally.require_within(slowest, C14_SECONDS, "refusing")
        grown = service.usage().memory_bytes >> 20
    tally.figure = f"{len(cases)} kinds refused within {1000 * slowest:.0f} ms; memory {grown} MiB"
    return tally


def _posting(content: bytes | str) -> Callable[[Plane], int]:
    def post(service: Plane) -> int:
        answer = service.client.post(
            "/runs", content=content, headers={"content-type": "application/json"}
        )
        kind = answer.headers["content-type"]
        return answer.status_code if kind == "application/problem+json" else -answer.status_code

    return post


def _raw(service: Plane, *, announced: int = 0, chunked: bool = False, header: int = 0) -> int:
    """Returns the status of a request that is written by hand."""
    host, _, port = service.address.rpartition(":")
    head = f"POST /runs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    if chunked:
        head += "Transfer-Encoding: chunked\r\n"
    for name, value in service.headers.items():
        head += f"{name}: {value}\r\n"
    if announced:
        head += f"Content-Length: {announced}\r\n"
    if header:
        head += f"X-Long: {'x' * header}\r\n"
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(head.encode() + b"\r\n")
            piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            for _ in range(64 if chunked else 0):
                connection.sendall(piece)
        except OSError:  # it has answered, and reads no more
            pass
        try:
            return int(connection.recv(1000).split(b" ")[1])
        except (OSError, IndexError):
            return 0


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text[:500].encode(errors="replace"), safe="") or "x"


_PATHS = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "a/../../..", "a/b/../../../../x", "~root",
    "$HOME", "\u0000", "a\nb", "file:///etc/passwd", "\\\\host\\share", "data/../../secrets/x",
    "%2e%2e/%2e%2e", "link/secret",
)  # fmt: skip


def path_tricks(stage: Stage) -> Tally:
    """C15: path tricks in every string field of a spec, and in ids and keys."""
    tally, home = Tally(), new_home(stage)
    outside = stage.new_folder()
    shutil.copytree(home.roots.models / "student", outside / "secret")
    for root in (home.roots.models, home.roots.data, home.roots.secrets):
        root.mkdir(exist_ok=True)
        (root / "link").symlink_to(outside)
    before = sorted(path.name for path in outside.rglob("*"))
    with plane(stage, home, "--max-running-runs", "1") as service:
        kept = service.create("kept")
        fields = list(_string_fields(service.client.get("/openapi.json").json()))
        first = ("student", "init")  # whose symbolic link leads to a real student outside
        others = [field for field in fields if field != first]
        for section, name in (first, *others[:: stage.tries(1, 4)]):
            stage.say(f"{section}.{name}")
            for path in _PATHS:
                body = _with(section, name, path)
                answer = service.client.post("/runs", json=body)
                told = f"{section}.{name}={path!r}: {answer.status_code}"
                if (section, name) == ("", "notes"):  # whatever a person writes
                    tally.count(answer.status_code == 202, told)
                    _delete(service, answer.json()["id"])
                    continue
                # The name of a teacher's model is no path; here no teacher is there to refuse it.
                wanted = {422, 502} if (section, name) == ("teacher", "model") else {422}
                tally.count(answer.status_code in wanted and bool(answer.json()["reason"]), told)
        for path in set(_PATHS) - {"..", "."}:  # those never leave the client
            for route in ("", "/logs", "/metrics", "/spec"):
                answer = service.client.get(f"/runs/{_quoted(path)}{route}")
                tally.count(answer.status_code in (404, 405, 422), f"id {path!r}: {answer}")
        runs = {run["id"] for run in service.runs()}
        tally.require(runs == {kept}, f"there are the runs {sorted(runs)}")
    after = sorted(path.name for path in outside.rglob("*"))
    tally.require(after == before, f"outside there are now {after}")
    below = {path.name for path in home.path.iterdir()} - {"secrets", "data", "cache", "backups"}
    tally.require(below == {"models", "teacher", "runs"}, f"in the home there are {below}")
    tally.figure = (
        f"{len(_PATHS)} tricks in {len(fields)} fields and 4 routes: each refused by field"
    )
    return tally


def _delete(service: Plane, run_id: str) -> None:
    service.post(f"/runs/{run_id}/stop")
    service.wait_for_state(run_id, "stopped")
    service.client.delete(f"/runs/{run_id}").raise_for_status()


def _string_fields(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (section, name) of every free text of a RunSpec; the section is "" at the top."""
    models = schema["components"]["schemas"]

    def of(model: dict[str, Any], section: str) -> Iterator[tuple[str, str]]:
        for name, field in model["properties"].items():
            kinds = [field, *field.get("anyOf", []), *field.get("allOf", [])]
            for kind in kinds:
                if "$ref" in kind and not section:
                    yield from of(models[kind["$ref"].rpartition("/")[2]], name)
                if kind.get("type") == "string" and "enum" not in kind and "const" not in kind:
                    yield section, name

    yield from of(models["RunSpec"], "")


def _with(section: str, name: str, value: str) -> dict[str, Any]:
    """Returns a spec with a text in one field, and what that field needs beside it."""
    if not section:
        return {**body_of(), name: value}
    body = body_of()
    if section == "teacher":
        beside = {"address": "127.0.0.1:1", name: value}
        return {**body, "teacher": beside, "objective": {"alpha": 0.5}}
    if section == "student" and name in ("init", "config"):
        return {**body, "student": {name: value}}
    if section == "data":
        return {**body, "data": {"kind": "shards", "path": "none", "seq_len": 32, name: value}}
    return {**body, section: {**body.get(section, {}), name: value}}


def other_sites(stage: Stage) -> Tally:
    """C16: foreign Host and Origin headers, and forms that another site's page can send."""
    tally, home = Tally(), new_home(stage)
    good, form = json.dumps(body_of("steady", 5)), "application/x-www-form-urlencoded"
    with plane(stage, home) as service:
        own = service.address
        kept = service.create("kept")
        hosts = ("evil.example", f"evil.example:{own.rpartition(':')[2]}", "127.0.0.1.evil.example")
        odd = ("", "localhost.", "[::2]", "127.0.0.1@evil.example", "2130706433")
        for host in (*hosts, *odd):
            for path in ("/runs", "/healthz", "/", f"/runs/{kept}/events"):
                status = _status(service, "GET", path, host=host)
                tally.count(status == 400, f"Host {host!r} {path}: {status}")
        origins = (
            "http://evil.example",
            "null",
            f"https://{own}.evil.example",
            "http://localhost:1",
        )
        broken = ("http://[", "http://[::1", "//", "http://a@b:c", "http://\xe9")
        for origin in (*origins, *broken):
            status = _status(service, "POST", f"/runs/{kept}/stop", origin=origin)
            tally.count(status == 403, f"Origin {origin!r}: {status}")
        for site in ("cross-site", "same-site"):
            status = _status(service, "POST", f"/runs/{kept}/stop", **{"sec-fetch-site": site})
            tally.count(status == 403, f"Sec-Fetch-Site {site}: {status}")
        for kind in (form, "text/plain", "multipart/form-data; boundary=x", ""):
            status = _status(service, "POST", "/runs", good, **{"content-type": kind})
            tally.count(status in (403, 415), f"a form of {kind!r}: {status}")
        run = service.run(kept)
        tally.require(run["wanted"] == "running", "a request from another site stopped a run")
        tally.require(len(service.runs()) == 1, "a request from another site made a run")
        own_page = service.client.post(f"/runs/{kept}/stop", headers={"origin": f"http://{own}"})
        tally.count(own_page.status_code == 202, f"our own page: {own_page.status_code}")
    tally.figure = "all refused, without effect; our own page is let in"
    return tally


def _status(
    service: Plane, method: str, path: str, content: str | None = None, **headers: str
) -> int:
    """Returns the status of an answer; 0 if the connection is closed without one."""
    sent = {**service.headers, **headers}
    with httpx.Client(base_url=service.client.base_url, trust_env=False) as client:
        try:
            as_bytes = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
            return client.request(method, path, content=content, headers=as_bytes).status_code
        except httpx.TransportError:
            return 0
