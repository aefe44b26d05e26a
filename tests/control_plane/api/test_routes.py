"""The REST interface over a control plane whose trainers the test drives."""

import asyncio
import gc
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import yaml

from control_plane.api.requests import with_changes
from control_plane.plane import LOCK_NAME
from control_plane.reading.feed import MAX_STREAMS
from control_plane.runs.search import FoundRuns, Search
from control_plane.runs.store import DATABASE_NAME
from lectern_common.json_lines import append_json_line
from lectern_common.spec.load import parse_spec
from tests.control_plane.conftest import serving, spec_body, wait_for
from tests.support.training.shards import write_shards


def create(client, name: str = "steady", **sections) -> dict:
    response = client.post("/runs", json=spec_body(name, **sections))
    assert response.status_code == 202, response.text
    run: dict = response.json()
    return run


def state_of(client, run_id: str) -> str:
    return str(client.get(f"/runs/{run_id}").json()["state"])


def started(client, processes, **body) -> dict:
    run = create(client, **body)
    wait_for(lambda: any(process.folder.run_id == run["id"] for process in processes.started))
    processes.last(run["id"]).say("running", step=1)
    wait_for(lambda: state_of(client, run["id"]) == "running")
    return run


def stopped(client, processes, **body) -> dict:
    run = started(client, processes, **body)
    client.post(f"/runs/{run['id']}/stop")
    wait_for(lambda: processes.last(run["id"]).terminated)
    processes.last(run["id"]).say("stopped", step=4, checkpoint_step=4)
    processes.last(run["id"]).end(0)
    wait_for(lambda: state_of(client, run["id"]) == "stopped")
    return run


def problem_of(response, status: int, reason: str) -> dict:
    """Returns the body of a response, which must be the expected problem."""
    assert response.headers["content-type"] == "application/problem+json"
    body: dict = response.json()
    assert set(body) == {"type", "title", "status", "detail", "reason", "retryable", "errors"}
    assert (response.status_code, body["status"], body["reason"]) == (status, status, reason)
    assert body["detail"]
    return body


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """Yields a client and its plane, shared by tests whose requests are all refused."""
    with serving(tmp_path_factory.mktemp("refusing")) as shared:
        yield shared


# ---- POST /runs ----------------------------------------------------------------------------------


def test_a_run_is_accepted_with_its_location(client):
    response = client.post("/runs", json=spec_body())
    run = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/runs/{run['id']}"
    assert (run["state"], run["wanted"], run["step"], run["steps"]) == ("queued", "running", 0, 20)
    assert client.get(response.headers["location"]).json()["id"] == run["id"]


def test_a_run_shows_what_its_data_decides(client, plane):
    def resolved(**data: Any) -> dict[str, Any]:
        body = spec_body(data={"seq_len": 8, **data})
        run = client.post("/runs", json=body).json()
        shown: dict[str, Any] = client.get(f"/runs/{run['id']}").json()["spec"]["data"]
        return {name: shown[name] for name in ("attention_across_documents", "long_chats")}

    ids = np.arange(400) % 90
    write_shards(plane.roots.data / "text", ids)
    write_shards(plane.roots.data / "chats", ids, mask=ids < 50, documents=range(0, 400, 5))
    of_chats = {"attention_across_documents": False, "long_chats": "cut"}
    assert resolved(path="chats") == of_chats
    assert resolved(path="chats", long_chats="drop") == {**of_chats, "long_chats": "drop"}
    of_text = {"attention_across_documents": True, "long_chats": None}
    assert resolved(path="text") == of_text
    assert resolved(path="text", validation_path="chats") == {**of_text, "long_chats": "cut"}
    assert resolved(kind="synthetic") == of_text


