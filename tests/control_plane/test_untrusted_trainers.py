"""Whatever a trainer writes, and whatever a row holds: only its run suffers, and says so."""

import contextlib
import json
import os
from typing import Any

import pytest
import sqlalchemy as sa

from control_plane.runs.store import Store
from lectern_common.errors import LecternError
from lectern_common.run.status import MAX_STATUS_BYTES
from tests.control_plane.api.test_routes import create, started, state_of, stopped
from tests.control_plane.conftest import Bench, wait_for
from tests.control_plane.trainers.test_reconciler import seen

STATUS = {"run_id": "x", "state": "running", "since": 1.0, "heartbeat": 2.0, "pid": 3, "version": 2}
# Fields of a status, and the word by which the run names what is wrong.
WRONG = {
    "step is a fraction": ({"step": 1.5}, "step"),
    "step is true": ({"step": True}, "step"),
    "step is negative": ({"step": -1}, "step"),
    "step is beyond any counter": ({"step": 10**30}, "step"),
    "steps is text": ({"steps": "9"}, "steps"),
    "checkpoint is a list": ({"checkpoint_step": [1]}, "checkpoint_step"),
    "create time is text": ({"process_create_time": "noon"}, "process_create_time"),
    "pid is zero": ({"pid": 0}, "pid"),
    "pid is text": ({"pid": "3"}, "pid"),
    "ticks are a fraction": ({"start_ticks": 0.5}, "start_ticks"),
    "a metric is text": ({"latest": {"loss/val": "x"}}, "latest.loss/val"),
    "a metric is nan": ({"latest": {"loss/val": float("nan")}}, "latest.loss/val"),
    "a metric is an object": ({"latest": {"loss/val": {}}}, "latest.loss/val"),
    "too many metrics": ({"latest": {f"m/{n}": 1 for n in range(300)}}, "latest"),
    "latest is null": ({"latest": None}, "latest"),
    "speed is infinite": ({"tokens_per_second": float("inf")}, "tokens_per_second"),
    "heartbeat is after every year": ({"heartbeat": 1e300}, "heartbeat"),
    "state is unknown": ({"state": "resting"}, "state"),
    "state is null": ({"state": None}, "state"),
    "message is an object": ({"message": {"a": 1}}, "message"),
    "device is a number": ({"device": 7}, "device"),
    "version is of a later release": ({"version": 3}, "version 3"),
    "version is text": ({"version": "2"}, "version"),
}


@pytest.mark.parametrize(("fields", "named"), WRONG.values(), ids=WRONG)
def test_a_wrong_status_troubles_only_its_run_until_it_is_right_again(bench, fields, named):
    run, other = bench.started("one"), bench.started("two")
    path = bench.roots.runs / run.id / "status.json"
    path.write_text(json.dumps({**STATUS, **fields}))
    bench.processes.last(other.id).say("running", step=5)
    bench.tick(1)
    troubled = bench.runs.get(run.id)
    assert (troubled.state, troubled.reason) == ("running", "status_unreadable")
    assert troubled.message is not None and "status.json is not readable" in troubled.message
    assert named in troubled.message
    assert bench.runs.get(other.id).last_status.step == 5
    bench.tick(1)
    assert bench.runs.get(run.id).revision == troubled.revision  # said once
    bench.processes.last(run.id).say("running", step=9)
    bench.tick(1)
    assert seen(bench, run.id) == ("running", None)
    assert bench.runs.get(run.id).last_status.step == 9


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 90_000, b"null", b"\xff\xfe", b"x" * (MAX_STATUS_BYTES + 1)],
    ids=["empty", "half", "deep", "null", "bytes", "large"],
)
def test_a_status_that_is_no_json_or_too_large_is_said(bench, data):
    run = bench.started()
    (bench.roots.runs / run.id / "status.json").write_bytes(data)
    bench.tick(1)
    assert seen(bench, run.id) == ("running", "status_unreadable")


def test_a_pipe_or_a_folder_in_the_place_of_a_status_stops_nothing(bench):
    run, other = bench.started("one"), bench.started("two")
    for each, make in ((run, os.mkfifo), (other, os.mkdir)):
        path = bench.roots.runs / each.id / "status.json"
        path.unlink()
        make(path)
    bench.tick(1)
    for each in (run, other):
        assert seen(bench, each.id) == ("running", "status_unreadable")


