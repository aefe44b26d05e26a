"""rollouts.jsonl: what it holds, how large it may become, and what a resume makes of it."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import DiskFull
from lectern_common.json_lines import read_json_lines
from student_trainer.generating.rollouts import kept as kept_module
from student_trainer.generating.rollouts.kept import KeptRollouts
from student_trainer.generating.rollouts.plan import Slot
from student_trainer.generating.rollouts.rows import Rollout


def rollout(tokens: int, row: int = 0, prompt: int = 2) -> Rollout:
    return Rollout(Slot(0, row, 0, 0), np.arange(prompt, dtype=np.uint32), [7] * tokens, None)


def kd(tokens: int) -> np.ndarray:
    return np.linspace(0, 1, tokens)


def test_the_steps_that_are_kept_are_spread_over_the_run(tmp_path: Path) -> None:
    for steps in (1, 7, 400, 401, 1000, 123_456):
        kept = KeptRollouts(tmp_path / "file", steps, None)
        due = [step for step in range(1, steps + 1) if kept.is_due(step)]
        assert due[0] == 1 and due[-1] == steps
        assert min(steps, 200) <= len(due) <= 402
        gaps = np.diff(due)
        assert not len(gaps) or gaps.max() <= math.ceil(steps / 400)


def test_a_step_keeps_its_first_rollouts_and_at_least_one(tmp_path: Path) -> None:
    kept = KeptRollouts(tmp_path / "file", 10, None)
    kept.add(1, ((rollout(3, row), kd(3)) for row in range(9)))
    kept.add(2, ((rollout(3000, row), kd(3000)) for row in range(9)))
    kept.add(3, [(rollout(9000, prompt=9000), kd(9000))])
    lines = read_json_lines(tmp_path / "file")
    assert [(line["step"], line["row"]) for line in lines] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 0),
        (3, 0),
    ]
    longest = lines[-1]
    assert len(longest["ids"]) == len(longest["kl"]) == len(longest["prompt_ids"]) == 4096
    assert longest["prompt_ids"][-1] == 8999
    assert longest["mean_kl"] == pytest.approx(kd(9000)[:4096].mean())


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    kept = KeptRollouts(tmp_path / "file", 10, None)
    kept.add(1, [(rollout(3), np.array([0.5, np.inf, np.nan]))])
    (line,) = read_json_lines(tmp_path / "file")
    assert line["kl"] == [0.5, None, None]
    assert line["mean_kl"] is None


def test_a_resume_drops_the_lines_that_are_written_again(tmp_path: Path) -> None:
    kept = KeptRollouts(tmp_path / "file", 10, lambda ids: "x" * len(ids))
    for step in range(1, 6):
        kept.add(step, [(rollout(2), kd(2))])
    with (tmp_path / "file").open("a") as file:
        file.write(json.dumps({"step": 6})[:5])
    kept.keep_before(3)
    kept.save()
    assert [line["step"] for line in read_json_lines(tmp_path / "file")] == [1, 2, 3]


def test_a_full_disk_ends_the_run_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_module, "append_json_line", full)
    kept = KeptRollouts(tmp_path / "file", 10, None)
    with pytest.raises(DiskFull, match="file"):
        kept.add(1, [(rollout(2), kd(2))])
