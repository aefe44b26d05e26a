"""The programs of examples/ run as they stand, those of docs/python.md but for their paths."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lectern import connect_teacher
from lectern_common.errors import LecternError
from lectern_common.run.folder import RunFolder
from tests.examples.conftest import EXAMPLES, TinyHome
from tests.support.servers import ROOT
from tests.support.stack import PATIENCE_SECONDS, control_plane

PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def started(program: str, *words: object) -> subprocess.Popen[str]:
    """Starts a program of examples/ with this interpreter."""
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table_of(process: subprocess.Popen[str]) -> list[list[str]]:
    """Waits for the program; returns the table that it ends with, in words."""
    try:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    lines = [line.split() for line in output.splitlines()]
    # Above it stands what the library logs.
    begins = next(index for index, words in enumerate(lines) if words[0] in ("epoch", "run"))
    return lines[begins:]


def run_block(folder: Path, holds: str, changes: dict[str, str]) -> dict[str, Any]:
    """Runs the page's block that holds these words, with `changes`; returns its variables."""
    (block,) = (block for block in BLOCKS if holds in block)
    for old, new in changes.items():
        assert old in block
        block = block.replace(old, new)
    path = folder / "block.py"
    path.write_text(block)
    return runpy.run_path(str(path))


@pytest.mark.long
def test_a_distillation_in_one_process(home: TinyHome, tmp_path: Path) -> None:
    sizes = ("--epochs", 2, "--batches", 4, "--batch-size", 4, "--seq-len", 16)
    output = tmp_path / "student"
    program = started("distil.py", "--home", home.path, "--output", output, *sizes)
    header, *epochs = table_of(program)
    assert header == ["epoch", "loss", "ce", "kd"]
    losses = [[float(word) for word in epoch[1:]] for epoch in epochs]
    assert len(losses) == 3
    assert losses[-1][0] < losses[0][0]
    assert (output / "model.safetensors").exists()


@pytest.mark.long
def test_runs_over_rest_that_share_a_teacher(
    home: TinyHome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hidden.yaml").write_text(yaml.safe_dump(home.example("hidden")))
    Path("run.yaml").write_text(yaml.safe_dump(home.example("labels-only")))
    with control_plane(home, "--max-running-runs", "3") as client:
        program = started("two_runs.py", "--url", client.url, "--spec", "hidden.yaml")
        run_block(tmp_path, "Client(", {"http://127.0.0.1:8080": client.url})
        state, *evaluations = capsys.readouterr().out.splitlines()
        header, *rows = table_of(program)
        names = [client.get_run(row[0]).name for row in rows]
    assert state.strip() == "succeeded"
    losses = [float(line.split()[1]) for line in evaluations]
    assert losses[-1] < losses[0]
    assert header == ["run", "state", "before", "after", "val/kl"]
    assert names == ["hidden-t1", "hidden-t4"]
    for _, ended, before, after, kl in rows:
        assert ended == "succeeded"
        assert float(after) < float(before)
        assert float(kl) > 0


def test_the_pages_distillation_in_one_process(
    home: TinyHome, labels_only: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("models", "data"):
        Path(folder).mkdir()
    Path("models/teacher").symlink_to(home.path / "models" / "teacher")
    Path("models/student").symlink_to(labels_only.export_path)
    Path("data/my-code").symlink_to(home.path / "data" / "stdlib")
    made = run_block(
        tmp_path, "InProcessTeacher(", {"batches_per_epoch=100": "batches_per_epoch=4"}
    )
    losses = made["pipeline"].execute().metrics["loss"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_the_pages_teacher_over_the_network(home: TinyHome, tmp_path: Path) -> None:
    changes = {
        "gpu-1:50051": home.teacher_address,
        "151936": "320",
        "785, 3974": "5, 7",
        "785": "5",
    }
    rows = run_block(tmp_path, "connect_teacher(", changes)["rows"]
    assert [len(row) for row in rows] == [320, 320]


def test_a_teacher_with_fewer_logits_is_refused_at_the_first_call(home: TinyHome) -> None:
    with (
        connect_teacher(home.teacher_address, vocab_size=321) as teacher,
        pytest.raises(LecternError, match="321"),
    ):
        teacher.logits_for_batch([[5]])