JSON_LINES = ("metrics", "events", "samples", "rollouts")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_of_lines_has_no_lines(client, plane, make):
    run = create(client)
    wait_for(lambda: state_of(client, run["id"]) == "starting")
    folder = plane.roots.runs / run["id"]
    wait_for(folder.is_dir)
    for name in JSON_LINES:
        path = folder / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        make(path)
    for path in ("", "/metrics", "/metrics?max_points=16", "/series", *TEXTS, "/logs", "/history"):
        answer = client.get(f"/runs/{run['id']}{path}")
        assert answer.status_code == 200, (path, answer.text)
    assert client.get(f"/runs/{run['id']}/metrics").json()["metrics"] == []


def test_fifty_megabytes_of_message_reach_neither_database_nor_row(bench):
    run = bench.started()
    status = {**STATUS, "message": "x" * 50_000_000}
    (bench.roots.runs / run.id / "status.json").write_text(json.dumps(status))
    bench.tick(1)
    assert len(bench.runs.get(run.id).message or "") < 1000
    bench.processes.last().say("running", message="a" * 60_000_000 + "z")
    bench.tick(1)
    message = bench.runs.get(run.id).message
    assert message is not None and len(message) == 4000
    assert " [cut] " in message and message.endswith("z")
    assert bench.store.path.stat().st_size < 1_000_000


def test_a_stopping_run_that_heals_still_says_that_it_was_stopped(bench):
    run = bench.started()
    bench.commands.request_stop(run.id)
    (bench.roots.runs / run.id / "status.json").write_text("{")
    bench.tick(1)
    assert seen(bench, run.id) == ("stopping", "status_unreadable")
    assert bench.processes.last().terminated == 1
    bench.processes.last().say("stopping", step=2)
    bench.tick(1)
    assert seen(bench, run.id) == ("stopping", "stopped")


def test_a_run_that_ends_with_an_unreadable_status_goes_on_from_its_checkpoint(bench):
    run = bench.started()
    bench.processes.last().say("running", step=9, checkpoint_step=5)
    bench.tick(1)
    (bench.roots.runs / run.id / "status.json").write_text("{")
    bench.processes.last().end(1)
    bench.tick(1)
    ended = bench.runs.get(run.id)
    assert (ended.state, ended.reason, ended.checkpoint_step) == (
        "interrupted",
        "status_unreadable",
        5,
    )
    assert "exit status 1" in (ended.message or "")
    bench.tick(2)
    assert bench.processes.resumed == [False, True]


def test_an_unforeseen_error_of_one_run_is_said_and_stops_no_other(bench):
    run, other = bench.started("one"), bench.started("two")
    is_alive = bench.processes.is_alive
    broken = bench.processes.last(run.id).identity

    def breaks(process):
        if process == broken:
            raise RuntimeError("what nobody thought of")
        return is_alive(process)

    bench.processes.is_alive = breaks
    bench.processes.last(other.id).say("running", step=8)
    bench.tick(1)
    assert seen(bench, run.id) == ("running", "internal")
    assert "what nobody thought of" in (bench.runs.get(run.id).message or "")
    assert bench.runs.get(other.id).last_status.step == 8
    bench.processes.is_alive = is_alive
    bench.tick(1)
    assert seen(bench, run.id) == ("running", None)


