"""Unusable documents are reported by reason, with what to do about them."""

import pytest

from lectern_common.errors import InvalidRequest
from lectern_data.left_out import Faults
from lectern_data.read.documents import LeftOut


def refused(max_fraction: float, usable: int, left_out: list[LeftOut]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        Faults(max_fraction, usable, left_out).require_few()
    return str(caught.value)


def rows(count: int, reason: str) -> list[LeftOut]:
    return [LeftOut(f"rows.jsonl#{number}", reason) for number in range(1, count + 1)]


def test_rows_are_listed_by_the_commonest_reasons_with_what_to_do() -> None:
    assert refused(0.01, 1990, rows(7, "not JSON") + rows(1234, "no text")) == (
        "1,241 of 3,231 documents cannot be used, more than --max-fault-fraction 0.01 allows "
        "(rows.jsonl#1, rows.jsonl#2, rows.jsonl#3, rows.jsonl#4, rows.jsonl#5 and 1,229 more: no "
        "text; rows.jsonl#1, rows.jsonl#2, rows.jsonl#3, rows.jsonl#4, rows.jsonl#5 and 2 more: "
        "not JSON); fix these rows, or set --max-fault-fraction 0.385 to skip them"
    )


def test_the_fraction_that_is_named_is_enough() -> None:
    faults = rows(1, "not JSON")
    assert refused(0.0, 2, faults).endswith("set --max-fault-fraction 0.334 to skip them")
    Faults(0.334, 2, faults).require_few()


def test_files_can_be_left_out() -> None:
    said = refused(0.0, 1, [LeftOut("src/a.bin", "not text"), LeftOut("b.jsonl#2", "not JSON")])
    assert "; fix these rows and leave these files out (inside folders with --exclude), or" in said
    assert "; leave these files out" in refused(0.0, 1, [LeftOut("src/a.bin", "not text")])


def test_files_whose_endings_have_nothing_usable_are_left_out_by_pattern() -> None:
    json_rows = [LeftOut(f"app/list.json#{number}", "not text") for number in range(3)]
    images = [LeftOut("app/a.png", "not text"), LeftOut("app/b.png", "not text")]
    config = LeftOut("app/src/package.json", "has no text")
    broken = LeftOut("app/c.py", "not UTF-8")
    row = LeftOut("app/d.jsonl#2", "not JSON")
    for faults, used, remedy in [
        ([config], {".py"}, "leave these files out (inside folders with --exclude '*.json')"),
        (
            [*images, config, *json_rows, broken],
            {".py"},
            "leave these files out (inside folders with --exclude '*.json' --exclude '*.png')",
        ),
        (json_rows, {".py"}, "leave these files out (inside folders with --exclude '*.json')"),
        (json_rows, {".json"}, "fix these rows"),
        ([config], {".json"}, "leave these files out (inside folders with --exclude)"),
        ([broken], {".py"}, "leave these files out (inside folders with --exclude)"),
        ([row], {".py"}, "fix these rows"),
        # a named file is in no folder, and a name that a shell reads otherwise is no pattern
        ([LeftOut("package.json", "x")], {".py"}, "leave these files out (inside folders with"),
        ([LeftOut("app/a.b'c", "x")], {".py"}, "leave these files out (inside folders with"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            Faults(0.01, 20, faults, used).require_few()
        said = str(caught.value).partition("); ")[2]
        assert said.startswith(remedy) and ("*" in said) == ("*" in remedy)


def test_of_many_endings_the_most_frequent_are_named() -> None:
    faults = [LeftOut(f"app/{n}.e{end}", "x") for end in range(9) for n in range(end + 1)]
    with pytest.raises(InvalidRequest) as caught:
        Faults(0.0, 1, faults, {".py"}).require_few()
    patterns = " ".join(f"--exclude '*.e{end}'" for end in (8, 7, 6, 5, 4))
    assert f"(inside folders with {patterns})," in str(caught.value)


def test_only_the_first_of_many_reasons_are_named() -> None:
    said = refused(0.0, 1, [LeftOut(f"{number}", f"reason {number}") for number in range(7)])
    assert "4: reason 4; and 2 other reasons)" in said and "reason 5" not in said


def test_if_nothing_is_usable_the_message_says_why() -> None:
    assert refused(1.0, 0, []) == "no text in the inputs"
    empty = [LeftOut("a.txt", "empty", is_fault=False)]
    assert refused(1.0, 0, empty) == "no text in the inputs (a.txt: empty)"