def test_a_key_used_64_times_at_once_makes_one_run(client, plane):
    def post(_):
        return client.post("/runs", json=spec_body(), headers={"Idempotency-Key": "once"})

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(post, range(64)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(plane.runs.search(Search(), None, 10).runs) == 1


def test_a_key_compares_specs_and_not_their_spelling(client):
    key = {"Idempotency-Key": "k"}
    first = client.post("/runs", json=spec_body(), headers=key).json()
    full = parse_spec(spec_body()).model_dump(mode="json")
    assert client.post("/runs", json=full, headers=key).json()["id"] == first["id"]
    other = client.post("/runs", json=spec_body(steps=21), headers=key)
    body = problem_of(other, 422, "invalid_request")
    assert first["id"] in body["detail"]
    assert body["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["", "a b", "x" * 201])
def test_an_invalid_key_is_refused(refusing, key):
    client, _ = refusing
    response = client.post("/runs", json=spec_body(), headers={"Idempotency-Key": key})
    problem_of(response, 422, "invalid_request")


def left_behind(plane) -> list[str]:
    known = {DATABASE_NAME, LOCK_NAME}
    known |= {f"{DATABASE_NAME}{end}" for end in ("-wal", "-shm", ".reserve")}
    return [path.name for path in plane.roots.runs.iterdir() if path.name not in known]


BAD_SPECS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a misspelt field": ({"objectiv": {}}, "objectiv", "did you mean objective?"),
    "a misspelt field below": (
        {"schedule": {"step": 3}},
        "schedule.step",
        "did you mean steps?",
    ),
    "temperature 0": (
        {"objective": {"alpha": 1, "temperature": 0}},
        "objective.temperature",
        "expected more than 0, got 0",
    ),
    "no teacher": ({"objective": {"alpha": 0.5}}, "teacher", "teacher is required"),
    "programs outside the sandbox": (
        {"evaluation": {"suites": ["code"], "code": {"sandbox": False}}},
        "evaluation.code.sandbox",
        "only for the command line of their own machine",
    ),
    "a missing data folder": (
        {"data": {"path": "nowhere"}},
        "data.path",
        "no dataset 'nowhere'",
    ),
    "a missing student": (
        {"student": {"config": "nobody"}},
        "student.config",
        "no model folder 'nobody'",
    ),
    "a number as text": ({"seed": "one"}, "seed", "integer"),
    "a list as section": ({"schedule": []}, "schedule", "expected a mapping"),
    "a path upwards": ({"data": {"path": "../x"}}, "data.path", "inside its root"),
    "a path from the root": ({"student": {"config": "/etc"}}, "student.config", "inside"),
    "a path with a nul": ({"data": {"path": "a\0b"}}, "data.path", "control characters"),
    "a path with a backslash": ({"data": {"path": "a\\..\\b"}}, "data.path", "inside"),
    "a data path that is too long": ({"data": {"path": "x" * 300}}, "data.path", "255 bytes"),
    "a student path that is too long": (
        {"student": {"config": "x" * 300}},
        "student.config",
        "255 bytes",
    ),
    "a name with a slash": ({"name": "../a"}, "name", "lower-case letters"),
    "a name with capitals": ({"name": "Coder"}, "name", "lower-case letters"),
    "cuda without a gpu": ({"device": {"kind": "cuda"}}, "device.kind", "no CUDA device"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_spec_that_cannot_work_is_refused_and_leaves_nothing(refusing, case):
    client, plane = refusing
    changes, field, said = BAD_SPECS[case]
    response = client.post("/runs", json={**spec_body(), **changes})
    body = problem_of(response, 422, "invalid_spec")
    [entry] = [entry for entry in body["errors"] if entry["field"] == field]
    assert said in entry["message"]
    assert plane.runs.search(Search(), None, 10) == FoundRuns([], 0, 0)
    assert left_behind(plane) == []


def test_a_path_through_a_link_out_of_the_root_is_refused(client, plane, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "config.json").write_text('{"vocab_size": 300}')
    (plane.roots.models / "link").symlink_to(outside)
    response = client.post("/runs", json=spec_body(student={"config": "link"}))
    body = problem_of(response, 422, "invalid_request")
    assert body["errors"][0]["field"] == "student.config"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", '"nan"', "1e999"])
def test_a_number_that_is_not_finite_is_refused(refusing, number):
    client, _ = refusing
    text = json.dumps(spec_body(optimizer={"learning_rate": 12345.5}))
    text = text.replace("12345.5", number)
    response = client.post("/runs", content=text, headers={"content-type": "application/json"})
    body = problem_of(response, 422, "invalid_spec")
    assert body["errors"][0]["field"] == "optimizer.learning_rate"


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"",
        b'{"name": "a", "name": "b"}',
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
        b"9" * 5000,
    ],
)
def test_a_body_that_is_not_json_is_refused(refusing, text):
    client, _ = refusing
    response = client.post("/runs", content=text, headers={"content-type": "application/json"})
    problem_of(response, 400, "bad_request")


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b'"spec"'])
def test_a_body_that_is_not_an_object_is_refused(refusing, text):
    client, _ = refusing
    response = client.post("/runs", content=text, headers={"content-type": "application/json"})
    problem_of(response, 422, "invalid_request")


