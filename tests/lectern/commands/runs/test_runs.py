"""`lectern runs` against a real control plane whose trainers are stand-ins."""

from pathlib import Path
from typing import Any

import pytest

from lectern.client import Client
from lectern.local.processes import wait_until
from lectern_common.json_lines import append_json_line
from lectern_common.run.checkpoint_files import manifest_of, write_json
from lectern_common.run.status import RunState

DEADLINE_SECONDS = 30.0
SUCCEEDS, FAILS, GOES_ON = range(3)


def write_spec(folder: Path, how: int, extra: str = "") -> Path:
    path = folder / f"spec-{how}.yaml"
    path.write_text(
        f"name: run\nseed: {how}\nstudent: {{config: tiny}}\nobjective: {{alpha: 1}}\n"
        f"data: {{kind: synthetic, seq_len: 8}}\nschedule: {{steps: 3, warmup_steps: 1}}\n{extra}"
    )
    return path


def test_a_run_is_created_watched_listed_and_shown(runs, home):
    created = runs("create", write_spec(home, SUCCEEDS), "--watch")
    run_id = created.out.split()[0]
    assert created.code == 0, created
    assert f"{run_id}  succeeded  step 3/3  loss/total 1.0000" in created.out
    export = home / "runs" / run_id / "export"
    said = f"{run_id}: the trained student is in {export}\n"
    assert export.is_dir() and created.err == said
    assert runs("watch", run_id).err == said

    listed = runs("list", "--json").json
    assert [(run["id"], run["state"]) for run in listed] == [(run_id, "succeeded")]
    assert "succeeded" in runs("list").out
    assert runs("list", "--state", "failed", "--json").json == []
    assert runs("list", "--state", "failed").err == "no run is failed\n"

    shown = runs("show", run_id, "--json").json
    assert shown["spec"]["schedule"]["steps"] == 3
    assert f"id: {run_id}" in runs("show", run_id).out
    assert "started with" in runs("logs", run_id).out
    assert runs("logs", run_id, "--tail", "1", "--json").json["run_id"] == run_id


def test_a_run_is_deleted_once_it_is_at_rest(runs, home):
    run_id = runs("create", write_spec(home, SUCCEEDS), "--watch").out.split()[0]
    asked = runs("delete", run_id)
    assert (asked.code, "--yes" in asked.err) == (2, True)
    assert (home / "runs" / run_id).is_dir()
    ended = runs("delete", run_id, "no-such-run", "--yes")
    assert (ended.code, ended.out) == (3, f"{run_id}  deleted\n")
    assert "no run no-such-run" in ended.err
    assert not (home / "runs" / run_id).exists()
    assert runs("list", "--json").json == []

    going = runs("create", write_spec(home, GOES_ON)).out.strip()
    refused = runs("delete", going, "--yes")
    assert (refused.code, refused.out) == (4, "")
    assert f"stop it first (`lectern runs stop {going}`)" in refused.err


def test_samples_are_printed_side_by_side_without_escape_sequences(runs, home):
    run_id = runs("create", write_spec(home, SUCCEEDS), "--watch").out.split()[0]
    assert runs("samples", run_id).err.startswith("no samples")
    sample = {"step": 3, "prompt": "def", "student": " add(\x1b[31m\n  one", "teacher": None}
    append_json_line(home / "runs" / run_id / "samples.jsonl", sample)
    append_json_line(home / "runs" / run_id / "samples.jsonl", {**sample, "teacher": " sum"})
    both = runs("samples", run_id, "--json").json["samples"]
    assert both == [{**sample, "teacher": " sum"}] * 2  # a teacher's answer is the same each time
    shown = runs("samples", run_id, "--limit", "1").out.splitlines()
    assert shown == [
        "step 3",
        "  prompt   def",
        "  student   add(?[31m",
        "             one",
        "  teacher   sum",
    ]


def test_tokens_that_do_not_serve_say_what_is_wrong_with_them(runs, home, monkeypatch):
    monkeypatch.setenv("LECTERN_TOKEN", "wrong")
    wrong = runs("list")
    assert (wrong.code, wrong.err.split(":")[1]) == (5, " the bearer token is wrong")
    assert "the right one lies in secrets/control-plane" in wrong.err

    read = (home / "secrets/control-plane-read").read_text().strip()
    monkeypatch.setenv("LECTERN_TOKEN", read)
    assert runs("list").code == 0
    for words in (("create", write_spec(home, SUCCEEDS)), ("stop", "a-1")):
        refused = runs(*words)
        assert (refused.code, refused.err) == (
            5,
            "error: this token may only read (GET); use the full one\n",
        )


