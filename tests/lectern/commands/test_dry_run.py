"""What a dry run prints, and that it writes nothing.

Its child is mostly a stand-in; tests/student_trainer/run/test_dry_run.py tests the real one.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lectern.commands.dry_run import table
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import load_spec
from tests.support.models import write_tiny_model
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher

SHAPE = {
    "num_parameters": 1200,
    "num_trainable": 1000,
    "num_layers": 1,
    "hidden_size": 16,
    "mlp_size": 32,
    "query_size": 16,
    "key_size": 8,
    "num_heads": 4,
    "vocab_size": 40,
    "num_outside": 640,
    "num_largest_layer": 560,
    "keeps_scores": False,
}
LOOKED: dict[str, Any] = {
    "checks": [{"subject": "device", "outcome": "pass", "message": "cpu"}],
    "shape": SHAPE,
    "memory": {"parameters": 4800, "gradients": 4000, "teacher_head": 0, "answers": 1500},
    "free": {"device": "cpu", "device_bytes": 8_000_000, "host_bytes": 8_000_000},
    "needed_bytes": 10_300,
}
_CHILD = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "asked.json").write_text(json.dumps([sys.argv[1:], json.load(sys.stdin)]))
print(json.dumps({looked!r}))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a config and a dataset of 240 tokens."""
    home = tmp_path / "home"
    (home / "models/tiny").mkdir(parents=True)
    (home / "models/tiny/config.json").write_text(json.dumps({"vocab_size": 40}))
    write_shards(home / "data/text", [index % 40 for index in range(241)], vocab_size=40)
    return home


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Returns a function that puts a child with these findings before the real one."""

    def put(**looked: Any) -> Path:
        program = _CHILD.replace("{looked!r}", repr({**LOOKED, **looked}))
        package = stand_in_package(tmp_path, program)
        monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
        return package / "run" / "asked.json"

    return put


def stand_in_package(tmp_path: Path, program: str) -> Path:
    """Returns a package student_trainer in which only run.dry_run can be run."""
    package = tmp_path / "stand-in/student_trainer"
    (package / "run").mkdir(parents=True, exist_ok=True)
    for folder in (package, package / "run"):
        (folder / "__init__.py").write_text("")
    (package / "run" / "dry_run.py").write_text(program)
    return package


def write_spec(home: Path, **changes: Any) -> Path:
    spec: dict[str, Any] = {
        "name": "run",
        "student": {"config": "tiny"},
        "data": {"path": "text", "seq_len": 8, "validation_fraction": 0.2},
        "objective": {"alpha": 1},
        "schedule": {"steps": 30, "warmup_steps": 1},
        "checkpoint": {"every_steps": 5},
        "batch": {"sequences_per_step": 4},
        **changes,
    }
    path = home.parent / "spec.yaml"
    path.write_text(json.dumps(spec))  # JSON is YAML
    return path


def distilling(address: str, **teacher: Any) -> dict[str, Any]:
    return {"teacher": {"address": address, **teacher}, "objective": {"alpha": 0.5}}


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_estimate_is_printed_as_json_and_nothing_is_written(lectern, home, stand_in):
    asked, spec, before = stand_in(), write_spec(home), everything_under(home)

    ended = lectern("train", spec, "--home", home, "--dry-run", "--json")

    assert ended.code == 0, ended
    assert everything_under(home) == before
    found = ended.json
    assert found["ok"] is True
    assert {check["subject"]: check["outcome"] for check in found["checks"]} == {
        "folder": "pass",
        "data": "pass",
        "student": "pass",
        "device": "pass",
    }
    assert found["spec"]["optimizer"]["weight_decay"] == 0.1
    estimate = found["estimate"]
    assert estimate["tokens_per_step"] == 4 * 8
    assert estimate["tokens"] == 30 * 32
    assert estimate["epochs"] == 30 * 4 / 24  # 30 rows, 6 of them held out
    assert estimate["wire"] is None and estimate["teacher_hours"] is None
    assert estimate["checkpoint_bytes"] == 12 * 1000
    assert estimate["checkpoints"] == 4  # keep_last 2, keep_best 1, one being written
    assert estimate["disk_bytes"] == 4 * 12_000 + 4 * 1200
    assert estimate["memory"] == LOOKED["memory"]
    assert estimate["free_disk_bytes"] > 0
    arguments, sent = json.loads(asked.read_text())
    assert arguments == []
    assert sent == found["spec"]


def test_without_json_the_estimate_is_an_aligned_table(lectern, home, stand_in):
    stand_in()

    ended = lectern("train", write_spec(home), "--home", home, "--dry-run")

    spec, checks, figures = ended.out.split("\n\n")
    assert "weight_decay: 0.1" in spec
    assert "pass  device     cpu" in checks
    assert figures.splitlines()[:5] == [
        "tokens       960  in 30 steps of 32",
        "            5.00  epochs over 24 rows",
        "student    1,000  trainable parameters; 200 more are frozen",
        "memory   10.3 kB  in tensors, on cpu; 8 MB free",
        "          4.8 kB  parameters",
    ]
    assert "the student's speed is unknown before the first step" in figures.splitlines()[-1]
    assert "time           ?" in figures


def test_a_teacher_adds_the_wire_and_the_hours(lectern, home, stand_in):
    """2 k tokens a second for 30 steps of 32 tokens, and two evaluations of 6 rows."""
    asked = stand_in(
        checks=[{"subject": "answers", "outcome": "pass", "message": "hidden is consistent"}]
    )
    teacher = WireTeacher()
    teacher.model.measured_tokens_per_second = 2.0
    with Serving(teacher) as serving:
        path = write_spec(home, **distilling(serving.address))
        found = lectern("train", path, "--home", home, "--dry-run", "--json").json
        said = lectern("train", path, "--home", home, "--dry-run").out

        sampled = write_spec(home, **distilling(serving.address, representation="sampled"))
        drawn = lectern("train", sampled, "--home", home, "--dry-run", "--json").json

    assert json.loads(asked.read_text())[0] == ["--ask-teacher"]
    assert found["estimate"]["wire"] == {
        "bytes_per_token": 64,
        "bytes_per_step": 64 * 32,
        "at_most": False,
        "head_bytes": 4 * 40 * 16,
    }
    assert found["estimate"]["teacher_tokens"] == 30 * 32 + 2 * 6 * 8
    assert found["estimate"]["teacher_hours"] == (30 * 32 + 2 * 6 * 8) / 2 / 3600
    assert "wire     2.05 kB  per step of hidden: 64 bytes per token" in said
    assert "2.56 kB  the teacher's output head, once per machine" in said
    assert "time       9 min  for the teacher only: 1,056 tokens at 2 a second" in said
    assert drawn["estimate"]["wire"]["at_most"] is True
    assert drawn["estimate"]["wire"]["bytes_per_token"] == 8 * 40  # 50 draws of 40 ids
    assert drawn["estimate"]["wire"]["head_bytes"] == 0


@pytest.mark.parametrize(
    ("check", "code"),
    [
        ({"outcome": "fail", "message": "too little", "reason": "misconfigured"}, 2),
        ({"outcome": "fail", "message": "no promise kept", "reason": "teacher_error"}, 8),
        ({"outcome": "warn", "message": "lower batch.micro_batch_sequences"}, 0),
        ({"outcome": "warn", "message": "tight", "advice": "set device.kind: cpu"}, 0),
    ],
)
def test_what_the_child_finds_is_among_the_checks(lectern, home, stand_in, check, code):
    stand_in(checks=[{"subject": "memory", **check}])

    ended = lectern("train", write_spec(home), "--home", home, "--dry-run")

    assert ended.code == code
    words = "; ".join(filter(None, (check["message"], check.get("advice"))))
    assert f"{check['outcome']:<5} memory     {words}\n" in ended.out
    last = f"error: 1 of 4 checks failed\nfail  memory     {check['message']}\n"
    assert ended.err == (last if code else "")


def test_a_failed_check_sets_the_exit_status_and_the_rest_is_still_printed(lectern, home, stand_in):
    asked = stand_in()

    ended = lectern(
        "train", write_spec(home, **distilling("127.0.0.1:1")), "--home", home, "--dry-run"
    )

    assert ended.code == 7
    assert "fail  teacher    no teacher at 127.0.0.1:1" in ended.out
    assert "wire           ?  unknown: the teacher did not answer" in ended.out
    assert "tokens       960  in 30 steps of 32" in ended.out
    assert json.loads(asked.read_text())[0] == []  # an absent teacher is not probed
    assert ended.err.startswith("error: 1 of 5 checks failed\nfail  teacher    no teacher at")


def test_a_resume_is_estimated_from_its_checkpoint(lectern, home, stand_in):
    stand_in()
    spec = write_spec(home)
    folder = RunFolder.create(home / "runs", "run", load_spec(spec))
    (folder.checkpoints_path / "step-00000020").mkdir(parents=True)
    words = ("--home", home, "--resume", "--dry-run")

    ended = lectern("train", spec, *words)
    found = lectern("train", spec, *words, "--json").json
    shorter = lectern("train", write_spec(home, schedule={"steps": 19, "warmup_steps": 1}), *words)

    assert "runs/run will be resumed from step 20" in ended.out
    assert "in 10 steps of 32; the run resumes from step 20 of 30" in ended.out
    assert (found["estimate"]["first_step"], found["estimate"]["tokens"]) == (20, 10 * 32)
    assert found["estimate"]["checkpoints"] == 2  # at steps 25 and 30
    assert shorter.code == 2
    assert (
        "fail  folder     schedule.steps: is 19, but the run has already made 20 steps"
        in shorter.err
    )


@pytest.mark.parametrize("documents", [None, [0, 500, 1000, 1500]], ids=["unknown", "known"])
def test_a_resume_counts_the_rows_that_its_run_began_with(lectern, home, stand_in, documents):
    """Of a release that cut chats at the ends of rows; packed, these would be four rows."""
    stand_in()
    tokens, mask = [index % 40 for index in range(2000)], [1] * 2000
    write_shards(home / "data/chats", tokens, documents=documents, mask=mask)
    data = {"path": "chats", "seq_len": 16, "attention_across_documents": True}
    data |= {"long_chats": None, "validation_fraction": 0.1}
    spec = write_spec(home, data=data, batch={"sequences_per_step": 8})
    run = RunFolder.create(home / "runs", "run", load_spec(spec))
    checkpoint = run.checkpoints_path / "step-00000020"
    checkpoint.mkdir(parents=True)
    words = ("train", spec, "--home", home, "--resume", "--dry-run", "--json")

    (checkpoint / "state.json").write_text('{"step": 20}')
    found = lectern(*words).json
    (checkpoint / "state.json").write_text('{"step": 20, "packs_chats": true}')
    packed = lectern(*words).json

    (said,) = [check for check in found["checks"] if check["subject"] == "data"]
    assert said["message"] == "chats: 2,000 tokens in 1 shard, 124 rows of 16"
    assert found["ok"] and found["chats"] is None
    assert found["estimate"]["epochs"] == pytest.approx(10 * 8 / 112)
    assert not packed["ok"]


def test_a_disk_that_is_too_small_is_a_warning(lectern, home, stand_in):
    stand_in(shape={**SHAPE, "num_trainable": 10**15})

    ended = lectern("train", write_spec(home), "--home", home, "--dry-run")

    assert ended.code == 0
    assert "warn  disk       checkpoints and export may need 48 PB, but only" in ended.out
    assert "lower checkpoint.keep_last" in ended.out


def test_a_trainer_that_does_not_start_is_a_failed_check(lectern, home, tmp_path, monkeypatch):
    package = tmp_path / "broken/student_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)

    ended = lectern("train", write_spec(home), "--home", home, "--dry-run")

    assert ended.code == 2
    assert (
        "fail  device     the trainer does not start: ImportError: no torch here; see " in ended.out
    )


def test_the_real_child_reports_its_findings(lectern, tmp_path):
    """Starts the child that loads torch; only the teacher is a stand-in."""
    home = tmp_path / "home"
    write_tiny_model(home / "models/tiny", weights=False, hidden=16, layers=1, vocab_size=40)
    write_shards(home / "data/text", [index % 40 for index in range(241)], vocab_size=40)
    before = everything_under(home)
    with Serving(WireTeacher()) as serving:
        path = write_spec(home, **distilling(serving.address))
        ended = lectern("train", path, "--home", home, "--dry-run", "--json")

    assert ended.code == 0, ended
    checks = {check["subject"]: check["message"] for check in ended.json["checks"]}
    assert checks["answers"] == "hidden at 8 positions is consistent and agrees with top_k"
    assert checks["memory"] == "the run fits into free memory"
    assert ended.json["estimate"]["memory"]["teacher_head"] == 4 * 40 * 16
    assert everything_under(home) == before


def test_figures_of_a_table_are_right_aligned():
    assert table([("a", "1", "x"), ("", "100", "y")]) == ["a    1  x", "   100  y"]


def test_the_shares_of_chats_are_told(lectern, home, stand_in):
    """Ten chats of 6 tokens, 3 of them learnt, and one of 20; 3 chats fit into 17 tokens."""
    stand_in()
    lengths = [6] * 10 + [20]
    write_shards(
        home / "data/chats",
        [index % 40 for index in range(80)],
        vocab_size=40,
        documents=[sum(lengths[:index]) for index in range(11)],
        mask=[int(place >= length // 2) for length in lengths for place in range(length)],
    )
    data = {"path": "chats", "seq_len": 16, "validation_fraction": 0.2}
    spec = write_spec(home, data=data, batch={"sequences_per_step": 2})
    found = lectern("train", spec, "--home", home, "--dry-run", "--json").json
    assert found["spec"]["data"]["attention_across_documents"] is False
    assert found["spec"]["data"]["long_chats"] == "cut"
    [check] = [check for check in found["checks"] if check["subject"] == "data"]
    assert check["message"] == "chats: 80 tokens in 1 shard, 11 chats"
    # The last two chats are held out; the others lie in four rows of two and one of one.
    assert found["chats"] == {
        "chats": 11,
        "training_chats": 9,
        "training_rows": 5,
        "held_out": 2,
        "held_out_rows": 2,
        "chats_cut": 1,
        "chats_dropped": 0,
        "chats_without_labels": 0,
        "chats_with_unknown_ids": 0,
        "padding": pytest.approx(1 - 9 * 6 / 80),
        "labels": 27,
        "labels_of_positions": pytest.approx(27 / 80),
        "labels_lost": pytest.approx(3 / 40),
    }
    assert found["estimate"]["epochs"] == 30 * 2 / 5
    assert found["estimate"]["tokens_per_step"] == round(2 * 9 * 6 / 5)
    said = lectern("train", spec, "--home", home, "--dry-run").out.splitlines()
    assert [line.strip() for line in said[-5:]] == [
        "chats          9  of 11 to train on, in 5 rows; 2 held out, in 2 rows",
        "1  longer than a row and cut (data.long_chats)",
        "32.5%  of training positions are padding",
        "33.8%  of training positions have a label that is learnt: 27",
        "7.5%  of the learnt labels are in no row",
    ]


def test_rows_of_text_with_few_unknown_ids_pass_with_a_note(lectern, home, stand_in):
    """Id 45 of row 3 is beyond the 40 of the student; of 30 rows one may be left out."""
    stand_in()
    tokens = [index % 40 for index in range(241)]
    tokens[28] = 45
    write_shards(home / "data/odd", tokens, vocab_size=50)
    data = {"path": "odd", "seq_len": 8, "validation_fraction": 0.2, "max_bad_rows_fraction": 0.04}
    ended = lectern("train", write_spec(home, data=data), "--home", home, "--dry-run")
    assert ended.code == 0
    assert (
        "pass  data       odd: 241 tokens in 1 shard, 30 rows of 8, 1 of them left out (1 with ids "
        "beyond the student's 40)"
    ) in ended.out
    assert "epochs over 23 rows" in ended.out
    assert "of 30 to train on, in 23 rows; 6 held out, in 6 rows" in ended.out
    assert "left out: with ids that the student lacks" in ended.out


def test_text_has_no_shares_of_chats(lectern, home, stand_in):
    stand_in()
    found = lectern("train", write_spec(home), "--home", home, "--dry-run", "--json").json
    assert found["chats"] is None
    assert found["spec"]["data"]["attention_across_documents"] is True
    assert found["spec"]["data"]["long_chats"] is None