# ---- lists and single runs -----------------------------------------------------------------------


def test_pages_continue_where_the_last_one_ended(client):
    made = [create(client, f"run-{number}")["id"] for number in range(5)]
    found, cursor = [], None
    while True:
        params = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
        page = client.get("/runs", params=params).json()
        found += [run["id"] for run in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == made[::-1]


def test_a_list_can_be_filtered_by_state(client, processes):
    run = stopped(client, processes)
    create(client, "other")
    page = client.get("/runs", params={"state": ["stopped", "failed"]}).json()
    assert [entry["id"] for entry in page["runs"]] == [run["id"]]
    response = client.get("/runs", params={"state": "sleeping"})
    assert problem_of(response, 422, "invalid_request")["errors"][0]["field"] == "state.0"


def test_queued_runs_show_their_position(client, plane):
    runs = [create(client, f"run-{number}") for number in range(4)]

    def listed():
        return client.get("/runs").json()["runs"]

    wait_for(lambda: [run["queue_position"] for run in listed()] == [2, 1, None, None])
    wait_for(lambda: runs[1]["id"] in (listed()[0]["message"] or ""))
    page = listed()
    said = f"at most 2 runs train at once; waits until one of these ends: {runs[0]['id']}, {{}}"
    for shown in (page[0], client.get(f"/runs/{runs[3]['id']}").json()):
        assert shown["message"] == said.format(runs[1]["id"])
    assert page[3]["message"] is None


def test_a_run_shows_its_trainers_status(client, processes):
    run = started(client, processes)
    processes.last().say(
        "running",
        step=7,
        checkpoint_step=5,
        device="cpu",
        tokens_per_second=1000.0,
        teacher_wait_share=0.1,
        latest={"loss/val": 3.5, "loss/ce": None},
    )
    shown = wait_for(
        lambda: (found := client.get(f"/runs/{run['id']}").json())["step"] == 7 and found
    )
    assert shown["latest"] == {"loss/val": 3.5, "loss/ce": None}
    assert (shown["device"], shown["checkpoint_step"]) == ("cpu", 5)
    assert (shown["tokens_per_second"], shown["teacher_wait_share"]) == (1000.0, 0.1)
    assert shown["spec"]["schedule"]["steps"] == 20
    assert [entry["state"] for entry in shown["history"]] == ["queued", "starting", "running"]


def test_a_run_that_does_not_train_has_no_speed_and_counts_are_integers(client, processes):
    run = started(client, processes)
    status = {"tokens_per_second": 1000.0, "latest": {"loss/val": 3.0, "loss/val_step": 40}}
    processes.last().say("running", step=41, **status)
    shown = wait_for(
        lambda: (found := client.get(f"/runs/{run['id']}").json())["step"] == 41 and found
    )
    assert shown["tokens_per_second"] == 1000.0
    assert [type(value) for value in shown["latest"].values()] == [float, int]
    processes.last().say("failed", reason="diverged", step=41, **status)
    processes.last().end(1)
    wait_for(lambda: state_of(client, run["id"]) == "failed")
    shown = client.get(f"/runs/{run['id']}").json()
    assert shown["tokens_per_second"] is None
    assert shown["latest"] == {"loss/val": 3.0, "loss/val_step": 40}
    other = started(client, processes, name="other")
    processes.last(other["id"]).say("running", step=2, tokens_per_second=5.0)
    wait_for(lambda: client.get(f"/runs/{other['id']}").json()["tokens_per_second"] == 5.0)
    page = client.get("/runs", params={"sort": "-tokens_per_second"}).json()["runs"]
    assert [one["tokens_per_second"] for one in page] == [5.0, None]


def test_a_silent_trainer_is_shown_as_stale(client, plane, processes):
    run = started(client, processes)
    seconds = [0.0]
    plane.conditions._hearts._monotonic = lambda: time.monotonic() + seconds[0]
    before = client.get(f"/runs/{run['id']}").json()
    assert before["stale_since"] is None
    seconds[0] = 3600.0
    shown = wait_for(
        lambda: (found := client.get(f"/runs/{run['id']}").json())["stale_since"] and found
    )
    assert shown["stale_since"] == shown["heartbeat"]
    assert shown["state"] == "running"
    assert shown["revision"] > before["revision"]


@pytest.mark.parametrize("path", ["", "/metrics", "/logs", "/spec", "/events"])
def test_an_unknown_run_is_not_found(refusing, path):
    client, _ = refusing
    problem_of(client.get(f"/runs/nobody-123{path}"), 404, "not_found")


@pytest.mark.parametrize("run_id", ["..%2f", "A", "a_b", "%2e%2e%2fetc", "a" * 64, "-a", "a%00"])
@pytest.mark.parametrize("path", ["", "/logs", "/stop"])
def test_an_invalid_id_touches_nothing(refusing, run_id, path):
    client, _ = refusing
    method = "POST" if path == "/stop" else "GET"
    response = client.request(method, f"/runs/{run_id}{path}")
    assert response.status_code in (404, 422)
    assert response.headers["content-type"] == "application/problem+json"


# ---- stop and resume -----------------------------------------------------------------------------


def test_a_stop_is_accepted_once_or_twice(client, processes):
    run = started(client, processes)
    for _ in range(3):
        response = client.post(f"/runs/{run['id']}/stop")
        assert (response.status_code, response.json()["state"]) == (202, "stopping")
    wait_for(lambda: processes.last().terminated)
    assert processes.last().terminated == 1


def test_resuming_a_run_that_stops_is_a_conflict(client, processes):
    run = started(client, processes)
    client.post(f"/runs/{run['id']}/stop")
    body = problem_of(client.post(f"/runs/{run['id']}/resume"), 409, "conflict")
    assert "is stopping" in body["detail"]


def test_stopping_a_run_that_has_ended_is_a_conflict(client, processes):
    run = started(client, processes)
    processes.last().say("succeeded")
    processes.last().end(0)
    wait_for(lambda: state_of(client, run["id"]) == "succeeded")
    body = problem_of(client.post(f"/runs/{run['id']}/stop"), 409, "conflict")
    assert "succeeded" in body["detail"]
    problem_of(client.post(f"/runs/{run['id']}/resume"), 409, "conflict")


def test_a_stopped_run_resumes_with_the_requested_changes(client, processes):
    run = stopped(client, processes)
    response = client.post(f"/runs/{run['id']}/resume", json={"schedule": {"steps": 50}})
    assert (response.status_code, response.json()["steps"]) == (202, 50)
    wait_for(lambda: len(processes.started) == 2)
    assert processes.resumed == [False, True]
    folder = processes.last().folder
    assert folder.read_spec().schedule.steps == 50


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"seed": 3}, "seed", "was 0, is 3; a resume may not change it"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate", "may not change"),
        ({"schedule": {"stepz": 3}}, "schedule.stepz", "did you mean steps?"),
        ({"schedule": {"steps": 0}}, "schedule.steps", "expected at least 1, got 0"),
        (
            {"schedule": {"steps": 3}},
            "schedule.steps",
            "is 3, but the run has already made 4 steps",
        ),
        ({"device": {"count": 1, "max_restarts": 3}}, "device", "no effect with count 1"),
        ({"teacher": {"address": "127.0.0.1:1"}}, "teacher", "remove it"),
    ],
)
def test_a_resume_refuses_changes_that_it_may_not_make(client, processes, changes, field, said):
    run = stopped(client, processes)
    response = client.post(f"/runs/{run['id']}/resume", json=changes)
    body = problem_of(response, 422, "invalid_spec")
    [entry] = [entry for entry in body["errors"] if entry["field"] == field]
    assert said in entry["message"]
    assert state_of(client, run["id"]) == "stopped"


