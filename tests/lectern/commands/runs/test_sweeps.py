"""`lectern sweep` and `lectern sweeps` against a real control plane with stand-in trainers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lectern.client import Client
from lectern.local.processes import wait_until
from lectern_common.json_lines import append_json_line
from tests.lectern.commands.runs.conftest import DEADLINE_SECONDS

RATE = "optimizer.learning_rate"
SUCCEEDS, FAILS, GOES_ON = range(3)


def write_sweep(folder: Path, **fields: Any) -> Path:
    base = {
        "student": {"config": "tiny"},
        "objective": {"alpha": 1},
        "data": {"kind": "synthetic", "seq_len": 8},
        "schedule": {"steps": 3, "warmup_steps": 1},
    }
    body = {"name": "rates", "base": base, "metric": "loss/total", **fields}
    if "list" not in body:
        body.setdefault("grid", {RATE: [0.001, 0.0001]})
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


@pytest.fixture
def service(lectern: Callable[..., Any], url: str) -> Callable[..., Any]:
    """Returns a function that runs `lectern ...` against the control plane."""
    return lambda *words: lectern(*words, "--url", url)


def test_a_sweep_is_made_watched_listed_shown_and_deleted(service, tmp_path):
    ended = service("sweep", write_sweep(tmp_path), "--watch")
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    sweep_id = lines[0]
    assert sweep_id.startswith("rates-")
    assert any("succeeded  step 3/3  optimizer.learning_rate 0.0001" in line for line in lines)

    shown = service("sweeps", "show", sweep_id)
    table = shown.out.splitlines()
    assert table[0].split() == [
        *("run", "state", "step", RATE, "loss/total", "best", "(min)", "at", "note"),
    ]
    # Both end at 1.0, so the first is the best.
    assert table[1].split()[2:] == ["succeeded", "3/3", "0.001", "1.0000", "1.0000", "3"]
    assert [line[:1] for line in table[1:3]] == ["*", " "]
    best = table[1].split()[1]
    assert f"best: {best}, lowest loss/total 1.0000" in shown.out

    found = service("sweeps", "show", sweep_id, "--json").json
    assert (found["id"], found["best"]) == (sweep_id, best)
    assert [run["at_step"] for run in found["runs"]] == [3, 3]
    listed = service("sweeps", "list")
    assert listed.out.splitlines()[1].split()[0] == sweep_id
    assert "2 succeeded" in listed.out
    assert [one["id"] for one in service("sweeps", "list", "--json").json] == [sweep_id]

    gone = service("sweeps", "delete", sweep_id)
    assert (gone.code, gone.out) == (0, f"{sweep_id}  deleted; its runs are still there\n")
    assert service("sweeps", "list").err.startswith("no sweeps yet")
    assert service("sweeps", "show", sweep_id).code == 3
    assert len(service("runs", "list", "--json").json) == 2


def test_seeds_are_shown_with_mean_and_spread(service, tmp_path, home, url):
    grid = {RATE: [0.001, 0.0001], "seed": [10, 11]}
    sweep_id = service("sweep", write_sweep(tmp_path, grid=grid), "--watch").out.split()[0]
    with Client(url) as client:
        runs = client.sweep(sweep_id).runs
        for run, loss in zip(runs, [0.5, 0.9, 0.4, 0.6], strict=True):
            path = home / "runs" / run.run_id / "metrics.jsonl"
            append_json_line(path, {"step": 4, "loss/total": loss})
        found = client.sweep(sweep_id)
    assert [(group.n, round(group.mean or 0, 6)) for group in found.groups] == [(2, 0.7), (2, 0.5)]
    assert (found.best_group, found.best) == (1, runs[2].run_id)
    groups = service("sweeps", "show", sweep_id).out.split("\n\n")[1].splitlines()
    assert groups[0].split() == [RATE, "n", "mean", "spread", "note"]
    assert groups[1].split() == ["0.001", "2", "0.7000", "0.2828"]
    assert groups[2].split() == ["*", "0.0001", "2", "0.5000", "0.1414"]


def test_a_dry_run_says_what_would_be_made(service, tmp_path):
    path = write_sweep(tmp_path, list=[{RATE: 0.001}, {"seed": 3}])
    found = service("sweep", path, "--dry-run")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0].split() == ["run", RATE, "seed"]
    assert lines[1].split() == ["rates-01", "0.001", "-"]
    assert lines[2].split() == ["rates-02", "-", "3"]
    assert "pass  student" in found.out
    assert "2 runs, 384 tokens in all" in found.out
    assert service("sweep", path, "--dry-run", "--json").json["ok"] is True
    assert service("runs", "list", "--json").json == []

    base = {**yaml.safe_load(path.read_text())["base"], "student": {"config": "nothing"}}
    failed = service("sweep", write_sweep(tmp_path, base=base), "--dry-run")
    assert failed.code == 1
    assert "fail  student    base.student.config: " in failed.out


def test_a_sweep_is_stopped(service, tmp_path, url):
    made = service("sweep", write_sweep(tmp_path, grid={RATE: [1, 2], "seed": [GOES_ON]}), "--json")
    sweep_id = made.json["id"]
    with Client(url) as client:
        running = lambda: {str(run.state) for run in client.sweep(sweep_id).runs} == {"running"}  # noqa: E731
        assert wait_until(running, DEADLINE_SECONDS)
        busy = service("sweeps", "delete", sweep_id)
        assert busy.code == 4 and f"lectern sweeps stop {sweep_id}" in busy.err
        stopped = service("sweeps", "stop", sweep_id)
        assert [line.split()[1] for line in stopped.out.splitlines()] == ["stopping", "stopping"]
        assert wait_until(lambda: client.sweep(sweep_id).rests, DEADLINE_SECONDS)
    assert service("sweeps", "stop", sweep_id, "--json").json["id"] == sweep_id


def test_watching_a_sweep_of_which_a_run_fails_exits_with_1(service, tmp_path):
    grid = {"seed": [SUCCEEDS, FAILS]}
    ended = service("sweep", write_sweep(tmp_path, grid=grid), "--watch", "--json")
    assert ended.code == 1
    found = json.loads(ended.out)
    assert found["runs"][1]["note"] == "diverged: the loss is not finite"
    assert (found["best"], found["groups"][0]["n"]) == (None, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": {"optimizer.lr": [1]}}, "grid.optimizer.lr: unknown setting"),
        ({"grid": {RATE: [1, -1]}}, f"grid.{RATE}[1]: expected more than 0, got -1"),
        ({"grids": {}}, "grids: unknown field; did you mean grid?"),
    ],
)
def test_an_impossible_sweep_is_refused_without_a_control_plane(lectern, tmp_path, fields, words):
    ended = lectern("sweep", write_sweep(tmp_path, **fields), "--url", "http://127.0.0.1:1")
    assert ended.code == 2
    assert words in ended.err


def test_a_file_that_is_none_is_named(lectern, tmp_path):
    missing = lectern("sweep", tmp_path / "no.yaml")
    assert (missing.code, "no file" in missing.err) == (3, True)
    (tmp_path / "empty.yaml").write_text("")
    empty = lectern("sweep", tmp_path / "empty.yaml")
    assert empty.code == 2 and "A minimal sweep" in empty.err
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    assert "name given twice" in lectern("sweep", tmp_path / "twice.yaml").err