DAMAGE = {
    "status": ("status", '{"step": 1.5}'),
    "status of a bug": (
        "status",
        json.dumps({**STATUS, "version": 1, "step": 1.5, "latest": {"loss/val": "x"}}),
    ),
    "status with nan": ("status", json.dumps({**STATUS, "latest": {"a": float("nan")}})),
    "half a status": ("status", '{"run_id": '),
    "status is a list": ("status", "[1]"),
    "spec is empty": ("spec", "{}"),
    "spec is a list": ("spec", "[]"),
    "half a spec": ("spec", '{"name": "a'),
    "spec with wrong types": ("spec", '{"teacher": 5, "objective": [], "student": "x"}'),
    "teacher": ("teacher", "[]"),
    "unknown state": ("state", "resting"),
    "unknown wish": ("wanted", "perhaps"),
    "since is text": ("since", "noon"),
    "since is infinite": ("since", float("inf")),
    "attempt is text": ("attempt", "many"),
    "a long message": ("message", "x" * 1_000_000),
    "message is bytes": ("message", b"\xff"),
    "slots are a number": ("slots", "5"),
    "slots are numbers": ("slots", "[1, null]"),
    "slots are a text": ("slots", '"cpu"'),
    "half of the slots": ("slots", '["cpu'),
    "attempt is no whole number": ("attempt", 1.5),
    "attempt is huge": ("attempt", 1e300),
    "handle is a number": ("handle", 7.5),
    "handle has no backend": ("handle", "7"),
    "queue_position is no whole number": ("queue_position", 1.5),
    "stalled_since is text": ("stalled_since", "noon"),
    "active_since is infinite": ("active_since", float("inf")),
    "handle has no ticks": ("handle", "local:7/x/y"),
    "threads is text": ("threads", "many"),
    "restarts is no whole number": ("restarts", 0.5),
}
ORDERS = (
    "name",
    "progress",
    "elapsed",
    "device",
    "student",
    "-latest.loss/val",
    "spec.schedule.steps",
)


def damage(store: Store, run_id: str, column: str, value: Any) -> None:
    with store.writing() as connection:
        text = sa.text(f"UPDATE runs SET {column} = :value WHERE id = :id")  # noqa: S608
        connection.execute(text, {"value": value, "id": run_id})


def test_a_damaged_row_is_listed_and_hides_no_other(client, plane, processes):
    made = [stopped(client, processes), started(client, processes, name="third")]
    ids = [run["id"] for run in made]
    plane.tick_seconds = 3600.0  # a damaged row is read as it is; below, the loop looks at it
    with plane.store.reading() as connection:
        sound = connection.execute(sa.text("SELECT * FROM runs")).mappings().all()
    for name, (column, value) in DAMAGE.items():
        for run_id in ids:
            damage(plane.store, run_id, column, value)
        listed = client.get("/runs")
        assert listed.status_code == 200, (name, listed.text)
        assert {run["id"] for run in listed.json()["runs"]} == {*ids}, name
        assert len(listed.content) < 50_000, name
        for order in ORDERS:
            ordered = client.get("/runs", params={"sort": order})
            assert ordered.status_code == 200, (name, order, ordered.text)
            assert len(ordered.json()["runs"]) == 2, (name, order)
        for run_id in ids:
            for path in ("", "/metrics", "/samples", "/logs"):
                answer = client.get(f"/runs/{run_id}{path}")
                assert answer.status_code == 200, (name, path, answer.text)
            assert client.get(f"/runs/{run_id}/spec").status_code < 500, name
        for row in sound:
            damage(plane.store, row["id"], column, row[column])


