"""Positions in a log count the bytes ever written, and stay right however often it is cut."""

import os
import random

import pytest

from lectern_common.errors import CorruptData
from lectern_common.logs import Cut, OpenLog, cap_log, opened_log

MAX, FIRST, LAST = 30_000, 2_000, 9_000


def text(number: int) -> bytes:
    return b"line %06d %s\n" % (number, b"." * (number % 37))


def test_positions_are_those_of_the_uncut_text_after_any_number_of_cuts(tmp_path):
    log, written, cuts = tmp_path / "log", b"", 0
    rng = random.Random(5)  # noqa: S311
    with log.open("ab", buffering=0) as writer:
        for number in range(12_000):
            line = text(number)
            writer.write(line)
            written += line
            if rng.random() < 0.01:
                cuts += cap_log(log, MAX, FIRST, LAST) > 0
                with opened_log(log, FIRST) as opened:
                    assert opened.position_of(opened.size) == len(written)
                    for position in (0, 1_500, max(0, len(written) - 3_000), len(written) - 1):
                        offset = opened.offset_of(position)
                        if offset >= opened.size:
                            continue
                        assert opened.position_of(offset) == position
                        wanted = written[position : position + 300]
                        head = FIRST - position if position < FIRST else 300
                        assert opened.read(offset, 300)[:head] == wanted[:head]
    assert cuts > 8
    with opened_log(log, FIRST) as opened:
        cut = opened.cut
        assert cut is not None
        assert opened.offset_of(cut.at) == opened.offset_of(cut.at + cut.missing - 1) == cut.end
        behind = opened.read(cut.end, 11)
        assert written[cut.at + cut.missing :].startswith(behind)  # the note tells the truth


def test_the_note_counts_what_is_missing_in_all(tmp_path):
    log = tmp_path / "log"
    numbers = iter(range(10**6))
    for _ in range(3):
        with log.open("ab") as file:
            while file.tell() <= MAX:
                file.write(text(next(numbers)))
        assert cap_log(log, MAX, FIRST, LAST) > 0
    lines = log.read_bytes().splitlines(keepends=True)
    [at] = [number for number, line in enumerate(lines) if b"cut out" in line]
    before, after = (int(lines[index].split()[1]) for index in (at - 1, at + 1))
    missing = sum(len(text(number)) for number in range(before + 1, after))
    assert lines[at].startswith(b"[%s bytes" % f"{missing:,}".encode())


def test_a_line_without_an_end_is_cut_at_the_right_positions(tmp_path):
    log = tmp_path / "log"
    written = bytes(97 + number % 26 for number in range(300_000))
    log.write_bytes(written)
    cap_log(log, MAX, FIRST, LAST)
    with opened_log(log, FIRST) as opened:
        assert opened.position_of(opened.size) == 300_000
        assert opened.read(opened.offset_of(299_000), 50) == written[299_000:299_050]
        assert opened.read(opened.offset_of(1_000), 50) == written[1_000:1_050]


@pytest.mark.parametrize("claim", ["0", "1", "999,999,999,999,999", "007"])
def test_a_trainer_that_writes_the_note_itself_misleads_only_about_its_own_log(tmp_path, claim):
    log = tmp_path / "log"
    note = f"[{claim} bytes of this log were cut out here, to keep it below its limit]\n"
    log.write_bytes(b"x" * FIRST + b"\n" + note.encode() + b"after\n")
    with opened_log(log, FIRST) as opened:
        assert opened.cut is not None
        position = opened.position_of(opened.cut.end)
        assert opened.offset_of(position) == opened.cut.end
        assert opened.read(opened.offset_of(position), 100) == b"after\n"
        assert opened.offset_of(0) == 0


def test_what_is_in_the_line_of_a_cut_counts_for_its_end():
    log = OpenLog(0, 500, (0, 0, 0), Cut(100, 170, 1_000))
    assert [log.position_of(offset) for offset in (0, 99, 100, 130, 170, 171)] == [
        *(0, 99, 1_100, 1_100, 1_100, 1_101)
    ]
    assert [log.offset_of(position) for position in (0, 99, 100, 1_099, 1_100, 1_430)] == [
        *(0, 99, 170, 170, 170, 500)
    ]
    assert log.offset_of(1_431) == 501  # beyond the end


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CorruptData), opened_log(path):
            pass
    with pytest.raises(FileNotFoundError), opened_log(tmp_path / "none"):
        pass
