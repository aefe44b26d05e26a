"""Metrics for a chart: filtered by key and thinned, with lows and highs kept."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.reading.metrics import Thinner, read_many
from lectern_common.json_lines import Position, append_json_line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def add(path: Path, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        append_json_line(path, {"step": step, "loss/total": loss})


def test_many_records_are_returned_up_to_a_limit_and_continued(path):
    add(path, *range(10))
    answer = read_many(path, Position(), max_records=4)
    assert [record["step"] for record in answer.records] == [0, 1, 2, 3]
    assert answer.more
    rest = read_many(path, answer.end, max_records=100)
    assert [record["step"] for record in rest.records] == [4, 5, 6, 7, 8, 9]
    assert not rest.more


def test_records_begin_at_a_step_and_hold_the_requested_keys(path):
    add(path, *range(5))
    append_json_line(path, {"step": 5, "loss/total": 1.0, "loss/val": 2.0, "x": 3})
    answer = read_many(path, Position(), first_step=3, keys=frozenset({"loss/val"}), max_records=9)
    assert answer.records == [{"step": 5, "loss/val": 2.0}]


def thinned(records, max_points: int = 16):
    thinner = Thinner(max_points)
    for record in records:
        thinner.add(record)
    return thinner.records()


def test_few_records_are_all_kept():
    records = [{"step": step, "loss/total": 1.0 / (step + 1)} for step in range(6)]
    assert thinned(records) == records


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=600),
    st.integers(16, 200),
)
def test_thinned_records_are_few_in_order_and_keep_ends_lows_and_highs(values, max_points):
    records = [{"step": step, "loss/total": value} for step, value in enumerate(values)]
    kept = thinned(records, max_points)
    assert len(kept) <= max_points + 2
    found = [record["step"] for record in kept]
    assert found == sorted(set(found))
    assert (kept[0], kept[-1]) == (records[0], records[-1])
    finite = [value for value in values if value is not None]
    left = [record["loss/total"] for record in kept if record["loss/total"] is not None]
    if finite:
        assert min(left) == min(finite)
    if len(finite) == len(values):
        assert max(left) == max(finite)


def test_validation_losses_are_kept_however_many_steps_lie_between():
    records = [
        {"step": step, "loss/total": 1.0, **({"loss/val": 2.0} if step % 1000 == 0 else {})}
        for step in range(10_001)
    ]
    kept = thinned(records, 100)
    assert [record["step"] for record in kept if "loss/val" in record] == list(
        range(0, 10_001, 1000)
    )
    assert len(kept) <= 102