@pytest.mark.parametrize(
    ("first", "changes", "then"),
    [
        ({"device": {"count": 2}}, {"device": {"count": 1}}, {"device.max_restarts": None}),
        ({"device": {"count": 2}}, {"device": {"count": 4}}, {"device.max_restarts": 3}),
        (
            {"device": {"count": 2, "max_restarts": 7}},
            {"device": {"count": 4}},
            {"device.max_restarts": 7},
        ),
        (
            {"evaluation": {"prompts": ["a"]}},
            {"evaluation": {"prompts": []}},
            {"evaluation.prompt_tokens": None},
        ),
        (
            {"evaluation": {"prompts": ["a"], "prompt_tokens": 9}},
            {"evaluation": {"prompts": ["b"]}},
            {"evaluation.prompt_tokens": 9},
        ),
    ],
)
def test_a_resume_need_not_undo_defaults_that_depend_on_a_field(first, changes, then):
    resumed = with_changes(parse_spec(spec_body(batch={"sequences_per_step": 8}, **first)), changes)
    for dotted, value in then.items():
        section, field = dotted.split(".")
        assert getattr(getattr(resumed, section), field) == value


def test_a_run_that_succeeded_is_extended_only_by_more_steps(client, processes):
    run = started(client, processes)
    processes.last().say("succeeded", step=20, checkpoint_step=20)
    processes.last().end(0)
    wait_for(lambda: state_of(client, run["id"]) == "succeeded")
    assert client.get(f"/runs/{run['id']}").json()["resumable"] is False

    body = problem_of(client.post(f"/runs/{run['id']}/resume"), 409, "conflict")
    detail = "has made all 20 steps; to continue, resume with a higher schedule.steps"
    assert detail in body["detail"]
    fewer = client.post(f"/runs/{run['id']}/resume", json={"schedule": {"steps": 19}})
    assert (
        "is 19, but the run has already made 20 steps"
        in problem_of(fewer, 422, "invalid_spec")["detail"]
    )
    assert len(processes.started) == 1

    more = client.post(f"/runs/{run['id']}/resume", json={"schedule": {"steps": 21}})
    assert (more.status_code, more.json()["steps"]) == (202, 21)
    wait_for(lambda: len(processes.started) == 2)
    assert processes.resumed == [False, True]
    processes.last().say("succeeded", step=21, checkpoint_step=21)
    processes.last().end(0)
    wait_for(lambda: state_of(client, run["id"]) == "succeeded")


