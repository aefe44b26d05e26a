"""GET /runs/ID/series: the answer's form, its range, CSV, marks, and what is refused."""

import csv
import gzip
import json
from typing import Any

import pytest

from lectern_common.json_lines import append_json_line, keep_lines_before
from tests.control_plane.api.test_routes import create, problem_of, started

COLUMNS = {
    *("step", "first_step", "mean", "min", "max", "count", "non_finite"),
    *("tokens", "seconds", "time"),
}


def line(step: int, **values) -> dict:
    axes = {"time": 1e9 + step, "progress/tokens": 100 * step, "progress/seconds": step / 2}
    return {"step": step, **axes, "loss/total": float(step), **values}


@pytest.fixture
def run(client, processes):
    """A run with 11 lines; a factory of answers, and its folder."""
    run = started(client, processes)
    folder = processes.last(run["id"]).folder
    for step in range(11):
        values = {"loss/val": 2.0 - step / 10} if step % 5 == 0 else {}
        values |= {"loss/kd": float("nan")} if step == 7 else {"loss/kd": 1.0}
        append_json_line(folder.metrics_path, line(step, **values))

    def ask(**params):
        response = client.get(f"/runs/{run['id']}/series", params=params)
        assert response.status_code == 200, response.text
        return response.json()

    return ask, folder


def test_few_values_are_each_a_bucket(run):
    ask, folder = run
    answer = ask(keys="loss/total,loss/val,loss/unknown")
    assert answer["run_id"] == folder.run_id
    assert answer["last_step"] == 10
    assert answer["keys"] == ["loss/total", "loss/val", "loss/kd"]
    assert answer["keys_left_out"] == 0
    assert all(set(buckets) == COLUMNS for buckets in answer["series"].values())
    val = answer["series"]["loss/val"]
    assert val["step"] == val["first_step"] == [0, 5, 10]
    assert val["mean"] == val["min"] == val["max"] == [2.0, 1.5, 1.0]
    assert (val["count"], val["non_finite"]) == ([1, 1, 1], [0, 0, 0])
    assert (val["tokens"], val["seconds"]) == ([0, 500, 1000], [0.0, 2.5, 5.0])
    assert val["time"] == [1e9, 1e9 + 5, 1e9 + 10]
    assert answer["series"]["loss/unknown"] == {column: [] for column in COLUMNS}


def test_without_keys_every_metric_is_there_and_a_range_limits_it(run):
    ask, _ = run
    answer = ask(from_step=6, to_step=8)
    assert list(answer["series"]) == answer["keys"]
    assert answer["series"]["loss/total"]["step"] == [6, 7, 8]
    assert answer["series"]["loss/val"]["step"] == []
    kd = answer["series"]["loss/kd"]
    assert kd["mean"] == [1.0, None, 1.0]
    assert (kd["count"], kd["non_finite"]) == ([1, 0, 1], [0, 1, 0])


def test_many_values_are_at_most_max_points_with_lows_and_highs(run):
    ask, folder = run
    for step in range(11, 3000):
        append_json_line(folder.metrics_path, line(step, **({"x": -5.0} if step == 1234 else {})))
    answer = ask(keys="loss/total,x", max_points=16)
    total = answer["series"]["loss/total"]
    assert len(total["step"]) == 16
    assert (min(total["min"]), max(total["max"]), sum(total["count"])) == (0.0, 2999.0, 3000)
    assert answer["series"]["x"]["step"] == [1234]
    assert answer["last_step"] == 2999


def test_the_revision_changes_with_the_file_and_the_cursor_continues_it(run, client):
    ask, folder = run
    first = ask()
    assert ask()["revision"] == first["revision"]
    append_json_line(folder.metrics_path, line(11))
    assert ask()["revision"] != first["revision"]
    address = f"/runs/{folder.run_id}/metrics"
    after = client.get(address, params={"cursor": first["cursor"]}).json()
    assert [record["step"] for record in after["metrics"]] == [11]
    keep_lines_before(folder.metrics_path, 3)
    assert ask()["series"]["loss/total"]["step"] == [0, 1, 2]


def test_marks_are_checkpoints_restarts_and_values_that_were_not_finite(run):
    ask, folder = run
    folder.append_event("assembled", step=0)
    folder.append_event("checkpoint", step=4, path="checkpoints/step-00000004")
    folder.append_event("state", state="running")
    folder.append_event("assembled", step=4)
    with folder.events_path.open("a") as file:
        file.write("garbage\n[]\n")
    marks = ask()["marks"]
    assert [(mark["kind"], mark["step"]) for mark in marks] == [
        ("checkpoint", 4),
        ("restart", 4),
        ("non_finite", 7),
    ]
    assert marks[2]["time"] == 1e9 + 7
    assert marks[0]["time"] > 1e9
    assert ask(from_step=5)["marks"] == marks[2:]


def test_lines_of_earlier_releases_have_no_times(client, processes):
    run = started(client, processes)
    path = processes.last(run["id"]).folder.metrics_path
    append_json_line(path, {"step": 0, "loss/val": 2.0})
    append_json_line(path, {"step": 1, "loss/total": 2.0, "data/tokens_seen": 64})
    series = client.get(f"/runs/{run['id']}/series").json()["series"]
    assert (series["loss/val"]["tokens"], series["loss/val"]["time"]) == ([None], [None])
    assert (series["loss/total"]["tokens"], series["loss/total"]["seconds"]) == ([64], [None])


