"""JSON lines are appended whole, read while they grow, and a truncation is reported."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lectern_common.errors import InvalidRequest
from lectern_common.files import write_atomic
from lectern_common.json_lines import (
    NewRecords,
    Position,
    append_json_line,
    keep_lines_before,
    last_json_lines,
    lines_before,
    position_at,
    position_of,
    read_after,
    read_json_lines,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def add(path: Path, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        append_json_line(path, {"step": step, "loss/total": loss})


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]
    assert read_json_lines(tmp_path / "gone") == []


def test_a_float_that_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1, "loss/kd": float("nan"), "loss/ce": 2.0})
    line = json.loads(path.read_text())
    assert line == {"step": 1, "loss/kd": None, "loss/ce": 2.0, "non_finite": ["loss/kd"]}


_APPENDS_BEYOND_A_LIMIT = """
import resource, sys
from pathlib import Path
from lectern_common.json_lines import append_json_line
path = Path(sys.argv[1])
append_json_line(path, {"step": 1})
limit = path.stat().st_size + 5
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    append_json_line(path, {"step": 2})
except OSError:
    raise SystemExit(7)
"""


def test_a_line_that_only_fits_in_part_is_an_error_not_a_torn_line(tmp_path: Path) -> None:
    """A full disk accepts a part of a write without an error."""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", _APPENDS_BEYOND_A_LIMIT, str(path)], check=False)
    assert done.returncode == 7
    assert path.read_bytes() == b'{"step": 1}\n'


def test_lines_of_the_resumed_step_and_later_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(6):
        append_json_line(path, {"step": step, "loss/total": float("inf")})
    with path.open("ab") as file:
        file.write(b'{"step": 6, "torn')
    keep_lines_before(path, 3)
    lines = read_json_lines(path)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["non_finite"] == ["loss/total"]
    assert path.read_bytes().endswith(b"\n")
    keep_lines_before(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_failed_cut_leaves_the_file_as_it_was(path: Path) -> None:
    add(path, 0, 1)
    before = path.read_bytes()
    hidden = path.with_name("kept")
    path.rename(hidden)
    path.mkdir()
    with pytest.raises(OSError, match="is not a regular file"):
        keep_lines_before(path, 1)
    assert hidden.read_bytes() == before


def test_a_cut_keeps_the_bytes_and_the_file_before_it(path: Path) -> None:
    """Nothing is copied: what stays is the same file, written as it was."""
    path.write_bytes(b'{"step":1, "loss/total": 2.50}\r\n{"step": 2}\n{"step": 3}\n')
    inode = path.stat().st_ino
    keep_lines_before(path, 2)
    assert (path.read_bytes(), path.stat().st_ino) == (
        b'{"step":1, "loss/total": 2.50}\r\n',
        inode,
    )


LINES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans()), min_size=0, max_size=60
)


@given(LINES, st.integers(-1, 42), st.sampled_from([b"", b'{"step": 41', b"\xff", b" "]))
def test_a_cut_equals_a_filter_over_all_lines(drawn, step, torn):
    """Lines of any length, several of one step, broken ones between, and a torn last line."""
    lines = []
    for number, length, is_broken in sorted(drawn):
        lines.append((number, json.dumps({"step": number, "x": "y" * 42**length}).encode()))
        if is_broken:
            lines.append((number + 1, b'{"step": tor'))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(b"".join(line + b"\n" for _, line in lines) + torn)
        kept = [line for number, line in lines if number < step and not line.endswith(b"tor")]
        begin = position_of(path, step)
        after = read_after(path, begin, max_bytes=1 << 24)
        assert not after.rewound
        assert [record["step"] for record, _ in after.records] == [
            number for number, line in lines if number >= step and not line.endswith(b"tor")
        ]
        keep_lines_before(path, step)
        left = path.read_bytes()
        assert [line for line in left.splitlines() if not line.endswith(b"tor")] == kept
        assert begin.offset == len(left)
        assert not left or left.endswith(b"\n")


def test_the_last_lines_are_complete_and_valid_json(path: Path) -> None:
    assert last_json_lines(path, 100) == []
    path.write_bytes(b'{"a": 1}\ngarbage\n\xff\n[2]\n{"b": NaN}\n{"torn": 1}')
    assert last_json_lines(path, 1000) == [{"a": 1}, [2], {"b": None}]
    assert last_json_lines(path, len(b'[2]\n{"b": NaN}\n{"torn": 1}')) == [{"b": None}]
    assert last_json_lines(path, 5) == []


def test_lines_before_an_offset_say_whether_more_are_before_them(path: Path) -> None:
    assert lines_before(path, None, 100) == ([], False)
    assert lines_before(path, 0, 100) == ([], False)
    path.write_bytes(b'{"a": 1}\nnull\nx\n[2]\n{"torn": 1}')
    end = len(b'{"a": 1}\nnull\nx\n[2]\n')
    assert lines_before(path, None, 100) == ([{"a": 1}, [2]], False)
    assert lines_before(path, end, 100) == ([{"a": 1}, [2]], False)
    assert lines_before(path, end, 5) == ([[2]], True)
    assert lines_before(path, end - 4, 100) == ([{"a": 1}], False)
    assert lines_before(path, end, 3) == ([], True)


def test_a_line_with_a_carriage_return_is_one_line(path: Path) -> None:
    path.write_bytes(b'{"step": 1,\r"loss/total": 2}\r\n{"step": 2}\n')
    assert read_json_lines(path) == [{"step": 1, "loss/total": 2}, {"step": 2}]
    first = read_after(path, Position())
    assert steps(first) == [1, 2]
    again = read_after(path, first.records[0][1])
    assert (again.rewound, steps(again)) == (False, [2])


def steps(new: NewRecords) -> list[int]:
    return [record["step"] for record, _ in new.records]


def test_a_missing_file_has_no_records(path: Path) -> None:
    new = read_after(path, Position())
    assert (new.records, new.rewound, new.more) == ([], False, False)


def test_reading_on_gives_each_record_once(path: Path) -> None:
    add(path, 0, 1)
    first = read_after(path, Position())
    add(path, 2, 3)
    second = read_after(path, first.end)
    assert (steps(first), steps(second), second.rewound) == ([0, 1], [2, 3], False)
    assert steps(read_after(path, first.records[0][1])) == [1, 2, 3]
    assert steps(read_after(path, second.end)) == []


def test_a_torn_line_is_read_when_it_is_whole(path: Path) -> None:
    add(path, 0)
    with path.open("ab") as file:
        file.write(b'{"step": 1, ')
    first = read_after(path, Position())
    with path.open("ab") as file:
        file.write(b'"loss/total": 2}\n')
    assert (steps(first), steps(read_after(path, first.end))) == ([0], [1])


def test_lines_that_are_not_records_are_skipped(path: Path) -> None:
    path.write_bytes(b'garbage\n[1]\n{"loss": 1}\n\xff\xfe\n{"step": 4, "loss/total": NaN}\n')
    new = read_after(path, Position())
    assert [record for record, _ in new.records] == [{"step": 4, "loss/total": None}]
    assert new.end.offset == path.stat().st_size


@pytest.mark.parametrize("rewrite", ["truncate", "replace"])
def test_a_rewound_file_is_read_from_its_start_and_reported(path, rewrite):
    add(path, *range(10))
    position = read_after(path, Position()).end
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:6])
    if rewrite == "truncate":
        with path.open("r+b") as file:
            file.truncate(len(kept))
    else:
        write_atomic(path, kept)
    new = read_after(path, position)
    assert (new.rewound, steps(new)) == (True, list(range(6)))
    add(path, *range(6, 20), loss=2.0)  # grown past the old position meanwhile
    new = read_after(path, position)
    assert (new.rewound, steps(new)) == (True, list(range(20)))


def test_a_file_cut_only_after_the_position_is_read_on(path: Path) -> None:
    add(path, *range(4))
    position = read_after(path, Position()).end
    add(path, *range(4, 10))
    with path.open("r+b") as file:
        file.truncate(position.offset)
    add(path, 4, 5, loss=2.0)
    new = read_after(path, position)
    assert (new.rewound, steps(new)) == (False, [4, 5])


def test_a_removed_file_counts_as_rewound(path: Path) -> None:
    add(path, 0)
    position = read_after(path, Position()).end
    path.unlink()
    assert read_after(path, position).rewound


def test_long_files_are_read_in_parts(path: Path) -> None:
    add(path, *range(100))
    found: list[int] = []
    position, parts = Position(), 0
    while True:
        new = read_after(path, position, max_bytes=500)
        found += steps(new)
        position, parts = new.end, parts + 1
        if not new.more:
            break
    assert found == list(range(100))
    assert parts > 5


def test_a_line_longer_than_its_checked_part_is_not_taken_for_a_rewind(path: Path) -> None:
    path.write_text(json.dumps({"step": 0, "x": "y" * 300_000}) + "\n")
    add(path, 1)
    new = read_after(path, Position())
    again = read_after(path, new.records[0][1])
    assert (again.rewound, steps(again)) == (False, [1])


@pytest.mark.parametrize("num_bytes", [1 << 20, (1 << 20) + 1, 5 << 20])
def test_a_line_that_is_too_long_is_passed_over_and_said(
    path: Path, capsys: pytest.CaptureFixture[str], num_bytes: int
) -> None:
    add(path, 0)
    with path.open("a") as file:
        file.write("x" * num_bytes + "\n")
    add(path, 1, 2)
    found, position = [], Position()
    for _ in range(10):
        new = read_after(path, position)
        assert not new.rewound
        found += steps(new)
        position = new.end
        if not new.more:
            break
    assert found == [0, 1, 2]
    assert capsys.readouterr().err.count("line too long") == 1
    with path.open("rb") as file:
        assert position_at(file, position.offset) == position


def test_a_long_line_without_an_end_is_waited_for(path: Path) -> None:
    add(path, 0)
    end = read_after(path, Position()).end
    with path.open("a") as file:
        file.write("x" * (3 << 20))
    new = read_after(path, end)
    assert (new.end, new.more, new.rewound) == (end, False, False)
    with path.open("a") as file:
        file.write("\n")
    passed = read_after(path, end)
    assert (steps(passed), passed.more) == ([], True)
    add(path, 1)
    again = read_after(path, passed.end)
    assert (steps(again), again.rewound) == ([1], False)


def test_a_position_reads_back(path: Path) -> None:
    add(path, 0)
    position = read_after(path, Position()).end
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize("text", ["", "x", "1", "1.2", "-1.00000000", "1.zzzzzzzz", "9" * 30])
def test_an_invalid_position_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a position"):
        Position.parse(text)
