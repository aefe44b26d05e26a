"""`lectern precompute` as a process of its own, and `lectern record`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import stack
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process
from tests.support.training.runs import VOCAB_SIZE, Home


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a record `answers`, and specs that make and use it; the teacher is gone."""
    home = Home(tmp_path_factory.mktemp("home"))
    model = write_tiny_model(home.path / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)
    with teacher_process(home.path, "--model", str(model), "--threads", "1") as teacher:
        online = home.spec(
            "online",
            objective={"alpha": 0.2, "temperature": 1},
            teacher={"address": teacher.address, "representation": "top_k", "top_k": 8},
        )
        written(home, "online.yaml", online.model_dump(mode="json"))
        done = stack.lectern(
            "precompute", home.path / "online.yaml", "--output", "answers", "--home", home.path
        )
    assert done.code == 0, done.err
    assert "training: 26.0 bytes a token, KL to the teacher" in done.err
    assert "`teacher: {record: answers}`" in done.err
    offline = online.model_dump(mode="json")
    offline["name"] = "offline"
    offline["teacher"] = {"record": "answers", "representation": "top_k", "top_k": 8}
    written(home, "offline.yaml", offline)
    return home


def written(home: Home, name: str, spec: dict) -> Path:
    path = home.path / name
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.fixture
def run(lectern: Callable[..., Any], recorded: Home) -> Callable[..., Any]:
    """Returns a function that runs `lectern ...` with this home."""
    return lambda *words: lectern(*words, "--home", recorded.path)


@pytest.mark.long
def test_a_run_learns_from_a_record_without_its_teacher(run, recorded):
    done = run("train", recorded.path / "offline.yaml", "--dry-run")
    assert done.code == 0, done.out + done.err
    done = run("train", recorded.path / "offline.yaml")
    assert done.code == 0, done.err
    done = run("train", recorded.path / "online.yaml")
    assert done.code == 7  # its teacher is gone


def test_records_are_listed_shown_and_verified(run, recorded):
    done = run("record", "list")
    assert done.out.startswith("answers: top_k 8 at temperature 1; teacher; ")
    [facts] = json.loads(run("record", "list", "--json").out)
    assert facts["name"] == "answers"
    [part] = facts["parts"]
    assert 230 <= part["sequences"] <= 249  # equal rows are recorded once
    assert part["rows"] == 8 * part["sequences"]
    shown = run("record", "show", "answers").out
    counts = f"{part['rows']:,} tokens of {part['sequences']} sequences, 26.0 bytes a token"
    assert f"training: top_k 8 at temperature 1, {counts}" in shown
    assert "all intact" in run("record", "verify", "answers").out


def test_a_record_that_is_not_there_is_named_beside_those_that_are(run, recorded):
    done = run("record", "show", "answer")
    assert done.code == 3
    assert "there: answers" in done.err
    spec = yaml.safe_load((recorded.path / "offline.yaml").read_text())
    spec["teacher"]["record"], spec["name"] = "answer", "typo"
    done = run("train", written(recorded, "typo.yaml", spec), "--dry-run")
    assert done.code == 2
    assert "there: answers" in done.out + done.err


def test_a_damaged_record_is_named(run, recorded, tmp_path):
    rows = recorded.roots.data / "answers" / "training" / "rows.bin"
    whole = rows.read_bytes()
    try:
        rows.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = run("record", "verify", "answers")
    finally:
        rows.write_bytes(whole)
    assert done.code == 1
    assert "rows.bin is not what the record's manifest says" in done.err


def test_only_records_are_deleted(run, recorded):
    done = run("record", "delete", "text", "--yes")
    assert done.code != 0
    assert (recorded.roots.data / "text" / "manifest.json").exists()
    copy = recorded.roots.data / ".other.recording"
    copy.mkdir()
    assert run("record", "delete", "other", "--yes").code == 0
    assert not copy.exists()
    assert run("record", "delete", "other", "--yes").code == 3


def test_a_record_in_a_folder_is_listed_and_deleted(run, recorded):
    data = recorded.roots.data
    shutil.copytree(data / "answers", data / "kept" / "answers")
    (data / "kept" / ".answers.recording").mkdir()
    done = run("record", "list")
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["answers", "kept/answers"]
    assert run("record", "delete", "kept/answers", "--yes").code == 0
    assert list((data / "kept").iterdir()) == []
