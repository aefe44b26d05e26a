"""Trainers' logs, made safe to show."""

from pathlib import Path

import pytest

from control_plane.reading.logs.tail import MAX_LINE_CHARACTERS, last_line, tail, valid_unicode


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "trainer.log"


def test_the_last_lines_are_shown(log):
    log.write_text("one\ntwo\nthree\nfour")
    assert tail(log, 2) == ["three", "four"]
    assert tail(log, 9) == ["one", "two", "three", "four"]


def test_a_missing_log_has_no_lines(log):
    assert (tail(log, 5), last_line(log)) == ([], "")


def test_the_last_line_with_text_is_the_last_line(log):
    log.write_text("Error: this\n\n   \n")
    assert last_line(log) == "Error: this"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"10%\r50%\r100%", "100%"),
        (b"windows\r\n", "windows"),
        (b"bad \xff utf-8", "bad \N{REPLACEMENT CHARACTER} utf-8"),
        (b"bell \x07 nul \x00", "bell \N{REPLACEMENT CHARACTER} nul \N{REPLACEMENT CHARACTER}"),
        (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
        (b"tab\tstays", "tab\tstays"),
        (b"\xe2\x80\xaeright to left", "\N{REPLACEMENT CHARACTER}right to left"),
    ],
)
def test_a_line_is_safe_to_show(log, written, shown):
    log.write_bytes(written)
    assert tail(log, 1) == [shown]


def test_a_huge_line_is_cut_with_a_marker(log):
    log.write_bytes(b"x" * 10_000_000 + b"\nlast\n")
    lines = tail(log, 5)
    assert len(lines) == 2
    assert lines[0].startswith("[cut] x")
    assert " [cut] x" in lines[0][10:]
    assert len(lines[0]) < MAX_LINE_CHARACTERS + 20
    assert lines[1] == "last"


def test_a_cut_traceback_keeps_the_error(log):
    frames = r"File \"loop.py\", line 1, in train\n" * 100
    log.write_text(f'level=error exception="Traceback\\n{frames}ValueError: of all things"\n')
    (line,) = tail(log, 1)
    assert line.startswith('level=error exception="Traceback')
    assert line.endswith('ValueError: of all things"')


def test_text_that_cannot_be_encoded_is_replaced():
    assert valid_unicode({"a": ["\ud800x", 1, None]}) == {"a": ["?x", 1, None]}
