"""Metrics while they grow: nothing lost, nothing twice, and told when they went back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.metrics_file import Position, Thinner, read_after, read_many
from lectern_common.errors import InvalidRequest
from lectern_common.files import write_atomic
from lectern_common.run_folder import append_json_line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def add(path: Path, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        append_json_line(path, {"step": step, "loss/total": loss})


def steps(batch) -> list[int]:
    return [record["step"] for record, _ in batch.records]


def test_a_missing_file_has_no_records(path):
    batch = read_after(path, Position())
    assert (batch.records, batch.rewound, batch.more) == ([], False, False)


def test_reading_on_gives_each_record_once(path):
    add(path, 0, 1)
    first = read_after(path, Position())
    add(path, 2, 3)
    second = read_after(path, first.end)
    assert (steps(first), steps(second), second.rewound) == ([0, 1], [2, 3], False)
    assert steps(read_after(path, first.records[0][1])) == [1, 2, 3]
    assert steps(read_after(path, second.end)) == []


def test_a_torn_line_is_read_when_it_is_whole(path):
    add(path, 0)
    with path.open("ab") as file:
        file.write(b'{"step": 1, ')
    first = read_after(path, Position())
    with path.open("ab") as file:
        file.write(b'"loss/total": 2}\n')
    assert (steps(first), steps(read_after(path, first.end))) == ([0], [1])


def test_lines_that_are_no_records_are_left_out(path):
    path.write_bytes(b'garbage\n[1]\n{"loss": 1}\n\xff\xfe\n{"step": 4, "loss/total": NaN}\n')
    batch = read_after(path, Position())
    assert [record for record, _ in batch.records] == [{"step": 4, "loss/total": None}]
    assert batch.end.offset == path.stat().st_size


@pytest.mark.parametrize("rewrite", ["truncate", "replace"])
def test_a_file_that_went_back_is_read_anew_and_said_so(path, rewrite):
    add(path, *range(10))
    position = read_after(path, Position()).end
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:6])
    if rewrite == "truncate":
        with path.open("r+b") as file:
            file.truncate(len(kept))
    else:
        write_atomic(path, kept)
    batch = read_after(path, position)
    assert (batch.rewound, steps(batch)) == (True, list(range(6)))
    add(path, *range(6, 20), loss=2.0)  # grown past the old position meanwhile
    batch = read_after(path, position)
    assert (batch.rewound, steps(batch)) == (True, list(range(20)))


def test_a_file_that_went_back_behind_the_position_is_read_on(path):
    add(path, *range(4))
    position = read_after(path, Position()).end
    add(path, *range(4, 10))
    with path.open("r+b") as file:
        file.truncate(position.offset)
    add(path, 4, 5, loss=2.0)
    batch = read_after(path, position)
    assert (batch.rewound, steps(batch)) == (False, [4, 5])


def test_a_file_that_is_gone_went_back(path):
    add(path, 0)
    position = read_after(path, Position()).end
    path.unlink()
    assert read_after(path, position).rewound


def test_long_files_are_read_in_parts(path):
    add(path, *range(100))
    found, position, parts = [], Position(), 0
    while True:
        batch = read_after(path, position, max_bytes=500)
        found += steps(batch)
        position, parts = batch.end, parts + 1
        if not batch.more:
            break
    assert found == list(range(100))
    assert parts > 5


def test_a_line_beyond_every_limit_is_passed_and_does_not_look_like_a_rewind(path):
    path.write_text(json.dumps({"step": 0, "x": "y" * 300_000}) + "\n")
    add(path, 1)
    batch = read_after(path, Position())
    again = read_after(path, batch.records[0][1])
    assert (again.rewound, steps(again)) == (False, [1])


def test_a_position_reads_back(path):
    add(path, 0)
    position = read_after(path, Position()).end
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize("text", ["", "x", "1", "1.2", "-1.00000000", "1.zzzzzzzz", "9" * 30])
def test_what_is_no_position_is_refused(text):
    with pytest.raises(InvalidRequest, match="not a position"):
        Position.parse(text)


def test_many_records_come_up_to_a_limit_and_go_on(path):
    add(path, *range(10))
    answer = read_many(path, Position(), max_records=4)
    assert [record["step"] for record in answer.records] == [0, 1, 2, 3]
    assert answer.more
    rest = read_many(path, answer.end, max_records=100)
    assert [record["step"] for record in rest.records] == [4, 5, 6, 7, 8, 9]
    assert not rest.more


def test_records_begin_at_a_step_and_hold_the_asked_keys(path):
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