def test_a_run_that_stopped_early_resumes_with_another_patience(client, processes):
    run = started(client, processes, evaluation={"patience": 2})
    processes.last().say("succeeded", reason="early_stopped", step=8, checkpoint_step=8)
    processes.last().end(0)
    wait_for(lambda: state_of(client, run["id"]) == "succeeded")

    same = client.post(f"/runs/{run['id']}/resume", json={"schedule": {"steps": 40}})
    said = problem_of(same, 409, "conflict")["detail"]
    assert "its evaluation.patience ran out at step 8" in said
    other = client.post(f"/runs/{run['id']}/resume", json={"evaluation": {"patience": 3}})
    assert (other.status_code, other.json()["steps"]) == (202, 20)


def test_a_run_that_began_before_chats_were_packed_resumes_with_its_rows(client, plane, processes):
    """Cut at the ends of rows, its chats are 124 rows; packed, they would be too few for a step."""
    tokens, parts = [index % 40 for index in range(2000)], [0, 500, 1000, 1500]
    chats: dict[str, Any] = {"documents": parts, "mask": [1] * 2000}
    # The same bytes, read as that release did.
    write_shards(plane.roots.data / "chats", tokens, **chats, content="text")
    data = {"path": "chats", "seq_len": 16, "attention_across_documents": True}
    run = stopped(client, processes, data=data, batch={"sequences_per_step": 8})
    write_shards(plane.roots.data / "chats", tokens, **chats)
    state = plane.roots.runs / run["id"] / "checkpoints/step-00000004/state.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text('{"step": 4, "packs_chats": true}')
    refused = client.post(f"/runs/{run['id']}/resume")
    assert "a step needs 8 rows" in problem_of(refused, 422, "invalid_spec")["detail"]
    state.write_text('{"step": 4}')
    assert client.post(f"/runs/{run['id']}/resume").status_code == 202


def test_two_concurrent_resumes_count_as_one(client, processes):
    run = stopped(client, processes)
    with ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(lambda _: client.post(f"/runs/{run['id']}/resume").status_code, range(8))
        )
    assert sorted(codes) == [202] + [409] * 7


# ---- metrics, logs, spec -------------------------------------------------------------------------