def test_watching_a_run_that_fails_exits_with_1(runs, tmp_path):
    ended = runs("create", write_spec(tmp_path, FAILS), "--watch")

    assert ended.code == 1
    assert "the loss is not finite" in ended.out


def test_a_run_is_stopped_and_resumed_with_more_steps(runs, tmp_path, url):
    run_id = runs("create", write_spec(tmp_path, GOES_ON), "--json").json["id"]
    with Client(url) as service:
        at_work = lambda: service.get_run(run_id).state is RunState.RUNNING  # noqa: E731
        assert wait_until(at_work, DEADLINE_SECONDS), runs("show", run_id).out

        stopped = runs("stop", run_id, "--wait")
        assert stopped.out == f"{run_id}  stopped\n"
        again = runs("stop", run_id)
        assert again.code == 0

        refused = runs("resume", run_id, "--set", "optimizer.learning_rate=1")
        assert refused.code == 2
        assert "optimizer.learning_rate" in refused.err
        resumed = runs("resume", run_id, "--set", "schedule.steps=5", "--json")
        assert resumed.json[0]["id"] == run_id
        assert wait_until(at_work, DEADLINE_SECONDS)
        assert service.get_run(run_id).json["spec"]["schedule"]["steps"] == 5
        twice = runs("resume", run_id)
        assert twice.code == 4
        assert runs("stop", run_id, "--wait").code == 0
        assert [record["step"] for record in service.metrics(run_id, after_step=2)][:1] == [3]


def test_a_run_is_stopped_at_its_next_checkpoint(runs, tmp_path, url):
    run_id = runs("create", write_spec(tmp_path, GOES_ON), "--json").json["id"]
    with Client(url) as service:
        at_work = lambda: service.get_run(run_id).state is RunState.RUNNING  # noqa: E731
        assert wait_until(at_work, DEADLINE_SECONDS), runs("show", run_id).out
    stopped = runs("stop", run_id, "--at-checkpoint", "--wait", "--json").json[0]
    assert (stopped["state"], stopped["reason"], stopped["stop_at"]) == ("stopped", "stopped", None)
    assert stopped["message"] == "stopped at the checkpoint of step 3, as asked"
    assert runs("stop", run_id, "--at-checkpoint").code == 0


def write_checkpoint(folder: Path, spec: dict[str, Any], step: int = 2) -> None:
    """Writes a checkpoint as a trainer does, of empty tensors."""
    path = folder / f"checkpoints/step-{step:08d}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        (path / name).write_bytes(b"weights")
    write_json(path / "state.json", {"step": step, "spec": spec})
    write_json(path / "manifest.json", manifest_of(path))


def test_a_run_is_forked_from_a_checkpoint(runs, home):
    run_id = runs("create", write_spec(home, SUCCEEDS), "--watch").out.split()[0]
    assert runs("fork", run_id).code == 4  # it has no checkpoint
    write_checkpoint(home / "runs" / run_id, runs("show", run_id, "--json").json["spec"])
    words = ("--set", "optimizer.learning_rate=1e-3", "--set", "schedule.steps=9")
    forked = runs("fork", run_id, "--checkpoint", "2", *words, "--json").json
    assert forked["name"] == "run-fork"
    assert forked["forked_from"] == {"run_id": run_id, "step": 2}
    named = runs("fork", run_id, "--name", "other", "--watch")
    assert named.code == 0 and named.out.split()[0].startswith("other-")
    shown = runs("show", forked["id"]).out
    assert f"forked_from:\n  run_id: {run_id}\n  step: 2\n" in shown
    assert "learning_rate: 0.001" in shown
    for wrong, code in (
        (["--checkpoint", "3"], 2),
        (["--set", "student.lora={}"], 2),
        (["--set", "schedule.steps=2"], 2),
        (["--set", "steps"], 2),
    ):
        refused = runs("fork", run_id, *wrong)
        assert (refused.code, refused.out) == (code, ""), refused
    assert runs("fork", "nothing").code == 3


