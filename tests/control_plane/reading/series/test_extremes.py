"""The last and the best value of a metric against a plain pass over the lines."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from control_plane.reading.series.extremes import Extremes, extremes_of
from control_plane.reading.series.index import Index
from lectern_common.json_lines import append_json_line


def found(folder: Path, key: str, *, lowest: bool = True) -> Extremes | None:
    path = folder / "metrics.jsonl"
    indexed = Index(path, folder / "metrics.index").up_to_date()
    return extremes_of(indexed, path, key, lowest=lowest)


def write(folder: Path, values: list[Any], key: str = "loss/val", first: int = 0) -> None:
    for step, value in enumerate(values, first):
        append_json_line(folder / "metrics.jsonl", {"step": step, key: value})


def test_the_best_value_is_the_first_of_the_lowest_or_highest(tmp_path: Path) -> None:
    write(tmp_path, [3.0, 1.0, 2.0, 1.0, 3.0, 2.5])
    assert found(tmp_path, "loss/val") == Extremes(2.5, 5, 1.0, 1)
    assert found(tmp_path, "loss/val", lowest=False) == Extremes(2.5, 5, 3.0, 0)


def test_a_value_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    write(tmp_path, [None, 4.0, None])
    assert found(tmp_path, "loss/val") == Extremes(None, 2, 4.0, 1)
    write(tmp_path, [5.0], first=3)
    assert found(tmp_path, "loss/val") == Extremes(5.0, 3, 4.0, 1)
    write(tmp_path, [None, None], key="loss/kd")
    assert found(tmp_path, "loss/kd") == Extremes(None, 1, None, None)


def test_what_was_never_logged_has_no_value(tmp_path: Path) -> None:
    assert found(tmp_path, "loss/val") is None
    write(tmp_path, [1.0])
    assert found(tmp_path, "loss/kd") is None


@pytest.mark.parametrize("lines", [63, 1024, 5000, 12_345])
def test_values_of_long_files_are_found_exactly(tmp_path: Path, lines: int) -> None:
    draw = random.Random(lines)  # noqa: S311
    records = []
    for step in range(1, lines + 1):
        record: dict[str, Any] = {"step": step, "loss/total": draw.gauss(2, 1)}
        if draw.random() < 0.01:
            record["loss/total"] = None
        if step % 100 == 0:
            record["loss/val"] = round(draw.random(), 2)  # with ties
        records.append(record)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text)
    for key in ("loss/total", "loss/val"):
        values = [(record["step"], record[key]) for record in records if key in record]
        if not values:
            assert found(tmp_path, key) is None
            continue
        finite = [(value, step) for step, value in values if value is not None]
        low, at_low = min(finite)
        high = max(value for value, _ in finite)
        at_high = next(step for value, step in finite if value == high)
        last_step, last = values[-1]
        assert found(tmp_path, key) == Extremes(last, last_step, low, at_low)
        assert found(tmp_path, key, lowest=False) == Extremes(last, last_step, high, at_high)


def test_lines_that_repeat_a_step_end_the_search(tmp_path: Path) -> None:
    for value in (3.0, 1.0, 2.0):
        write(tmp_path, [value] * 50, first=7)
        write(tmp_path, [value], first=7)
    seen = found(tmp_path, "loss/val")
    assert seen is not None and seen.best == 1.0
    assert seen.last is not None and math.isfinite(seen.last)