@pytest.mark.parametrize("how", ["format", "accept"])
def test_a_chart_can_be_had_as_csv(run, client, how):
    _, folder = run
    append_json_line(folder.metrics_path, {"step": 11, "=1+1": 3})
    path = f"/runs/{folder.run_id}/series"
    params = {"format": "csv"} if how == "format" else {}
    headers = {"Accept": "text/csv;q=1.0, */*"} if how == "accept" else {}
    response = client.get(path, params=params, headers=headers)
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(response.text.splitlines()))
    assert set(rows[0]) == {"key", *COLUMNS}
    kd = [row for row in rows if row["key"] == "loss/kd"]
    assert (kd[7]["mean"], kd[7]["non_finite"], kd[8]["mean"]) == ("", "1", "1.0")
    assert rows[-1]["key"] == "'=1+1"
    json_answer = client.get(path, headers={"Accept": "application/json, text/csv"})
    assert json_answer.json()["run_id"] == folder.run_id


def test_a_large_answer_is_compressed_only_for_those_who_accept_it(run, client):
    _, folder = run
    for step in range(11, 300):
        append_json_line(folder.metrics_path, line(step))
    path = f"/runs/{folder.run_id}/series"
    plain = client.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(raw)) == plain.json()


@pytest.mark.parametrize(
    "params",
    [
        {"max_points": 15},
        {"max_points": 5001},
        {"from_step": -1},
        {"to_step": "x"},
        {"from_step": 5, "to_step": 4},
        {"to_step": 2**53},
        {"format": "xml"},
    ],
)
def test_series_queries_are_checked(client, params):
    run = create(client)
    address = f"/runs/{run['id']}/series"
    body = problem_of(client.get(address, params=params), 422, "invalid_request")
    assert body["errors"][0]["field"] == next(iter(params))


def test_a_run_without_metrics_has_an_empty_answer_and_an_unknown_run_none(client):
    run = create(client)
    answer = client.get(f"/runs/{run['id']}/series").json()
    assert (answer["series"], answer["keys"], answer["last_step"]) == ({}, [], None)
    problem_of(client.get("/runs/nothing-00000000/series"), 404, "not_found")


def test_numbers_that_json_cannot_hold_are_marked_not_sent(client, processes):
    run = started(client, processes)
    path = processes.last(run["id"]).folder.metrics_path
    path.write_text(
        '{"step": 1, "a": NaN, "b": 1e999, "c": true, "d": "x", "e": [1], "f": 1%s}\n'
        '{"step": true, "a": 1}\n{"step": -1, "a": 1}\n{"step": 1e3, "a": 1}\n[]\nnull\n'
        '{"step": 9007199254740992, "a": 1}\n{"step": 2, "\\ud800": 1, "time": "x"}\n{"step": 3'
        % ("0" * 400)
    )
    answer = client.get(f"/runs/{run['id']}/series").json()
    assert set(answer["series"]) == {"a", "b", "f", "\ud800"}
    assert [answer["series"][key]["non_finite"] for key in "abf"] == [[1], [1], [1]]
    assert [answer["series"][key]["mean"] for key in "abf"] == [[None], [None], [None]]
    assert answer["last_step"] == 2
    assert client.get(f"/runs/{run['id']}/series?format=csv").status_code == 200


def test_a_long_file_is_thinned_from_the_index_with_its_lows_and_highs(run, client, monkeypatch):
    _, folder = run
    with folder.metrics_path.open("a") as file:
        for step in range(11, 20_000):
            values: dict[str, Any] = {"loss/val": 1.0} if step % 1000 == 0 else {}
            values |= {"loss/total": {7777: -9.0, 15_000: 1e6}.get(step, 2.0), "note": "kept"}
            file.write(json.dumps({"step": step, **values}) + "\n")
    address = f"/runs/{folder.run_id}/metrics"
    monkeypatch.setattr("control_plane.reading.metrics.INDEXED_FROM_BYTES", 1000)
    for keys in ({}, {"keys": "loss/total,loss/val"}):
        answer = client.get(address, params={"max_points": 200, **keys}).json()
        records = {record["step"]: record for record in answer["metrics"]}
        assert len(records) <= 202
        assert list(records) == sorted(records)
        assert {0, 7777, 15_000, 19_999} <= records.keys()
        assert sum("loss/val" in record for record in records.values()) == 22
        assert ("note" in records[7777]) == (not keys)
    later = client.get(address, params={"max_points": 200, "after_step": 9000}).json()["metrics"]
    assert (later[0]["step"], later[-1]["step"]) == (9001, 19_999)
    append_json_line(folder.metrics_path, {"step": 20_000, "loss/total": 1.0})
    more = client.get(address, params={"cursor": answer["cursor"]}).json()["metrics"]
    assert [record["step"] for record in more] == [20_000]


def test_keys_that_were_not_logged_are_named_and_may_still_come(client, plane):
    run_id = create(client)["id"]
    path = f"/runs/{run_id}/series?keys=loss/kd,loss/typo,loss/val,loss/typo"
    assert client.get(path).json()["unknown_keys"] == ["loss/kd", "loss/typo", "loss/val"]
    folder = plane.folder(plane.runs.get(run_id))
    folder.path.mkdir(exist_ok=True)
    append_json_line(folder.metrics_path, {"step": 1, "loss/kd": 0.5})
    answer = client.get(path).json()
    assert answer["unknown_keys"] == ["loss/typo", "loss/val"]
    assert answer["series"]["loss/kd"]["mean"] == [0.5]
    append_json_line(folder.metrics_path, {"step": 2, "loss/val": 0.25})
    assert client.get(path).json()["unknown_keys"] == ["loss/typo"]
    assert client.get(f"/runs/{run_id}/series").json()["unknown_keys"] == []
