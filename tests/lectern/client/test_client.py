"""The client, against answers that follow the control plane's contract."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lectern.client import Client, ControlPlaneUnavailable
from lectern_common import errors
from lectern_common.errors import InvalidRequest, InvalidSpec, LecternError
from lectern_common.run.status import RunState
from lectern_common.spec.load import parse_spec

SPEC = parse_spec(
    {
        "name": "run",
        "student": {"config": "tiny"},
        "data": {"kind": "synthetic"},
        "objective": {"alpha": 1},
    }
)


def run_json(run_id: str = "run-1", **changes: Any) -> dict[str, Any]:
    return {"id": run_id, "name": "run", "state": "running", "step": 3, "steps": 9, **changes}


def service(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Client:
    return Client("http://lectern", transport=httpx.MockTransport(answer), **options)


def always(status: int, body: Any = None, **options: Any) -> Client:
    return service(lambda request: httpx.Response(status, json=body), **options)


def problem(status: int, reason: str, detail: str = "why", **more: Any) -> Client:
    body = {"type": "about:blank", "title": "t", "status": status, "detail": detail}
    return always(status, {**body, "reason": reason, **more})


def test_creating_sends_the_resolved_spec_with_a_fresh_idempotency_key():
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json=run_json(), headers={"location": "/runs/run-1"})

    with service(answer, token="s3cret") as client:
        run = client.create_run(SPEC)
        client.create_run(SPEC)
        client.create_run(SPEC, idempotency_key="mine")

    assert (run.id, run.state, run.step, run.steps) == ("run-1", RunState.RUNNING, 3, 9)
    assert seen[0].method == "POST" and seen[0].url.path == "/runs"
    assert parse_spec(json.loads(seen[0].content)) == SPEC
    assert seen[0].headers["authorization"] == "Bearer s3cret"
    keys = [request.headers["idempotency-key"] for request in seen]
    assert keys[0] != keys[1] and keys[2] == "mine"


def test_listing_runs_reads_every_page():
    pages = {
        None: {"runs": [run_json("c"), run_json("b")], "next_cursor": "2"},
        "2": {"runs": [run_json("a")], "next_cursor": None},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=pages[request.url.params.get("cursor")])

    assert [run.id for run in service(answer).list_runs()] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("topk", "no run topk; did you mean topk-yxgk7t or topk-abcdef?"),
        ("topk-yxgk7x", "no run topk-yxgk7x; did you mean topk-yxgk7t?"),
        ("other", "no run other"),
    ],
)
def test_an_unknown_run_is_reported_with_similar_ids(asked: str, said: str):
    ids = {"topk-yxgk7t": "topk", "dense-qqqqqq": "dense", "topk-abcdef": "topk"}
    runs = [run_json(run_id, name=name) for run_id, name in ids.items()]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/runs":
            return httpx.Response(200, json={"runs": runs, "next_cursor": None})
        return httpx.Response(404, json={"reason": "not_found", "detail": f"no run {asked}"})

    for ask in (Client.get_run, Client.stop_run, Client.logs):
        with pytest.raises(errors.NotFound) as missing:
            ask(service(answer), asked)
        assert str(missing.value) == said


@pytest.mark.parametrize("ask", [Client.sweep, Client.stop_sweep, Client.delete_sweep])
def test_an_unknown_sweep_is_reported_with_similar_ids(ask):
    sweep = {"id": "rates-vx5mxu", "name": "rates"}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/sweeps":
            return httpx.Response(200, json={"sweeps": [sweep], "next_cursor": None})
        return httpx.Response(404, json={"reason": "not_found", "detail": "no sweep rates"})

    with pytest.raises(errors.NotFound, match=r"^no sweep rates; did you mean rates-vx5mxu\?$"):
        ask(service(answer), "rates")


def test_field_problems_come_back_field_by_field():
    fields = [{"field": "a.b", "message": "no"}, {"field": "c", "message": "neither"}]

    with pytest.raises(InvalidSpec) as caught:
        problem(422, "invalid_spec", errors=fields).create_run(SPEC)
    assert caught.value.problems == [("a.b", "no"), ("c", "neither")]
    with pytest.raises(InvalidSpec, match=r"a\.b: no"):
        problem(422, "invalid_request", errors=fields[:1]).create_run(SPEC)


def test_an_unknown_reason_of_a_newer_server_keeps_its_message():
    with pytest.raises(LecternError, match="why") as caught:
        problem(418, "teapot").get_run("run-1")
    assert (caught.value.reason, caught.value.exit_code) == ("teapot", 1)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.Response(404, json={"detail": "Not Found"}),
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"id": "run-1"}),
        httpx.Response(200, json=run_json(state="dreaming")),
    ],
)
def test_an_answer_that_is_not_a_control_planes_is_refused(response):
    with pytest.raises(ControlPlaneUnavailable):
        service(lambda request: response).get_run("run-1")


def test_teachers_and_samples_are_parsed():
    teacher = {"address": "127.0.0.1:1", "reachable": True, "configured": False, "model": "big"}
    sample = {"step": 4, "prompt": "def", "student": " f", "teacher": None}

    [seen] = always(200, {"teachers": [teacher]}).teachers()
    [written] = always(200, {"samples": [sample]}).samples("run-1")

    assert (seen.address, seen.reachable, seen.model) == ("127.0.0.1:1", True, "big")
    assert seen.json == teacher and seen.num_parameters is None
    assert (written.step, written.student, written.teacher) == (4, " f", None)
    for ask in (
        lambda: always(200, {"teachers": [{}]}).teachers(),
        lambda: always(200, {"samples": [[]]}).samples("run-1"),
    ):
        with pytest.raises(ControlPlaneUnavailable, match="are both sides up to date"):
            ask()


def sweep_json(**fields):
    run = {
        **{"run_id": "rates-01-abcdef", "state": "interrupted", "step": 1, "steps": 2},
        **{"settings": {"seed": 1}, "value": None, "best": 1.5, "at_step": 1, "note": None},
        **{"resumes": True, "name": "rates-01", "message": "a field of a later release"},
    }
    group = {"settings": {}, "runs": [run["run_id"]], "n": 1, "mean": 1.5, "spread": None}
    sweep = {
        **{"id": "rates-abcdef", "name": "rates", "metric": "loss/val", "goal": "min"},
        **{"settings": ["seed"], "runs": [run], "groups": [{**group, "note": None}]},
        **{"best": run["run_id"], "best_group": 0, "teacher": None},
    }
    return {**sweep, **fields}


def test_a_sweep_is_created_with_a_key_of_its_own_and_read():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, request.headers.get("idempotency-key")))
        return httpx.Response(202, json=sweep_json())

    client, body = service(answer), {"name": "rates", "base": {}, "list": [{}]}
    made = client.create_sweep(body)
    client.create_sweep(body)
    assert client.create_sweep(body, "mine").id == "rates-abcdef"
    client.stop_sweep(made.id)
    assert [one[:2] for one in asked] == [("POST", "/sweeps")] * 3 + [
        ("POST", "/sweeps/rates-abcdef/stop")
    ]
    assert asked[0][2] and asked[0][2] != asked[1][2] and asked[2][2] == "mine"
    assert (made.runs[0].best, made.groups[0].mean, made.runs[0].rests) == (1.5, 1.5, False)
    assert not made.rests


def test_an_answer_that_is_no_sweep_says_so():
    answers = [dict[str, Any](), sweep_json(runs=[{}]), sweep_json(groups=None)]
    for wrong in answers:
        with pytest.raises(ControlPlaneUnavailable, match="does not describe a sweep"):
            always(200, wrong).sweep("rates-abcdef")
    with pytest.raises(ControlPlaneUnavailable, match="does not describe sweeps"):
        always(200, {"sweeps": [{}]}).sweeps()
    with pytest.raises(InvalidRequest, match="is not a sweep id; `lectern sweeps list`"):
        always(200, sweep_json()).sweep("a/b")


def test_without_a_control_plane_the_error_says_what_to_do():
    with pytest.raises(ControlPlaneUnavailable, match="start one with `lectern up`") as caught:
        Client("http://127.0.0.1:1").list_runs()
    assert caught.value.exit_code == 7
    assert not Client("http://127.0.0.1:1").is_ready()


def test_a_request_that_was_sent_is_not_sent_again():
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise httpx.ReadError("cut off", request=request)

    with pytest.raises(ControlPlaneUnavailable, match="cut off"):
        service(answer).create_run(SPEC)
    assert len(calls) == 1


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "a?b", "a#b", "a%2e", "a b", "\n"])
def test_an_invalid_run_id_never_becomes_part_of_a_url(run_id):
    with pytest.raises(InvalidRequest, match="not a run id"):
        always(200, run_json()).stop_run(run_id)


def test_waiting_ends_when_every_run_is_at_rest():
    states = {"a": ["running", "succeeded"], "b": ["queued", "running", "failed"]}

    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix("/runs/")
        left = states[name]
        return httpx.Response(200, json=run_json(name, state=left.pop(0) if left[1:] else left[0]))

    polls: list[int] = []
    runs = service(answer).wait(
        ["a", "b"], poll_seconds=0.0, on_poll=lambda runs: polls.append(len(runs))
    )

    assert [run.state for run in runs] == [RunState.SUCCEEDED, RunState.FAILED]
    assert polls == [2, 2, 2]


def test_waiting_times_out_and_names_the_runs():
    with pytest.raises(TimeoutError, match="run-1 running"):
        always(200, run_json()).wait(["run-1"], timeout_seconds=0.0, poll_seconds=0.0)


def test_a_run_that_resumes_by_itself_is_not_at_rest():
    interrupted = run_json(state="interrupted", resumes_at=5.0)

    assert not always(200, interrupted).get_run("run-1").rests
    assert always(200, {**interrupted, "resumes_at": None}).get_run("run-1").rests


def test_the_client_names_itself_in_plain_letters(monkeypatch):
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["user-agent"])
        return httpx.Response(200, json=run_json())

    def who(user: str, host: str) -> str:
        monkeypatch.setattr("getpass.getuser", lambda: user)
        monkeypatch.setattr("socket.gethostname", lambda: host)
        service(answer).set_labels("run-1", {"priority": 1})
        return seen[-1].partition(" ")[2]

    assert who("ann", "box-1.lab") == "(ann@box-1.lab)"
    assert who("j\xf6rg\n(x)", "\u202ebox;y") == "(j?rg??x?@?box?y)"
    assert seen[0].startswith("lectern/0.")


def test_labels_history_and_filters_are_asked_for_as_the_interface_has_them():
    seen: list[httpx.Request] = []
    pages = [
        {"entries": [{"kind": "state", "at": 3}, {"kind": "state", "at": 2}], "next_cursor": "7."},
        {"entries": [{"kind": "state", "at": 1}], "next_cursor": None},
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path.endswith("/history"):
            return httpx.Response(200, json=pages["cursor" in request.url.params])
        if request.url.path == "/runs":
            return httpx.Response(200, json={"runs": [], "next_cursor": None})
        return httpx.Response(200, json=run_json())

    client = service(answer)
    client.set_labels("run-1", {"group": None})
    assert (seen[-1].method, json.loads(seen[-1].content)) == ("PATCH", {"group": None})
    assert [entry["at"] for entry in client.history("run-1")] == [1, 2, 3]
    assert [entry["at"] for entry in client.history("run-1", 2)] == [2, 3]
    assert [entry["at"] for entry in client.history("run-1", 1)] == [3]
    client.list_runs([RunState.QUEUED], group="g", tags=["a", "b"])
    assert sorted(seen[-1].url.params.multi_items()) == [
        *(("group", "g"), ("limit", "100"), ("state", "queued"), ("tag", "a"), ("tag", "b"))
    ]
