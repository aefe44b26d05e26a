"""The newest rollouts, from the end of rollouts.jsonl or from before a step."""

import json
from pathlib import Path
from typing import Any

import pytest

from control_plane.reading.samples import newest_rollouts
from lectern_common.json_lines import MAX_READ_BYTES, append_json_line


def rollout(step: int, row: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "row": row,
        "sample": 0,
        "prompt": "def ",
        "prompt_ids": [4, 5],
        "ids": [6, 7],
        "end": 2,
        "text": "f(",
        "tokens": ["f", "(", "</s>"],
        "kl": [0.5, None, 0.25],
        "mean_kl": 0.375,
        **changes,
    }


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    for line in lines:
        append_json_line(path, line)
    return path


def steps_and_rows(path: Path, *asked: Any) -> tuple[list[tuple[int, int]], bool]:
    found, more = newest_rollouts(path, *asked)
    return [(one.step, one.row) for one in found], more


def test_every_field_of_a_line_is_returned(tmp_path: Path) -> None:
    lines = [
        rollout(1),
        rollout(1, 1, end=None, tokens=["f", "("], kl=[0.5, 2.0]),
        rollout(2, prompt=None, text=None, tokens=None),  # a run without a tokenizer
        rollout(3, ids=[], text="", tokens=["</s>"], kl=[1]),
    ]
    path = written(tmp_path / "rollouts.jsonl", lines)

    found, more = newest_rollouts(path, 10)

    assert [one.model_dump() for one in found] == lines and not more


def test_lines_that_are_no_rollouts_are_left_out_and_others_are_not(tmp_path: Path) -> None:
    broken: list[dict[str, Any]] = [
        {"kl": [0.5, 0.5]},  # the end token is not judged
        {"end": None},  # a token too many is
        {"tokens": ["f", "("]},
        {"ids": [6, -7]},
        {"step": -1},
        {"prompt_ids": None},
        {"kl": "abc"},
    ]
    path = written(tmp_path / "rollouts.jsonl", [{**rollout(1), **one} for one in broken])
    with path.open("ab") as file:
        file.write(b'garbage\n[1]\n{"step": 1}\n')
    written(path, [rollout(2, mean_kl=float("nan"))])
    written(path, [rollout(3, more="of a later release", text="\ud800")])
    with path.open("ab") as file:
        file.write(json.dumps(rollout(4)).encode())  # still being written

    found, more = newest_rollouts(path, 10)

    assert [one.step for one in found] == [2, 3] and not more
    assert found[0].mean_kl is None and found[1].text == "?"


def test_the_rollouts_of_a_step_come_together(tmp_path: Path) -> None:
    lines = [rollout(step, row) for step in (1, 5, 9) for row in range(3)]
    path = written(tmp_path / "rollouts.jsonl", lines)
    rows = {step: [(step, row) for row in range(3)] for step in (1, 5, 9)}

    assert steps_and_rows(path, 9) == (rows[1] + rows[5] + rows[9], False)
    assert steps_and_rows(path, 8) == (rows[5] + rows[9], True)
    assert steps_and_rows(path, 5) == (rows[9], True)
    assert steps_and_rows(path, 3) == (rows[9], True)
    assert steps_and_rows(path, 2) == (rows[9][1:], True)  # not even one step fits
    assert steps_and_rows(path, 9, 9) == (rows[1] + rows[5], False)
    assert steps_and_rows(path, 3, 9) == (rows[5], True)
    assert steps_and_rows(path, 9, 6) == (rows[1] + rows[5], False)
    assert steps_and_rows(path, 9, 1) == ([], False)
    assert steps_and_rows(path, 9, 100) == (rows[1] + rows[5] + rows[9], False)


def test_a_missing_file_has_none(tmp_path: Path) -> None:
    assert newest_rollouts(tmp_path / "rollouts.jsonl", 5) == ([], False)
    assert newest_rollouts(tmp_path / "rollouts.jsonl", 5, 7) == ([], False)


@pytest.mark.parametrize("before_step", [None, 60])
def test_a_long_file_is_read_in_parts(tmp_path: Path, before_step: int | None) -> None:
    lines = [rollout(step, row, prompt="p" * 8000) for step in range(1, 121) for row in range(2)]
    path = written(tmp_path / "rollouts.jsonl", lines)
    assert path.stat().st_size > 1.5 * MAX_READ_BYTES

    met: list[tuple[int, int]] = []
    more = True
    while more:
        found, more = steps_and_rows(path, 1000, before_step)
        met = found + met
        before_step = found[0][0]

    steps = range(1, met[-1][0] + 1)
    assert len(met) > 100 and met == [(step, row) for step in steps for row in range(2)]
