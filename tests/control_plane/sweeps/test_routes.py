"""POST /sweeps makes all of its runs or none; its table, its stop and its end."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from control_plane.plane import ControlPlane, open_plane
from control_plane.runs import creation
from control_plane.runs.search import Search
from control_plane.teachers import checks as start_checks
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.checks import preflight
from lectern_common.errors import TeacherUnavailable
from lectern_common.json_lines import append_json_line
from lectern_common.spec.sweep import MAX_RUNS
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from protos import teacher_pb2
from tests.control_plane.api.test_routes import problem_of, started, state_of, stopped
from tests.control_plane.conftest import make_home, spec_body, wait_for
from tests.control_plane.teachers.test_checks import TOKENS, distilling, write_student
from tests.support.fakes import NOBODY, FakeClock, FakeProcesses, FakeTeacher, serving

RATE = "optimizer.learning_rate"


def sweep_body(name: str = "rates", **fields: Any) -> dict[str, Any]:
    if "grid" not in fields and "list" not in fields:
        fields["grid"] = {RATE: [1e-3, 1e-4], "seed": [0, 1]}
    return {"name": name, "base": spec_body("base"), **fields}


def create(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/sweeps", json=sweep_body(**fields))
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    return made


def runs_of(plane: ControlPlane) -> list[str]:
    found = plane.runs.search(Search(), None, 500).runs
    return [run.name for run in reversed(found)]


def at_rest(client: TestClient, processes: FakeProcesses, **fields: Any) -> dict[str, Any]:
    """Returns a sweep whose runs were all stopped, some before they began."""
    made = create(client, **fields)
    wait_for(lambda: len(processes.started) == 2)
    client.post(f"/sweeps/{made['id']}/stop")
    for run in made["runs"]:
        wait_for(partial(_ended, client, processes, run["run_id"]))
    return made


def log(plane: ControlPlane, run_id: str, losses: Sequence[float | None], every: int = 10) -> None:
    (plane.roots.runs / run_id).mkdir(exist_ok=True)
    for number, loss in enumerate(losses):
        line = {"step": number * every, "loss/val": loss}
        append_json_line(plane.roots.runs / run_id / "metrics.jsonl", line)


def taught(address: str, **fields: Any) -> dict[str, Any]:
    base = {**distilling(address), "name": "base"}
    return {"name": "taught", "base": base, "grid": {RATE: [1e-3, 1e-4]}, **fields}


# ---- POST /sweeps --------------------------------------------------------------------------------


def test_a_sweep_queues_its_runs_in_order(client: TestClient, plane: ControlPlane) -> None:
    response = client.post("/sweeps", json=sweep_body())
    made = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/sweeps/{made['id']}"
    assert client.get(response.headers["location"]).json()["id"] == made["id"]
    assert (made["name"], made["group"], made["num_runs"]) == ("rates", made["id"], 4)
    assert (made["metric"], made["goal"], made["settings"]) == ("loss/val", "min", [RATE, "seed"])
    assert [run["name"] for run in made["runs"]] == [f"rates-0{number}" for number in (1, 2, 3, 4)]
    assert [run["settings"] for run in made["runs"]] == [
        {RATE: rate, "seed": seed} for rate in (1e-3, 1e-4) for seed in (0, 1)
    ]
    assert (made["best"], made["best_group"], made["teacher"]) == (None, None, None)
    assert [group["settings"] for group in made["groups"]] == [{RATE: 1e-3}, {RATE: 1e-4}]
    for run in made["runs"]:
        shown = client.get(f"/runs/{run['run_id']}").json()
        assert shown["spec"]["group"] == made["id"]
        assert shown["spec"]["optimizer"]["learning_rate"] == run["settings"][RATE]
        assert shown["spec"]["data"]["attention_across_documents"] is True
    assert runs_of(plane) == [run["name"] for run in made["runs"]]


def test_its_runs_are_ordinary_runs(client, plane, processes):
    made = create(client, grid={"seed": [0, 1]})
    first = made["runs"][0]["run_id"]
    wait_for(lambda: any(one.folder.run_id == first for one in processes.started))
    processes.last(first).say("running", step=4)
    wait_for(lambda: state_of(client, first) == "running")
    assert client.post(f"/runs/{first}/stop").status_code == 202
    wait_for(lambda: processes.last(first).terminated)
    processes.last(first).say("stopped", step=4, checkpoint_step=4)
    processes.last(first).end(0)
    wait_for(lambda: state_of(client, first) == "stopped")
    shown = client.get(f"/sweeps/{made['id']}").json()["runs"][0]
    assert (shown["state"], shown["step"], shown["steps"]) == ("stopped", 4, 20)
    assert client.post(f"/runs/{first}/resume", json={}).status_code == 202


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"grid": {"optimizer.lr": [1]}}, "grid.optimizer.lr"),
        ({"grid": {RATE: [1e-3, -1]}}, f"grid.{RATE}[1]"),
        ({"list": [{}, {"seed": -1}]}, "list[1].seed"),
        ({"grid": {"student.config": ["tiny", "nothing"]}}, "grid.student.config[1]"),
        ({"base": spec_body(student={"config": "nothing"})}, "base.student.config"),
        ({"base": spec_body(data={"path": "nowhere", "seq_len": 8})}, "base.data.path"),
        ({"grid": {"device.kind": ["cpu", "cuda"]}}, "grid.device.kind[1]"),
        ({"grid": {"data.attention_across_documents": [None, True]}}, None),
        ({"name": "Rates"}, "name"),
        ({"goal": "most"}, "goal"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_and_leaves_nothing(
    client: TestClient, plane: ControlPlane, fields: dict[str, Any], field: str | None
) -> None:
    body = {**sweep_body(), **fields}
    if "list" in fields:
        del body["grid"]
    found = problem_of(client.post("/sweeps", json=body), 422, "invalid_spec")
    if field is not None:
        assert [error["field"] for error in found["errors"]] == [field]
    assert client.post("/sweeps/check", json=body).status_code == (
        200 if str(field).endswith(("config[1]", "base.student.config", "data.path")) else 422
    )
    assert runs_of(plane) == []
    assert client.get("/sweeps").json()["sweeps"] == []


def test_runs_that_the_data_makes_equal_are_refused(client, plane):
    body = sweep_body(grid={"data.attention_across_documents": [None, True], "seed": [0]})
    found = problem_of(client.post("/sweeps", json=body), 422, "invalid_spec")
    name = "grid.data.attention_across_documents"
    assert found["errors"] == [
        {"field": f"{name}[1]", "message": f"makes the same run as {name}[0]; leave one out"}
    ]


def test_a_check_that_fails_for_one_run_names_it(client: TestClient, plane: ControlPlane) -> None:
    with serving(FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS))) as address:
        write_student(plane)
        grid = {"teacher.address": [address, NOBODY]}
        found = problem_of(
            client.post("/sweeps", json=taught(address, grid=grid)), 502, "teacher_unavailable"
        )
        assert f"no teacher at {NOBODY}" in found["detail"]
        assert f"(run 2 of 2: teacher.address {NOBODY})" in found["detail"]
    assert runs_of(plane) == []


def test_a_teacher_that_is_away_is_no_fault_of_one_run(client, plane):
    write_student(plane)
    found = problem_of(client.post("/sweeps", json=taught(NOBODY)), 502, "teacher_unavailable")
    assert "run 1" not in found["detail"]


def test_what_is_equal_for_all_runs_is_checked_once(
    client: TestClient, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_student(plane)
    checked = []
    startable = preflight.require_startable

    def counted(spec: Any, *arguments: Any, **further: Any) -> Any:
        checked.append(spec.name)
        return startable(spec, *arguments, **further)

    monkeypatch.setattr(start_checks, "require_startable", counted)
    with serving(FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS))) as address:
        grid = {
            RATE: [1e-3, 1e-4, 1e-5],
            "seed": list(range(10)),
            "objective.temperature": [1.0, 2.0],
            "schedule.steps": [10, 20],
        }
        assert client.post("/sweeps", json=taught(address, grid=grid)).status_code == 202
        assert checked == ["taught-001"]
        checked.clear()
        grid = {RATE: [1e-3, 1e-4], "objective.divergence": ["forward_kl", "reverse_kl"]}
        assert client.post("/sweeps", json=taught(address, grid=grid)).status_code == 202
    assert checked == ["taught-01", "taught-02"]
    assert len(runs_of(plane)) == 124


def test_a_sweep_needs_room_for_all_of_its_runs(tmp_path):
    plane = open_plane(
        make_home(tmp_path),
        devices=Devices((), max_running=1),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
        max_queued=5,
    )
    from control_plane.api.app import create_app

    with TestClient(create_app(plane), base_url="http://127.0.0.1") as client:
        for _ in range(3):
            assert client.post("/runs", json=spec_body()).status_code == 202
        wait_for(lambda: len(plane.runs.queued()) == 2)
        full = client.post("/sweeps", json=sweep_body())
        assert "2 runs wait in the queue, and 4 more would be above 5" in full.json()["detail"]
        problem_of(full, 503, "overloaded")
        assert full.headers["retry-after"]
        never = client.post("/sweeps", json=sweep_body(grid={"seed": list(range(6))}))
        assert "6 runs are more than the queue ever holds, 5" in never.json()["detail"]
        problem_of(never, 422, "invalid_request")
        assert len(runs_of(plane)) == 3
        create(client, grid={"seed": [0, 1, 2]})


def test_a_key_used_16_times_at_once_makes_one_sweep(client, plane):
    def post(_: int) -> Any:
        return client.post("/sweeps", json=sweep_body(), headers={"Idempotency-Key": "once"})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(16)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(runs_of(plane)) == 4
    other = client.post("/sweeps", json=sweep_body("x"), headers={"Idempotency-Key": "once"})
    found = problem_of(other, 422, "invalid_request")
    assert found["errors"][0]["field"] == "Idempotency-Key"
    again = client.post("/sweeps", json=sweep_body())
    assert again.json()["id"] != answers[0].json()["id"]
    bad = client.post("/sweeps", json=sweep_body(), headers={"Idempotency-Key": "a b"})
    problem_of(bad, 422, "invalid_request")
    run = client.post("/runs", json=spec_body(), headers={"Idempotency-Key": "once"})
    assert run.status_code == 202  # keys of runs are others


def test_a_failure_in_the_middle_leaves_nothing(client, plane, monkeypatch):
    remembered = []

    def failing(*arguments: Any) -> None:
        remembered.append(arguments)
        if len(remembered) == 3:
            raise TeacherUnavailable("the third of four")

    monkeypatch.setattr(creation, "remember", failing)
    assert client.post("/sweeps", json=sweep_body()).status_code == 502
    assert len(remembered) == 3
    monkeypatch.undo()
    assert runs_of(plane) == []
    assert client.get("/sweeps").json()["total"] == 0


def test_its_runs_get_places_in_the_queue_in_order(client, plane):
    made = create(client, grid={"seed": list(range(5))})

    def places() -> list[int | None]:
        return [plane.runs.get(run["run_id"]).queue_position for run in made["runs"]]

    wait_for(lambda: places() == [None, None, 1, 2, 3])  # two of them train


def test_as_many_runs_as_allowed_are_made_at_once(client, plane):
    made = create(client, grid={"seed": list(range(MAX_RUNS))})
    assert len(made["runs"]) == MAX_RUNS
    assert made["runs"][-1]["name"] == "rates-200"


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_has_last_and_best_values_and_the_best_by_mean(client, plane, processes):
    made = at_rest(client, processes)
    losses = [[9.0, 2.0, 2.5], [9.0, 6.0], [9.0, 3.0, 3.5], [9.0, 4.0]]
    for run, values in zip(made["runs"], losses, strict=True):
        log(plane, run["run_id"], values)
    shown = client.get(f"/sweeps/{made['id']}").json()
    assert [(run["value"], run["value_step"]) for run in shown["runs"]] == [
        (2.5, 20),
        (6.0, 10),
        (3.5, 20),
        (4.0, 10),
    ]
    assert [(run["best"], run["at_step"]) for run in shown["runs"]] == [
        (2.0, 10),
        (6.0, 10),
        (3.0, 10),
        (4.0, 10),
    ]
    assert [(group["n"], group["mean"]) for group in shown["groups"]] == [(2, 4.0), (2, 3.5)]
    assert shown["groups"][0]["spread"] == pytest.approx(8**0.5)
    assert shown["best_group"] == 1
    assert shown["best"] == made["runs"][2]["run_id"]

    log(plane, made["runs"][3]["run_id"], [None], every=1)  # a value that is not finite
    shown = client.get(f"/sweeps/{made['id']}").json()
    assert shown["runs"][3]["value"] is None
    assert shown["runs"][3]["note"].startswith("diverged")
    assert shown["best_group"] == 0


def test_a_run_that_was_deleted_is_gone_from_the_table(client, plane, processes):
    made = create(client, grid={"seed": [0, 1, 2]})
    gone = made["runs"][2]["run_id"]
    assert client.post(f"/runs/{gone}/stop").status_code == 202
    assert client.delete(f"/runs/{gone}").status_code == 204
    shown = client.get(f"/sweeps/{made['id']}").json()
    assert [run["name"] for run in shown["runs"]] == ["rates-01", "rates-02"]
    assert shown["num_runs"] == 3
    assert shown["groups"][0]["runs"] == [run["run_id"] for run in made["runs"][:2]]


def test_a_label_that_changes_does_not_change_the_table(client, plane, processes):
    made = at_rest(client, processes, grid={"seed": [0, 1]})
    first, second = (run["run_id"] for run in made["runs"])
    assert client.post(f"/runs/{first}/resume", json={"group": "other"}).status_code == 202
    stranger = spec_body("stranger", group=made["id"])
    assert client.post("/runs", json=stranger).status_code == 202
    shown = client.get(f"/sweeps/{made['id']}").json()
    assert [run["run_id"] for run in shown["runs"]] == [first, second]


def _ended(client: TestClient, processes: FakeProcesses, run_id: str) -> bool:
    """Lets the trainer of a run that was stopped end, if there is one; returns whether it has."""
    for process in processes.started:
        if process.folder.run_id == run_id and process.alive and process.terminated:
            process.say("stopped", step=1, checkpoint_step=1)
            process.end(0)
    return state_of(client, run_id) == "stopped"


def test_sweeps_are_listed_newest_first_a_page_at_a_time(client, plane):
    ids = [create(client, name=f"s{number}", grid={"seed": [0, 1]})["id"] for number in range(3)]
    page = client.get("/sweeps?limit=2").json()
    assert [one["id"] for one in page["sweeps"]] == [ids[2], ids[1]]
    assert page["total"] == 3
    assert sum(page["sweeps"][0]["states"].values()) == 2
    assert page["sweeps"][0]["settings"] == ["seed"]
    rest = client.get("/sweeps", params={"cursor": page["next_cursor"]}).json()
    assert [one["id"] for one in rest["sweeps"]] == [ids[0]]
    assert rest["next_cursor"] is None


# ---- stop and delete -----------------------------------------------------------------------------


def test_a_stop_reaches_what_trains_and_what_waits(client, plane, processes):
    made = create(client)
    wait_for(lambda: len(processes.started) == 2)
    answer = client.post(f"/sweeps/{made['id']}/stop")
    assert answer.status_code == 202
    states = [run["state"] for run in answer.json()["runs"]]
    assert states == ["stopping", "stopping", "stopped", "stopped"]
    assert client.post(f"/sweeps/{made['id']}/stop").status_code == 202
    for run in made["runs"]:
        wait_for(partial(_ended, client, processes, run["run_id"]))
    assert len(processes.started) == 2  # none took the place of another
    assert client.post("/sweeps/none/stop").status_code == 404


def test_only_the_record_of_a_sweep_at_rest_is_deleted(client, plane, processes):
    made = create(client, grid={"seed": [0, 1]})
    busy = client.delete(f"/sweeps/{made['id']}")
    assert "stop the sweep first" in busy.json()["detail"]
    problem_of(busy, 409, "conflict")
    client.post(f"/sweeps/{made['id']}/stop")
    for run in made["runs"]:
        wait_for(partial(_ended, client, processes, run["run_id"]))
    assert client.delete(f"/sweeps/{made['id']}").status_code == 204
    problem_of(client.get(f"/sweeps/{made['id']}"), 404, "not_found")
    problem_of(client.delete(f"/sweeps/{made['id']}"), 404, "not_found")
    left = client.get(f"/runs/{made['runs'][0]['run_id']}").json()
    assert left["spec"]["group"] == made["id"]


def test_a_run_that_has_ended_is_not_asked_to_stop(client, plane, processes):
    made = create(client, grid={"seed": [0, 1]})
    first = made["runs"][0]["run_id"]
    wait_for(lambda: len(processes.started) == 2)
    processes.last(first).say("succeeded", step=20)
    processes.last(first).end(0)
    wait_for(lambda: state_of(client, first) == "succeeded")
    answer = client.post(f"/sweeps/{made['id']}/stop")
    assert [run["state"] for run in answer.json()["runs"]] == ["succeeded", "stopping"]


# ---- POST /sweeps/check --------------------------------------------------------------------------


def test_a_check_says_what_would_be_made_and_makes_nothing(client, plane):
    answer = client.post("/sweeps/check", json=sweep_body())
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["ok"]
    assert [run["name"] for run in found["runs"]] == [f"rates-0{number}" for number in range(1, 5)]
    assert found["runs"][1]["settings"] == {RATE: 1e-3, "seed": 1}
    assert found["settings"] == [RATE, "seed"]
    assert found["estimate"]["tokens"] == 4 * 20 * 8 * 16
    assert (found["estimate"]["teacher_tokens"], found["estimate"]["teacher_hours"]) == (0, None)
    assert [check["subject"] for check in found["checks"]] == ["data", "student"]
    assert found["advice"] == []
    assert runs_of(plane) == []


def test_the_estimate_counts_shared_rows_once(client, plane):
    write_student(plane)
    teacher = FakeTeacher(
        TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS), measured_tokens_per_second=100.0
    )
    with serving(teacher) as address:
        rates = {RATE: [1e-3, 1e-4, 1e-5]}
        one = client.post("/runs/check", json=distilling(address)).json()["estimate"]
        found = client.post("/sweeps/check", json=taught(address, grid=rates)).json()
        seeds = {**rates, "seed": [0, 1]}
        other = client.post("/sweeps/check", json=taught(address, grid=seeds)).json()
        steps = {"schedule.steps": [10, 20]}
        longest = client.post("/sweeps/check", json=taught(address, grid=steps)).json()
    estimate = found["estimate"]
    assert estimate["teacher_tokens"] == 3 * one["teacher_tokens"]
    assert estimate["teacher_tokens_shared"] == one["teacher_tokens"]
    assert estimate["teacher_hours"] == pytest.approx(one["teacher_hours"])
    assert other["estimate"]["teacher_tokens_shared"] == 2 * one["teacher_tokens"]
    assert other["estimate"]["teacher_hours"] == pytest.approx(2 * one["teacher_hours"])
    assert longest["estimate"]["teacher_tokens_shared"] == one["teacher_tokens"]
    assert [text.partition(" ")[0] for text in found["advice"]] == ["at"]  # 3 runs, 2 at a time
    assert [text.partition(" ")[0] for text in other["advice"]] == ["seed", "at"]
    assert "2 of the 3 runs" in found["advice"][0]


def test_runs_of_different_rows_are_told_to_share_nothing(client, plane):
    write_student(plane)
    with serving(FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS))) as address:
        grid = {"data.seq_len": [8, 16]}
        [told] = client.post("/sweeps/check", json=taught(address, grid=grid)).json()["advice"]
    assert told.startswith("runs that differ in data.seq_len")


def test_runs_that_learn_from_records_are_told_nothing_about_sharing_a_teacher(client, plane):
    write_student(plane)
    body = taught("127.0.0.1:1", grid={"seed": [0, 1], RATE: [1e-3, 1e-4]})
    body["base"] |= {"teacher": {"record": "answers"}, "data": {"path": "none", "seq_len": 8}}
    found = client.post("/sweeps/check", json=body).json()
    assert found["advice"] == []
    assert found["estimate"]["teacher_tokens"] == found["estimate"]["teacher_tokens_shared"] == 0
    body["grid"] = {"teacher.record": ["one", "two"]}
    failed = [
        (check["field"], check["message"])
        for check in client.post("/sweeps/check", json=body).json()["checks"]
        if check["outcome"] == "fail"
    ]
    told = {field: message for field, message in failed if "teacher" in field}
    assert list(told) == ["grid.teacher.record[0]", "grid.teacher.record[1]"]
    assert "no record 'two'" in told["grid.teacher.record[1]"]


def test_runs_of_a_sweep_do_not_keep_their_answers_in_one_record(client, plane):
    body = taught("127.0.0.1:1", grid={RATE: [1e-3, 1e-4]})
    body["base"]["teacher"]["record_to"] = "kept"
    body["base"]["data"] = {"path": "none", "seq_len": 8}
    for path in ("/sweeps/check", "/sweeps"):
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert "would make one record, kept" in answer.text
    body["grid"] = {"teacher.record_to": ["one", "two"]}
    assert client.post("/sweeps/check", json=body).status_code == 200


def test_a_check_names_what_fails_and_for_which_run(client, plane):
    grid = {"student.config": ["tiny", "nothing"], RATE: [1e-3, 1e-4]}
    found = client.post("/sweeps/check", json=sweep_body(grid=grid)).json()
    assert not found["ok"]
    [failed] = [check for check in found["checks"] if check["outcome"] == "fail"]
    assert failed["field"] == "grid.student.config[1]"
    assert f"(run 3 of 4: student.config nothing, {RATE} 0.001)" in failed["message"]


# ---- the teacher's work --------------------------------------------------------------------------


def account(run_id: str, hits: int, misses: int, tokens: int, asked: int) -> teacher_pb2.RunStats:
    return teacher_pb2.RunStats(
        run_id=run_id, cache_hits=hits, cache_misses=misses, tokens=tokens, asked_tokens=asked
    )


def test_the_teacher_s_account_says_how_much_was_shared(client, plane):
    write_student(plane)
    teacher = FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS))
    with serving(teacher) as address:
        made = client.post("/sweeps", json=taught(address)).json()
        assert made["teacher"]["counted_runs"] == 0
        assert (made["teacher"]["asked_tokens"], made["teacher"]["shared"]) == (0, None)
        first, second = (run["run_id"] for run in made["runs"])
        teacher.stats.runs.extend(
            [account(first, 0, 10, 600, 1000), account(second, 10, 0, 400, 1000)]
        )
        teacher.stats.runs.append(account("another", 5, 5, 500, 900))
        plane.teachers._teachers[address].asked_at = float("-inf")
        shown = client.get(f"/sweeps/{made['id']}").json()["teacher"]
        assert shown == {
            "problem": None,
            "counted_runs": 2,
            "asked_tokens": 2000,
            "computed_tokens": 1000,
            "shared": 0.5,
            "asked_sequences": 20,
            "computed_sequences": 10,
        }
        # A teacher of an earlier release does not say how much it was asked.
        teacher.stats.runs[0].asked_tokens = 0
        plane.teachers._teachers[address].asked_at = float("-inf")
        shown = client.get(f"/sweeps/{made['id']}").json()["teacher"]
        assert (shown["asked_tokens"], shown["shared"]) == (None, None)
        assert shown["computed_tokens"] == 1000
    plane.teachers._teachers[address].asked_at = float("-inf")
    away = client.get(f"/sweeps/{made['id']}").json()["teacher"]
    assert f"the teacher at {address} does not answer" in away.pop("problem")
    assert set(away.values()) == {None}


def test_a_teacher_of_runs_that_ended_is_not_forgotten_between_two_looks(client, plane):
    write_student(plane)
    with serving(FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS))) as address:
        made = client.post("/sweeps", json=taught(address)).json()
        known = plane.teachers._teachers[address]
        client.post(f"/sweeps/{made['id']}/stop")
        client.get("/teachers")
        assert plane.teachers._teachers[address] is known
        assert client.get(f"/sweeps/{made['id']}").json()["teacher"]["problem"] is None


def test_started_and_stopped_runs_are_counted_by_state(client, plane, processes):
    started(client, processes, name="other")
    stopped(client, processes, name="third")
    made = create(client, grid={"seed": [0]})
    [summary] = client.get("/sweeps").json()["sweeps"]
    assert summary["id"] == made["id"]
    assert sum(summary["states"].values()) == 1