def test_an_impossible_run_is_refused_and_leaves_nothing(runs, home):
    for extra, words in (
        ("teachr: {}\n", "teachr: unknown field; did you mean teacher?"),
        ("optimizer: {weight_decay: -1}\n", "optimizer.weight_decay: "),
    ):
        ended = runs("create", write_spec(home, SUCCEEDS, extra))
        assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1

    spec = write_spec(home, SUCCEEDS)
    spec.write_text(spec.read_text().replace("kind: synthetic", "path: nowhere"))
    missing = runs("create", spec)
    assert missing.code == 2
    assert missing.err.startswith("error: data.path: no dataset 'nowhere'")

    spec = write_spec(home, SUCCEEDS)
    spec.write_text(
        spec.read_text().replace("objective: {alpha: 1}", "teacher: {address: 127.0.0.1:1}")
    )
    down = runs("create", spec)
    assert down.code == 7
    assert down.err.startswith("error: no teacher at 127.0.0.1:1")
    assert down.err.count("\n") == 1

    assert runs("list", "--json").json == []
    assert [path.name for path in (home / "runs").iterdir() if path.is_dir()] == []


def test_one_refused_run_does_not_hold_up_the_others(runs, tmp_path):
    first, second = (
        runs("create", write_spec(tmp_path, GOES_ON), "--json").json["id"] for _ in range(2)
    )
    stopped = runs("stop", "no-such-run", first, second, "--wait")
    assert stopped.code == 3
    assert stopped.err == "error: no run no-such-run\n"
    assert stopped.out == f"{first}  stopped\n{second}  stopped\n"

    resumed = runs("resume", first, "no-such-run", second)
    assert resumed.code == 3
    assert resumed.out == f"{first}  queued\n{second}  queued\n"
    assert runs("stop", first, second, "--wait").code == 0


def test_an_unknown_run_is_not_found(runs):
    for words in (["show"], ["logs"], ["stop"], ["resume"], ["watch"]):
        ended = runs(*words, "no-such-run")
        assert ended.code == 3
        assert ended.err == "error: no run no-such-run\n"


def test_watching_without_runs_returns_at_once(runs):
    assert runs("watch").code == 0
    assert "no runs yet" in runs("list").err


def test_an_unknown_state_is_refused_before_any_request(lectern):
    assert lectern("runs", "list", "--state", "dreaming", "--url", "http://127.0.0.1:1").code == 2


@pytest.mark.parametrize(
    "changes",
    [
        ["steps"],
        ["=3"],
        ["schedule.=3"],
        ["x=2001-99-99"],
        ["x=2001-01-01"],
        ["x=.inf"],
        ["x=!!bool x"],
        ["x=[1"],
        ["x=&a [*a]"],
        ["schedule=1", "schedule.steps=2"],
    ],
)
def test_an_invalid_change_is_refused_before_any_request(lectern, changes):
    words = [word for change in changes for word in ("--set", change)]
    ended = lectern("runs", "resume", "run-1", *words, "--url", "http://127.0.0.1:1")
    assert ended.code == 2
    assert f"{changes[-1]!r} is not FIELD=VALUE" in " ".join(ended.err.split())


def test_runs_are_pruned_after_they_were_listed(runs, tmp_path):
    first, second = (
        runs("create", write_spec(tmp_path, SUCCEEDS), "--watch").out.split()[0] for _ in range(2)
    )
    none = runs("prune", "--yes")
    assert (none.code, "--older-than" in none.err) == (2, True)
    assert runs("prune", "--older-than", "soon").code == 2
    assert runs("prune", "--state", "running").code == 2
    assert runs("prune", "--older-than", "30d").out == "no run meets these criteria\n"
    plan = runs("prune", "--keep-newest", "1")
    assert plan.out.splitlines()[0].startswith(f"{first}  succeeded  since ")
    assert plan.out.splitlines()[1].startswith("1 run; deleting would free ")
    assert plan.err == "nothing was deleted; --yes deletes them\n"
    assert len(runs("list", "--json").json) == 2
    done = runs("prune", "--keep-newest", "1", "--state", "succeeded", "--yes")
    assert "1 run deleted: " in done.out and done.err == ""
    assert [run["id"] for run in runs("list", "--json").json] == [second]
    assert runs("prune", "--state", "succeeded", "--json").json["deleted"] == 0


def test_the_list_says_that_the_disk_fills_and_how_much_a_run_takes(runs, url, monkeypatch):
    from lectern.client import DiskStatus

    sentence = "the disk of the runs fills: 3 GB free; full in 5.0 h"
    monkeypatch.setattr(Client, "disk", lambda _: DiskStatus(10, 3, 1, False, sentence))
    assert sentence in runs("list").err
    monkeypatch.setattr(Client, "disk", lambda _: DiskStatus(10, 3, 1, False))
    assert "disk" not in runs("list").err
