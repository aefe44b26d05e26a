"""`lectern demo` as a user starts it, with few steps: what it writes, reuses and stops."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lectern_common.json_lines import read_json_lines
from tests.support.servers import ROOT, wait_for
from tests.support.stack import PATIENCE_SECONDS, lectern, marked_processes

STEPS = 4
STEP_OPTIONS = ("--teacher-steps", str(STEPS), "--student-steps", str(STEPS))
TEACHER_FIELDS = {"parameters", "val_loss", "weights_sha256", "fingerprint"}
RUN_FIELDS = {
    *("id", "name", "alpha", "temperature", "representation", "steps", "learning_rate"),
    *(
        "record",
        "initial_weights_sha256",
        "weights_sha256",
        "val_loss_start",
        "val_loss_end",
        "tokens_per_second",
    ),
    *("teacher_wait_share", "wire_bytes_per_token", "export"),
}
SHA256 = re.compile("[0-9a-f]{64}")
LOSS_OF_GUESSING = np.log(2048)


@pytest.mark.long
def test_the_demo_shows_four_runs_and_a_second_start_keeps_its_teacher(
    tmp_path: Path, mark: str
) -> None:
    folder = tmp_path / "demo"
    ended = lectern("demo", "--exit", "--folder", folder, *STEP_OPTIONS)
    assert ended.code == 0, ended.err
    assert marked_processes(mark) == []
    summary = json.loads((folder / "summary.json").read_text())
    require_teacher(summary["teacher"], folder)
    require_runs(summary["runs"], folder)
    assert "\u2026" not in ended.out  # nothing is cut off at 80 columns
    for run in summary["runs"]:
        assert run["name"] in ended.out
        require_loads(Path(run["export"]))
    assert "it has the weights of distilled-hidden, bit by bit" in " ".join(ended.out.split())
    require_kept(folder)


def require_teacher(teacher: dict[str, Any], folder: Path) -> None:
    assert teacher.keys() == TEACHER_FIELDS
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / "demo-teacher")
    assert teacher["parameters"] == model.num_parameters()
    assert 0 < teacher["val_loss"] < LOSS_OF_GUESSING
    assert SHA256.fullmatch(teacher["weights_sha256"])
    assert SHA256.fullmatch(teacher["fingerprint"])


def require_runs(runs: list[dict[str, Any]], folder: Path) -> None:
    assert all(run.keys() == RUN_FIELDS for run in runs)
    assert [(run["name"], run["alpha"], run["representation"]) for run in runs] == [
        ("cross-entropy", 1, None),
        ("distilled-hidden", 0, "hidden"),
        ("distilled-top-k", 0.1, "top_k"),
        ("distilled-recorded", 0, "hidden"),
    ]
    for field in ("initial_weights_sha256", "val_loss_start", "steps", "learning_rate"):
        assert len({run[field] for run in runs}) == 1, field
    assert SHA256.fullmatch(runs[0]["initial_weights_sha256"])
    for run in runs:
        assert run["steps"] == STEPS
        assert run["temperature"] > 0
        assert run["val_loss_end"] < run["val_loss_start"] < LOSS_OF_GUESSING + 0.5
        assert run["tokens_per_second"] > 0
        assert 0 <= run["teacher_wait_share"] <= 1
        assert run["export"] == str(folder / "runs" / run["id"] / "export")
        lines = read_json_lines(folder / "runs" / run["id"] / "metrics.jsonl")
        assert lines[0]["loss/val"] == run["val_loss_start"]
        assert lines[-1]["loss/val"] == run["val_loss_end"]
    teacher = json.loads((folder / "models" / "demo-teacher" / "config.json").read_text())
    cross_entropy, hidden, top_k, recorded = (run["wire_bytes_per_token"] for run in runs)
    assert cross_entropy is recorded is None
    assert runs[3]["record"] == "demo-answers"
    assert runs[3]["weights_sha256"] == runs[1]["weights_sha256"]
    assert 1 < hidden / (4 * teacher["hidden_size"]) < 1.02
    assert 1 < top_k / (8 * 64) < 1.05
    assert runs[0]["teacher_wait_share"] == 0


def require_loads(export: Path) -> None:
    """FALSIFY-TRAIN-001: plain transformers loads it, and it holds the trained weights."""
    model = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    text = "def read(self, size=-1):\n    return"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text
    trained = Tokenizer.from_file(str(export / "tokenizer.json"))
    for text in (" 1234", "a  =  [1, 23]\n\n\t\tb\r\n", "e\u0301 \u65e5\u672c"):
        assert tokenizer(text)["input_ids"] == trained.encode(text).ids
    ends = json.loads((export / "generation_config.json").read_text())["eos_token_id"]
    assert (ends, tokenizer.eos_token_id) == (0, 0)
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.shape == (1, ids.shape[1], 2048)
    assert torch.isfinite(logits).all()
    metadata = json.loads((export / "distillation_metadata.json").read_text())
    assert metadata["student_weights_sha256"] != metadata["initial_weights_sha256"]


def require_kept(folder: Path) -> None:
    """A second start reuses data and teacher; Ctrl-C stops it and all its processes."""
    before = stamps(folder)
    said = folder.parent / "second-start"
    with said.open("wb") as output:
        second = subprocess.Popen(
            [
                *(sys.executable, "-m", "lectern", "demo", "--folder", str(folder)),
                *STEP_OPTIONS,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: "starting the teacher server" in said.read_text() or second.poll())
        second.send_signal(signal.SIGINT)
        assert second.wait(PATIENCE_SECONDS) == 130
    finally:
        second.kill()
        second.wait()
    assert said.read_text().count("kept from before") == 2
    assert stamps(folder) == before


def stamps(folder: Path) -> dict[Path, int]:
    """Returns when each file of data and teacher was written."""
    parts = (folder / "data", folder / "models" / "demo-teacher")
    files = [path for part in parts for path in part.rglob("*") if path.is_file()]
    assert files
    return {path: path.stat().st_mtime_ns for path in files}
