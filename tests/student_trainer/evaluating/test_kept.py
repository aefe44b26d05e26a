"""What an evaluation has done so far: kept through kills, dropped if it is of something else."""

import json

import pytest

from student_trainer.evaluating.kept import Kept


def test_entries_are_there_again(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path, {"a": 1}).add({"n": 0}, {"n": 1})
    kept = Kept(path, {"a": 1})
    kept.add({"n": 2})
    assert [entry["n"] for entry in Kept(path, {"a": 1}).entries] == [0, 1, 2]


def test_entries_of_something_else_are_dropped(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path, {"a": 1}).add({"n": 0})
    assert Kept(path, {"a": 2}).entries == []
    assert Kept(path, {"a": 1}).entries == []


def test_a_kill_at_any_byte_loses_only_the_last_entry(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path, 1).add({"n": 0}, {"n": 1})
    whole = path.read_bytes()
    lines = whole.count(b"\n")
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = Kept(path, 1)
        there = max(0, whole[:size].count(b"\n") - 1)
        assert [entry["n"] for entry in kept.entries] == list(range(there))
        for number in range(there, lines - 1):
            kept.add({"n": number})
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{", b"\xff"])
def test_a_broken_line_starts_over(tmp_path, line):
    path = tmp_path / "kept.jsonl"
    Kept(path, 1).add({"n": 0})
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert Kept(path, 1).entries == []
    assert len([json.loads(one) for one in path.read_bytes().splitlines()]) == 1


def test_without_a_file_nothing_is_kept():
    kept = Kept(None, 1)
    kept.add({"n": 0})
    assert kept.entries == [{"n": 0}]