def test_metrics_continue_by_step_and_by_cursor(client, processes):
    run = started(client, processes)
    path = processes.last().folder.metrics_path
    for step in range(10):
        append_json_line(path, {"step": step, "loss/ce": float(step), "loss/val": float("nan")})
    answer = client.get(f"/runs/{run['id']}/metrics").json()
    assert [record["step"] for record in answer["metrics"]] == list(range(10))
    assert answer["metrics"][3]["loss/val"] is None
    assert (answer["rewound"], answer["more"]) == (False, False)
    after = client.get(f"/runs/{run['id']}/metrics", params={"after_step": 7}).json()
    assert [record["step"] for record in after["metrics"]] == [8, 9]
    append_json_line(path, {"step": 10, "loss/ce": 10.0})
    cursor = {"cursor": answer["cursor"], "keys": "loss/ce"}
    more = client.get(f"/runs/{run['id']}/metrics", params=cursor).json()
    assert more["metrics"] == [{"step": 10, "loss/ce": 10.0}]


def test_chart_data_is_small_however_long_the_run(client, processes):
    run = started(client, processes)
    with processes.last().folder.metrics_path.open("w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "loss/ce": 1.5, "time/step": 0.123456789}) + "\n")
    params = {"max_points": 500, "keys": "loss/ce"}
    response = client.get(f"/runs/{run['id']}/metrics", params=params)
    assert len(response.content) < 50_000
    records = response.json()["metrics"]
    assert (records[0]["step"], records[-1]["step"]) == (0, 19_999)
    assert len(records) <= 502


@pytest.mark.parametrize(
    "params", [{"after_step": -2}, {"max_points": 1}, {"max_points": 10**9}, {"cursor": "x"}]
)
def test_metric_queries_are_checked(client, processes, params):
    run = create(client)
    problem_of(client.get(f"/runs/{run['id']}/metrics", params=params), 422, "invalid_request")


def test_logs_are_plain_text_without_escapes(client, processes):
    run = started(client, processes)
    processes.last().folder.log_path.write_bytes(b"one\n\x1b[31m<b>two</b>\x1b[0m\nthree\n")
    response = client.get(f"/runs/{run['id']}/logs", params={"tail": 2})
    assert response.text == "<b>two</b>\nthree\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_samples_are_the_newest_in_order_without_invalid_lines(client, processes):
    run = started(client, processes)
    address, path = f"/runs/{run['id']}/samples", processes.last().folder.samples_path
    assert client.get(address).json() == {"run_id": run["id"], "samples": []}
    lines = [
        {"step": step, "prompt": "def", "student": f"<b>{step}</b>\x1b[31m", "teacher": teacher}
        for step, teacher in ((0, None), (5, "text"), (10, "text"))
    ]
    for line in lines:
        append_json_line(path, line)
    with path.open("ab") as file:
        file.write(b'garbage\n[1]\n{"step": "x"}\n{"step": 15, "prompt": "torn')
    lines[0]["teacher"] = "text"  # it says the same at every step
    assert client.get(address).json()["samples"] == lines
    assert client.get(address, params={"limit": 1}).json()["samples"] == lines[2:]
    assert client.get(address, params={"limit": 0}).status_code == 422
    problem_of(client.get("/runs/no-such-run/samples"), 404, "not_found")


def test_samples_of_a_long_file_are_read_from_its_end(client, processes):
    run = started(client, processes)
    path = processes.last().folder.samples_path
    line = {"step": 1, "prompt": "p" * 4096, "student": "\ud800" * 4096, "teacher": None}
    for step in range(60):
        append_json_line(path, {**line, "step": step})
    assert path.stat().st_size > 1 << 20
    samples = client.get(f"/runs/{run['id']}/samples", params={"limit": 1000}).json()["samples"]
    assert 20 < len(samples) < 60
    assert [sample["step"] for sample in samples] == list(range(60 - len(samples), 60))
    assert samples[0]["student"] == "?" * 4096


def test_rollouts_are_the_newest_or_those_before_a_step(client, processes):
    run = started(client, processes)
    address, path = f"/runs/{run['id']}/rollouts", processes.last().folder.rollouts_path
    nothing = {"run_id": run["id"], "rollouts": [], "more": False}
    assert client.get(address).json() == nothing
    line = {"row": 0, "sample": 0, "prompt": "a", "prompt_ids": [1], "ids": [2], "end": None}
    line |= {"text": "<b>\x1b[31m", "tokens": ["<b>\x1b[31m"], "kl": [0.5], "mean_kl": 0.5}
    lines = [{"step": step, **line} for step in (1, 4, 9)]
    for each in lines:
        append_json_line(path, each)
    assert client.get(address).json() == {**nothing, "rollouts": lines}
    last = {**nothing, "rollouts": lines[2:], "more": True}
    assert client.get(address, params={"limit": 1}).json() == last
    before = client.get(address, params={"before_step": 9}).json()
    assert before == {**nothing, "rollouts": lines[:2]}
    for wrong in ({"limit": 0}, {"limit": 1001}, {"before_step": -1}):
        assert client.get(address, params=wrong).status_code == 422
    problem_of(client.get("/runs/no-such-run/rollouts"), 404, "not_found")


def test_the_spec_is_yaml_with_every_default(client):
    run = create(client)
    text = client.get(f"/runs/{run['id']}/spec").text
    assert parse_spec(yaml.safe_load(text)) == parse_spec(spec_body())


def test_a_stream_beyond_the_limit_is_refused_before_it_opens(client, plane):
    run = create(client)
    plane.feed.streams = MAX_STREAMS
    for path in ("/events", f"/runs/{run['id']}/events"):
        response = client.get(path)
        problem_of(response, 503, "overloaded")
        assert response.headers["retry-after"] == "1"
    assert plane.feed.streams == MAX_STREAMS
    assert not plane.feed._run_feeds
    plane.feed.streams = 0


def test_a_history_is_paged_from_its_end(client, processes):
    run = started(client, processes)
    folder = processes.last().folder
    for step in range(5):
        folder.append_event("checkpoint", step=step)
    address = f"/runs/{run['id']}/history"
    pages: list[list[dict[str, Any]]] = []
    cursor = None
    while cursor is not None or not pages:
        page = client.get(address, params={"limit": 3, **({"cursor": cursor} if cursor else {})})
        pages.append(page.json()["entries"])
        cursor = page.json()["next_cursor"]
    entries = [entry for page in pages for entry in page]
    assert [len(page) for page in pages] == [3, 3, 2]
    assert entries == client.get(f"/runs/{run['id']}").json()["history"][::-1]
    states = client.get(address, params={"kind": "state"}).json()
    assert [entry["state"] for entry in states["entries"]] == ["running", "starting", "queued"]
    assert states["next_cursor"] is None
    for params in ({"cursor": "x"}, {"limit": 0}, {"limit": 201}):
        problem_of(client.get(address, params=params), 422, "invalid_request")
    problem_of(client.get("/runs/no-such-run/history"), 404, "not_found")


# ---- the rest ------------------------------------------------------------------------------------


def test_datasets_and_models_are_listed(client, plane):
    models = client.get("/models").json()["models"]
    assert [(model["path"], model["vocab_size"], model["has_weights"]) for model in models] == [
        ("tiny", 300, False)
    ]
    assert client.get("/datasets").json() == {"datasets": []}
    assert client.get("/records").json() == {"records": []}


def test_health_and_readiness(client, plane):
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "max_running_runs": 2, "cuda_devices": 0}
    plane.feed.closed = True
    response = client.get("/readyz")
    assert problem_of(response, 503, "not_ready")["errors"][0]["field"] == "stopping"
    assert response.headers["retry-after"] == "1"