@pytest.mark.parametrize(("column", "value"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_row_hinders_no_other_run(bench, column, value):
    rests = bench.commands.request_stop(bench.create("rests").id)
    third = bench.started("third")
    for run in (rests, third):
        damage(bench.store, run.id, column, value)
    bench.tick(1)
    for run in (rests, third):
        with contextlib.suppress(LecternError):  # refused, and no failure of the control plane
            bench.commands.request_stop(run.id)
    bench.tick(1)
    late = bench.started("late")
    bench.processes.last(late.id).say("running", step=7)
    bench.tick(1)
    assert bench.runs.get(late.id).last_status.step == 7


DAMAGED_CHANGES = {
    "unknown state": ("state", "resting"),
    "state is bytes": ("state", b"\xff"),
    "unknown wish": ("wanted", "perhaps"),
    "at is text": ("at", "noon"),
    "at is infinite": ("at", float("inf")),
    "attempt is text": ("attempt", "many"),
    "attempt is huge": ("attempt", 1e300),
    "reason is a number": ("reason", 5),
    "message is bytes": ("message", b"\xff"),
    "a long message": ("message", "x" * 1_000_000),
}


@pytest.mark.parametrize(("column", "value"), DAMAGED_CHANGES.values(), ids=DAMAGED_CHANGES)
def test_a_damaged_row_of_a_history_hides_neither_it_nor_the_run(
    client, plane, processes, column, value
):
    run = stopped(client, processes)
    with plane.store.writing() as connection:
        text = sa.text(f"UPDATE history SET {column} = :value WHERE seq = 2")  # noqa: S608
        connection.execute(text, {"value": value})
    shown = client.get(f"/runs/{run['id']}")
    assert shown.status_code == 200, shown.text
    page = client.get(f"/runs/{run['id']}/history")
    assert page.status_code == 200, page.text
    assert len(page.json()["entries"]) == len(shown.json()["history"]) == 5
    assert len(page.content) < 50_000
    entry = page.json()["entries"][-2] if column != "at" else {"state": "starting"}
    assert entry["state"] == (None if column == "state" else "starting")
    if column == "state":
        assert "unknown state" in entry["message"]


def test_a_queued_row_without_a_spec_fails_alone(bench: Bench) -> None:
    run, other = bench.create("one"), bench.create("two")
    with bench.store.writing() as connection:
        connection.execute(sa.text("UPDATE runs SET spec = '{}' WHERE id = :id"), {"id": run.id})
    bench.tick()
    assert seen(bench, run.id) == ("failed", "corrupt_data")
    assert seen(bench, other.id) == ("starting", None)


ABSURD = [
    '{"step": 1, "loss/total": 1e999}',
    '{"step": 2, "loss/total": "x", "loss/val": "y"}',
    '{"step": 3, "loss/total": {"a": 1}, "loss/val": [1]}',
    '{"step": true, "loss/total": 1}',
    '{"step": -1, "loss/total": 1}',
    '{"step": 1' + "0" * 400 + "}",
    '{"step": 4, "loss/val": 1' + "0" * 400 + "}",
    '{"step": 4, "loss/val": 1' + "0" * 250 + "e99}",
    '{"step": 4, "kind": "checkpoint", "time": 1' + "0" * 400 + "}",
    '{"step": 5, "\\ud800": NaN, "loss/total": -Infinity}',
    '{"step": 6, "loss/total": true}',
    "[" * 5000,
    '{"time": "noon", "kind": "x", "step": 7}',
    '{"time": 1e999, "kind": "later", "value": 1e999, "message": "\\udfff"}',
    '{"time": 5, "kind": ["a"], "message": {"b": NaN}, "state": 3}',
    '{"time": NaN, "kind": "never"}',
    '{"step": 1e999, "prompt": "a", "student": "b", "teacher": null}',
    '{"step": 9, "prompt": 3, "student": {}, "teacher": NaN}',
    '{"step": 1' + "0" * 30 + ', "prompt": "a", "student": "b", "teacher": null}',
    '{"step": 9, "row": 1e999, "sample": 0, "prompt_ids": [1], "ids": [2], "kl": [1], "end": null}',
    '{"step": 9, "row": 0, "sample": 0, "prompt_ids": 5, "ids": {}, "kl": "x", "tokens": [[]]}',
]


TEXTS = ("/samples", "/rollouts", "/rollouts?before_step=5")


def test_absurd_lines_of_metrics_events_and_texts_are_read_leniently(client, plane):
    run = create(client)
    wait_for(lambda: state_of(client, run["id"]) == "starting")
    folder = plane.roots.runs / run["id"]
    wait_for(folder.is_dir)
    for name in ("metrics", "events", "samples", "rollouts"):
        (folder / f"{name}.jsonl").write_text("\n".join(ABSURD) + "\n")
    for path in ("", "/metrics", "/metrics?max_points=16", "/series", *TEXTS, "/logs"):
        answer = client.get(f"/runs/{run['id']}{path}")
        assert answer.status_code == 200, (path, answer.text)
        if path != "/logs":
            json.loads(answer.content, parse_constant=pytest.fail)
    steps = [
        record["step"] for record in client.get(f"/runs/{run['id']}/metrics").json()["metrics"]
    ]
    assert steps[:8] == [1, 2, 3, 4, 4, 4, 5, 6]
    assert -1 not in steps