def test_the_interface_describes_itself(client):
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/runs"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/RunSpec"}
    spec_schema = schema["components"]["schemas"]["RunSpec"]
    assert spec_schema["required"] == ["name", "student", "data"]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert "422" in operation["responses"], (method, path)
            code, good = next(pair for pair in operation["responses"].items() if pair[0][0] == "2")
            assert good.get("content") or code == "204", (method, path)


def test_an_unknown_path_or_method_is_a_problem(client):
    body = problem_of(client.get("/nothing"), 404, "not_found")
    assert body["detail"] == "there is nothing at /nothing"
    problem_of(client.delete("/runs"), 405, "method_not_allowed")


def test_a_locked_database_is_reported_as_retryable(client, plane):
    def locked():
        # None but the holder may be connected, not even one that came back to a pool that was
        # disposed of while it was lent: such a pool closes it when it is collected.
        plane.store._engine.dispose()
        gc.collect()
        holder = sqlite3.connect(plane.store.path, isolation_level=None, timeout=0)
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            holder.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            holder.close()  # one that met another connection shares the database for good
            return None
        return holder

    holder = wait_for(locked)
    try:
        response = asyncio.run(_quickly(client))
        problem_of(response, 503, "database_unavailable")
        assert response.headers["retry-after"]
    finally:
        holder.close()
    assert client.get("/runs").status_code == 200


async def _quickly(client):
    return await asyncio.to_thread(client.post, "/runs/nobody/stop")
